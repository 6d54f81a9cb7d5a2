"""Several Deep SVDD detectors fitted at once: seeds, learning rates, subsets of rows."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from loopjax.detectors.rows import DataError, as_rows, far_origin, narrowed
from loopjax.detectors.svdd.estimator import DeepSVDD
from loopjax.detectors.svdd.fit import FittedHead, train_heads
from loopjax.errors import ParameterError

# What may differ between heads that train together.
PER_HEAD = (
    "random_state",
    "pretrain_learning_rate",
    "learning_rate",
    "min_learning_rate",
    "weight_decay",
    "nu",
)


def recipe_of(detector: DeepSVDD) -> str:
    """The same for detectors that may train together."""
    return repr({k: v for k, v in detector.get_params().items() if k not in PER_HEAD})


def train_together(
    detectors: Sequence[DeepSVDD], X: Any, subsets: Sequence[np.ndarray] | None = None
) -> list[FittedHead]:
    """Train the heads of detectors together, each on all of X [N, D] or on its own row numbers.

    The detectors stay as they are; `adopt` makes one of them the trained head. They may differ in
    seed, learning rates, weight decay and `nu`. Equal to training each alone up to float rounding.

    Raises:
        ParameterError: other parameters differ, or one is out of range.
        DataError: X cannot be used.
    """
    rows = as_rows(X)
    origin = far_origin(rows)
    rows = narrowed(rows, origin)
    subsets = [np.arange(len(rows))] * len(detectors) if subsets is None else subsets
    for detector in detectors:
        detector.check_params()
    if min(len(subset) for subset in subsets) < DeepSVDD.min_rows:
        raise DataError(f"every head needs at least {DeepSVDD.min_rows} rows")
    config = detectors[0].training_config(rows.shape[1])
    first = detectors[0].get_params()
    for detector in detectors[1:]:
        if detector.training_config(rows.shape[1]) != config:
            other = detector.get_params()
            differing = [n for n in first if first[n] != other[n] and n not in PER_HEAD]
            raise ParameterError(
                f"heads trained together may not differ in {', '.join(differing)}; "
                f"only in {', '.join(PER_HEAD)}"
            )
    heads = [detector.head_config() for detector in detectors]
    trained = train_heads(config, heads, rows, subsets, detectors[0].run_options())
    return [replace(head, origin=origin) for head in trained]


def fit_heads(
    detectors: Sequence[DeepSVDD], X: Any, subsets: Sequence[np.ndarray] | None = None
) -> list[DeepSVDD]:
    """Fit detectors together; see `train_together`.

    Raises:
        ModelCheckError: a head collapsed.
    """
    trained = train_together(detectors, X, subsets)
    rows = np.asarray(X)
    for h, (detector, fitted) in enumerate(zip(detectors, trained, strict=True)):
        detector.adopt(fitted, rows if subsets is None else rows[subsets[h]])
    return list(detectors)
