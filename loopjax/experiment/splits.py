"""Which rows train the detectors, and which stand for normal loops that no detector has seen."""

import hashlib
import math

import numpy as np

from loopjax.config import SplitConfig
from loopjax.errors import UserError
from loopjax.evaluation.splits import MIN_TRAIN
from loopjax.store.read import Embeddings


def split_rows(embeddings: Embeddings, split: SplitConfig) -> np.ndarray:
    """Which rows train, bool [N]; decided by each id (or group) alone, so it survives additions.

    Rows flagged as silence never train: a corpus with many broken files would call them normal.

    Raises:
        UserError: too few rows are left.
    """
    table = embeddings.table
    column = "group" if split.by == "group" and "group" in table.column_names else "id"
    keys = table[column].to_pylist()
    train = np.array([_uniform(f"{split.seed}:{key}") < split.train_fraction for key in keys])
    if "flags" in table.column_names:
        train &= np.array(["silence" not in (f or ()) for f in table["flags"].to_pylist()])
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


def _uniform(text: str) -> float:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / math.pow(2, 64)
