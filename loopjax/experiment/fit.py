"""Embeddings to fitted models."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from loopjax.config import DetectorConfig, nearest
from loopjax.detectors import detector_class, make_detector
from loopjax.detectors.crossfit import fit_and_cross_fit
from loopjax.detectors.known_rows import KnownRows
from loopjax.detectors.rows import RowBlocks, only_rows, take_rows
from loopjax.encoders.space import Space
from loopjax.errors import UserError
from loopjax.model import Model, rows_of
from loopjax.store.read import Embeddings
from loopjax.store.stream import RESIDENT_BYTES, StoredEmbeddings


def check_params(config: DetectorConfig) -> None:
    """Refuses hyper-parameters that the detector does not have, before any work is done.

    Raises:
        UserError: names the key and the nearest known one.
    """
    known = detector_class(config.kind)().get_params()
    for key in config.params:
        if key not in known:
            raise UserError(
                f"detectors.{config.name}.params.{key}: {config.kind} has no such parameter"
                f"{nearest(key, known)}; it has {', '.join(known)}"
            )


def fit_models(
    embeddings: Embeddings | StoredEmbeddings,
    train: np.ndarray,
    config: DetectorConfig,
    seeds: Sequence[int] = (0,),
    *,
    folds: np.ndarray | None = None,
    threshold: Callable[[np.ndarray], float] | None = None,
    embeddings_path: str | None = None,
    extra: dict[str, Any] | None = None,
) -> list[Model]:
    """Fits one detector per seed; threshold, percentiles and p-values come from unseen scores.

    Deep SVDD heads of all seeds train together.

    Args:
        embeddings: the matrix and its row table.
        train: bool [N], the rows to fit on.
        config: kind and hyper-parameters.
        seeds: become `random_state` where the detector has one.
        folds: int [N], the folds of cross-fitting; None: training scores are those of the fitted
            detector itself, and the rows that do not train calibrate it.
        threshold: from the training scores; default: the detector's `contamination`.
        embeddings_path: where the embeddings are, for `explain`.
        extra: run-time arguments of the constructor (callbacks, checkpoint folder).
    """
    check_params(config)
    known = detector_class(config.kind)().get_params()
    detectors = []
    for seed in seeds:
        params = {"random_state": seed} | config.params | (extra or {})
        params = {key: value for key, value in params.items() if key in known}
        detectors.append(make_detector(config.kind, **params))
    space = Space.from_metadata(embeddings.metadata)
    everything = rows_of(embeddings)
    rows: np.ndarray | RowBlocks = only_rows(everything, train)
    if isinstance(rows, RowBlocks) and (
        rows.n_rows * rows.n_features * 4 <= RESIDENT_BYTES
        or not all(detector.streams for detector in detectors)
    ):
        rows = take_rows(rows, np.arange(rows.n_rows))
    if folds is None:
        for detector in detectors:
            detector.fit(rows)
            if not train.all():
                detector.calibrate(only_rows(everything, ~train))
    else:
        fit_and_cross_fit(detectors, rows, folds[train])
    if threshold is not None:
        for detector in detectors:
            detector.set_fitted({"threshold_": threshold(detector.decision_scores_)})
    ids = embeddings.columns(["id"])["id"].filter(pa.array(train)).combine_chunks()
    known_rows = None if folds is None else KnownRows.of(rows)
    return [Model(d, config.name, space, ids, embeddings_path, known_rows) for d in detectors]
