"""A trained model: a detector together with the embeddings' provenance and the split it saw."""

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from loopjax.config import DetectorConfig, SplitConfig, nearest
from loopjax.detectors import (
    KINDS,
    DeepSVDD,
    Detector,
    fit_heads,
    load_detector,
    make_detector,
)
from loopjax.detectors.storage import save_detector
from loopjax.errors import UserError, WriteError
from loopjax.evaluation.splits import MIN_TRAIN
from loopjax.store.read import Embeddings
from loopjax.store.scores import Scores


@dataclass(frozen=True)
class TrainedModel:
    """What `fit` writes and `score` reads."""

    detector: Detector
    name: str
    embedding: dict[str, str]  # the store's metadata: encoder, weights and preprocessing hashes
    embeddings_path: str | None  # where the training embeddings were, for nearest neighbors
    training_ids: tuple[str, ...]

    def save(self, folder: Path) -> None:
        """Writes `detector/` and `model.json`.

        Raises:
            WriteError: the folder cannot be written.
        """
        try:
            folder.mkdir(parents=True, exist_ok=True)
            save_detector(self.detector, folder / "detector")
            record = {
                "format": "loopjax-model-1",
                "name": self.name,
                "embedding": self.embedding,
                "embeddings_path": self.embeddings_path,
                "training_ids": list(self.training_ids),
            }
            (folder / "model.json").write_text(json.dumps(record) + "\n", encoding="utf-8")
        except OSError as error:
            raise WriteError(f"cannot write the model to {folder}: {error}") from None

    @classmethod
    def load(cls, folder: str | Path) -> "TrainedModel":
        """Reads a folder written by `save`.

        Raises:
            UserError: no model there, or it is damaged.
        """
        folder = Path(folder)
        try:
            record = json.loads((folder / "model.json").read_text(encoding="utf-8"))
            return cls(
                load_detector(folder / "detector"),
                record["name"],
                record["embedding"],
                record["embeddings_path"],
                tuple(record["training_ids"]),
            )
        except FileNotFoundError:
            raise UserError(
                f"{folder} holds no model (model.json is missing); train one with `loopjax fit`"
            ) from None
        except (OSError, ValueError, KeyError) as error:
            raise UserError(f"{folder}: the model is damaged ({error}); fit it again") from None


def check_params(config: DetectorConfig) -> None:
    """Refuses hyper-parameters that the detector does not have, before any work is done.

    Raises:
        UserError: names the key and the nearest known one.
    """
    known = KINDS[config.kind]().get_params()
    for key in config.params:
        if key not in known:
            raise UserError(
                f"detectors.{config.name}.params.{key}: {config.kind} has no such parameter"
                f"{nearest(key, known)}; it has {', '.join(known)}"
            )


def split_rows(embeddings: Embeddings, split: SplitConfig) -> np.ndarray:
    """Which rows train, bool [N]; decided by each id (or group) alone, so it survives additions.

    Rows flagged as silence never train: a corpus with many broken files would call them normal.
    """
    table = embeddings.table
    column = "group" if split.by == "group" and "group" in table.column_names else "id"
    train = np.array(
        [_uniform(f"{split.seed}:{key}") < split.train_fraction for key in _text(table, column)]
    )
    if "flags" in table.column_names:
        train &= np.array(["silence" not in (f or ()) for f in _text(table, "flags")])
    if train.sum() < MIN_TRAIN:
        raise UserError(
            f"{int(train.sum())} of {len(train)} embeddings are left for training and at least "
            f"{MIN_TRAIN} are needed; embed more loops or raise split.train_fraction"
        )
    return train


def held_out_rows(split: SplitConfig, train: np.ndarray, labels: np.ndarray | None) -> np.ndarray:
    """Rows that stand for normal loops no detector has seen, bool [N].

    They calibrate p-values and measure false alarms; labeled anomalies are left out where the
    split takes labels into account.
    """
    if split.train_on == "normal" and labels is not None:
        return ~train & (labels != 1)
    return ~train


def fit_models(
    embeddings: Embeddings,
    train: np.ndarray,
    config: DetectorConfig,
    seeds: Sequence[int] = (0,),
    *,
    calibration: np.ndarray | None = None,
    embeddings_path: str | None = None,
    extra: dict[str, Any] | None = None,
) -> list[TrainedModel]:
    """Fits one detector per seed on the training rows and calibrates them on the rest.

    Deep SVDD heads of all seeds train together.

    Args:
        embeddings: the matrix and its row table.
        train: bool [N] from `split_rows`.
        config: kind and hyper-parameters.
        seeds: become `random_state` where the detector has one.
        calibration: bool [N], held-out rows taken as normal; default: all that do not train.
        embeddings_path: recorded for `explain`.
        extra: run-time arguments of the constructor (callbacks, checkpoint folder).
    """
    check_params(config)
    known = KINDS[config.kind]().get_params()
    detectors = []
    for seed in seeds:
        params = {"random_state": seed} | config.params | (extra or {})
        params = {key: value for key, value in params.items() if key in known}
        detectors.append(make_detector(config.kind, **params))
    if config.kind == DeepSVDD.kind:
        fit_heads(detectors, embeddings.matrix[train])
    else:
        for detector in detectors:
            detector.fit(embeddings.matrix[train])
    held_out = embeddings.matrix[~train if calibration is None else calibration]
    if len(held_out):
        for detector in detectors:
            detector.calibrate(held_out)
    ids = tuple(np.asarray(_text(embeddings.table, "id"), object)[train])
    return [
        TrainedModel(detector, config.name, embeddings.metadata, embeddings_path, ids)
        for detector in detectors
    ]


def score_embeddings(
    model: TrainedModel, embeddings: Embeddings, target_fpr: float | None = None
) -> Scores:
    """Scores every row; rank 1 is the most anomalous.

    Args:
        model: the trained detector.
        embeddings: rows of the same encoder and preprocessing.
        target_fpr: flag rows whose conformal p-value is at most this; None = the detector's
            threshold, the 95 % quantile of its training scores.

    Raises:
        UserError: embeddings of another encoder or preprocessing.
    """
    check_same_space(model.embedding, embeddings.metadata)
    detector = model.detector
    scores = detector.decision_function(embeddings.matrix)
    calibrated = hasattr(detector, "calibration_scores_")
    if target_fpr is not None and not calibrated:
        raise UserError("--target-fpr needs held-out loops; fit with split.train_fraction below 1")
    p_value = detector.p_value(scores) if calibrated else np.full(len(scores), np.nan)
    flagged = scores > detector.threshold_ if target_fpr is None else p_value <= target_fpr
    ids = np.asarray(_text(embeddings.table, "id"), object)
    order = np.lexsort((ids.astype(str), -scores))
    rank = np.empty(len(scores), np.int64)
    rank[order] = np.arange(1, len(scores) + 1)
    trained_on = set(model.training_ids)
    columns: dict[str, Any] = {
        "id": ids,
        "path": _text(embeddings.table, "path"),
        "score": scores,
        "percentile": detector.percentile(scores),
        "p_value": pa.array(p_value, from_pandas=True),
        "is_anomaly": flagged,
        "rank": rank,
        "split": ["train" if i in trained_on else "held-out" for i in ids],
    }
    for name in ("group", "flags", "duration_s"):
        if name in embeddings.table.column_names:
            columns[name] = embeddings.table[name]
    table = pa.table(columns).take(pa.array(order))
    metadata = {
        "detector": model.name,
        "kind": detector.kind,
        "score_convention": "higher_is_anomalous",
        "threshold": repr(float(detector.threshold_)),
    }
    return Scores(table, metadata)


def check_same_space(expected: dict[str, str], found: dict[str, str]) -> None:
    """Refuses to mix embedding spaces.

    Raises:
        UserError: names what differs.
    """
    for key in ("encoder", "weights_sha256", "preprocessing_sha256"):
        if key in expected and key in found and expected[key] != found[key]:
            raise UserError(
                f"the embeddings come from another space than the model's: {key} is "
                f"{found[key]!r}, the model was trained with {expected[key]!r}; embed again with "
                f"--encoder {expected.get('encoder', '?')}"
            )


def _uniform(text: str) -> float:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / math.pow(2, 64)


def _text(table: pa.Table, column: str) -> list[str]:
    return table[column].to_pylist()
