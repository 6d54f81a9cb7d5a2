"""Rows that a detector was fitted on are known again, whatever they are called elsewhere."""

import base64
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.spatial import KDTree

from loopjax.detectors.rows import SCORED_ROWS, RowBlocks, iter_blocks

WIDTH = 8


@dataclass(frozen=True)
class KnownRows:
    """A few numbers of every training row: fixed random projections.

    Equal rows have equal projections whatever their ids, up to rounding also if they were embedded
    on another machine, and other rows have others.

    Attributes:
        marks: float32 [n, WIDTH].
    """

    marks: np.ndarray

    @classmethod
    def of(cls, X: np.ndarray | RowBlocks) -> "KnownRows":
        """Marks the rows of X [n, D]."""
        parts = iter_blocks(X, SCORED_ROWS) if isinstance(X, RowBlocks) else [X]
        return cls(np.concatenate([_project(part).astype(np.float32) for part in parts]))

    def find(self, X: np.ndarray) -> np.ndarray:
        """Number of the training row that each row of [N, D] is, -1 if none; int [N]."""
        if not len(X):
            return np.zeros(0, np.int64)
        tree, tolerance = self._index
        distance, row = tree.query(_project(X), distance_upper_bound=tolerance)
        return np.where(np.isfinite(distance), row, -1)

    @cached_property
    def _index(self) -> tuple[KDTree, float]:
        """The marks to search in, and the distance up to which they count as equal."""
        marks = self.marks.astype(np.float64)
        return KDTree(marks), 1e-4 * marks.std() + 1e-6 * np.sqrt(np.mean(marks**2))

    @classmethod
    def from_text(cls, text: str) -> "KnownRows":
        """Marks as the JSON of models holds them that were saved before version 0.3.

        Raises:
            ValueError: something else.
        """
        return cls(np.frombuffer(base64.b64decode(text), "<f4").reshape(-1, WIDTH))


def _project(X: np.ndarray) -> np.ndarray:
    directions = np.random.default_rng(0).normal(size=(X.shape[1], WIDTH))
    return np.asarray(X, np.float64) @ directions
