"""Cosine distance to the mean row: the cheapest reference a detector has to beat."""

from typing import Any, ClassVar, Literal

import numpy as np

from loopjax.detectors.base import Detector
from loopjax.detectors.rows import DataError, RowBlocks, len_rows


class MeanCosine(Detector):
    """One minus the cosine between a row and the mean of the training rows, in [0, 2].

    Fitted: `mean_` float64 [D].
    """

    kind: ClassVar[str] = "mean-cosine"

    mean_: np.ndarray

    def __init__(self, contamination: float | Literal["auto"] = 0.05):
        self.contamination = contamination

    @property
    def depends_on_origin(self) -> bool:
        """Angles do."""
        return True

    def _learn(self, rows: Any) -> None:
        self._take(_sum_of(rows) / len_rows(rows))

    def _learn_more(self, rows: Any) -> None:
        n = self.n_samples_seen_
        self._take((n * self.mean_ + _sum_of(rows)) / (n + len_rows(rows)))

    def _take(self, mean: np.ndarray) -> None:
        if not np.any(mean):
            raise DataError("the mean of the rows is zero, so no direction is normal")
        self.mean_ = mean

    def _training_scores(self, rows: Any, numbers: np.ndarray) -> np.ndarray:
        scores = self._score_all(rows)
        if scores.max() <= 1e-12:
            raise DataError(
                "all rows point the same way: there is no spread to learn from "
                f"(n_features = {self.n_features_in_})"
            )
        return scores

    def _score(self, rows: np.ndarray) -> np.ndarray:
        rows = rows.astype(np.float64)
        lengths = np.linalg.norm(rows, axis=1) * np.linalg.norm(self.mean_)
        inner = np.einsum("nd,d->n", rows, self.mean_)
        # A zero row has no direction and counts as orthogonal.
        return 1.0 - inner / np.maximum(lengths, np.finfo(np.float64).tiny)


def _sum_of(rows: np.ndarray | RowBlocks) -> np.ndarray:
    """Sum of rows [N, D] in float64, [D]."""
    total = np.zeros(1)
    for part in [rows] if isinstance(rows, np.ndarray) else rows:
        total = total + part.sum(axis=0, dtype=np.float64)
    return total
