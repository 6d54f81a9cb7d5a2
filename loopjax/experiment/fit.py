"""Embeddings to fitted models."""

import copy
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from loopjax.config import DetectorConfig, SplitConfig, nearest
from loopjax.detectors import DEFAULT_KIND, detector_class, make_detector
from loopjax.detectors.base import Detector
from loopjax.detectors.crossfit import fit_and_cross_fit
from loopjax.detectors.known_rows import KnownRows
from loopjax.detectors.rows import SCORED_ROWS, RowBlocks, iter_blocks, only_rows, take_rows
from loopjax.encoders.space import Space
from loopjax.errors import UserError
from loopjax.evaluation.splits import MIN_TRAIN
from loopjax.experiment.splits import Split, audible, split_rows
from loopjax.io.remote import place_of
from loopjax.model import Model, rows_of
from loopjax.store.read import Embeddings
from loopjax.store.stream import RESIDENT_BYTES, StoredEmbeddings, open_embeddings

FIT_FORMAT = 1  # raised when the same settings and rows give another model


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


def fit_model(
    data: Embeddings | StoredEmbeddings | str | Path,
    kind: str = DEFAULT_KIND,
    *,
    seed: int = 0,
    split: SplitConfig | None = None,
    **params: object,
) -> Model:
    """Fits a detector as `loopjax fit` does: the corpus is scored in folds, copies stay together.

    Args:
        data: embeddings, a store, or a file of embeddings.
        kind: of the detector, such as "deep-svdd" or "knn".
        seed: where the method is random.
        split: which rows fit; default: all but silent ones.
        **params: of the detector, such as `network="residual"`.

    Raises:
        UserError: unreadable, an unknown kind or parameter, or too few loops.
    """
    is_path = isinstance(data, str | Path)
    embeddings = open_embeddings(data) if is_path else data
    path = str(place_of(data).absolute()) if is_path else None
    rows = split_rows(embeddings, split or SplitConfig())
    config = DetectorConfig(kind, kind, params)
    (model,) = fit_models(
        embeddings, rows.train, config, [seed], folds=rows.folds, embeddings_path=path
    )
    return model


def update_model(
    model: Model, data: Embeddings | StoredEmbeddings | np.ndarray | str | Path
) -> Model:
    """A model that has learned further loops too, without those of before; `model` is unchanged.

    Loops that it was fitted on and silent ones are left out. The others are also scored in folds,
    each by a detector that has learned all but its fold, and these unseen scores join the earlier
    ones. What the further loops change in the scale of scores, they show themselves: earlier scores
    are multiplied by the ratio of the medians that the further loops have after and before.
    Threshold (the quantile of `contamination`), percentiles and p-values follow from all of them.

    Args:
        model: of a detector with `partial_fit`.
        data: embeddings, or the path of some, of the model's space.

    Raises:
        UserError: the detector learns from all rows together, another space, or nothing new.
    """
    detector = copy.deepcopy(model.detector)
    learn = detector.partial_fit  # told before anything is read
    embeddings = model.embeddings_of(data)
    fits = audible(embeddings.columns(["id", "flags"]))
    if model.known_rows is not None:
        everything = rows_of(embeddings)
        parts = (everything,) if isinstance(everything, np.ndarray) else everything
        fits &= np.concatenate([model.known_rows.find(part) for part in parts]) < 0
    if not fits.any():
        raise UserError(f"{model.name} knows all of these {len(fits)} loops, or they are silent")
    further = embeddings.only(fits)
    train, folds = np.ones(len(further), bool), np.zeros(len(further), int)
    if len(further) >= MIN_TRAIN:
        split = split_rows(further, SplitConfig())
        train, folds = split.train, split.folds[split.train]
    rows = only_rows(rows_of(further), train)
    unseen, ratio = _unseen(model.detector, rows, folds)
    learn(rows)
    ids, known = model.training_ids, model.known_rows
    if len(ids):
        new = further.columns(["id"])["id"].filter(pa.array(train)).cast(pa.string())
        ids = pa.concat_arrays([ids.cast(pa.string()), *new.chunks])
    if known is not None:
        known = KnownRows(np.concatenate([known.marks, KnownRows.of(rows).marks]))
        detector.calibrate_by(np.concatenate([ratio * model.detector.decision_scores_, unseen]))
    elif model.is_calibrated:
        earlier = ratio * model.detector.calibration_scores_
        detector.set_fitted({"calibration_scores_": np.sort(np.concatenate([earlier, unseen]))})
    return replace(model, detector=detector, training_ids=ids, known_rows=known, made_from=None)


def _unseen(
    detector: Detector, rows: np.ndarray | RowBlocks, folds: np.ndarray
) -> tuple[np.ndarray, float]:
    """Scores of further rows [M], each by the detector with the rows of all other folds.

    And the ratio of their median to that of the scores by the detector as it is. Few rows are one
    fold: the detector as it is gives both.
    """
    before = detector.decision_function(rows)
    after = before.copy()
    numbers = np.unique(folds)
    for fold in numbers if len(numbers) > 1 else ():
        own = folds == fold
        grown = copy.deepcopy(detector).partial_fit(only_rows(rows, ~own))
        after[own] = grown.decision_function(only_rows(rows, own))
    middle = float(np.median(before))
    return after, float(np.median(after)) / middle if middle > 0 else 1.0


def rows_digest(embeddings: Embeddings | StoredEmbeddings, split: Split) -> str:
    """Of all that a fit takes from its corpus: rows, their ids, who trains and in which fold."""
    digest = hashlib.sha256()
    rows = rows_of(embeddings)
    for block in iter_blocks(rows, SCORED_ROWS) if isinstance(rows, RowBlocks) else (rows,):
        digest.update(np.ascontiguousarray(block).data)
    digest.update(json.dumps(embeddings.columns(["id"])["id"].to_pylist()).encode())
    digest.update(json.dumps(embeddings.metadata, sort_keys=True).encode())
    for part in (split.train, split.folds.astype(np.int64)):
        digest.update(np.ascontiguousarray(part).data)
    return digest.hexdigest()


def fit_digest(rows: str, config: DetectorConfig, seed: int) -> str:
    """Of all that a fit depends on: `Model.made_from`; `rows` is from `rows_digest`.

    The name is no part of it, nor the threshold, which follows from the scores at no cost.
    """
    detector = _detector_of(config, seed, {})
    settings = detector.get_params(deep=False)
    settings = {k: v for k, v in settings.items() if k not in detector.run_time_params}
    whole = [FIT_FORMAT, rows, config.kind, settings]
    return hashlib.sha256(json.dumps(whole, sort_keys=True, default=str).encode()).hexdigest()


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
    detectors = [_detector_of(config, seed, extra or {}) for seed in seeds]
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


def _detector_of(config: DetectorConfig, seed: int, extra: dict[str, Any]) -> Detector:
    known = detector_class(config.kind)().get_params()
    params = {"random_state": seed} | config.params | extra
    return make_detector(config.kind, **{k: v for k, v in params.items() if k in known})
