"""k-nearest-neighbor distance: how far a row is from the normal rows closest to it."""

from functools import partial
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np

from loopjax.detectors.base import DataError, Detector, iter_blocks, len_rows, take_rows
from loopjax.errors import UserError

_REFERENCE_BLOCK = 8192
# Candidates beyond k whose distances are recomputed exactly after the blocked search.
_SPARE = 8
HIGHEST = jax.lax.Precision.HIGHEST


class KNN(Detector):
    """Distance to the k nearest training rows, found by blocked matrix products.

    Args:
        n_neighbors: k.
        aggregate: "mean" of the k distances, or "max", the distance to the k-th.
        metric: "euclidean", or "cosine" (Euclidean between unit vectors).
        max_reference: keep at most this many training rows, drawn without replacement.
        contamination: share of training rows above `threshold_`.
        random_state: seed of that draw.

    Fitted: `reference_` float32 [M, D]. A training score leaves the row itself out, while
    `decision_function` of a training row counts it as its own neighbor at distance 0.
    """

    kind: ClassVar[str] = "knn"

    reference_: np.ndarray

    def __init__(
        self,
        n_neighbors: int = 5,
        aggregate: Literal["mean", "max"] = "mean",
        metric: Literal["euclidean", "cosine"] = "euclidean",
        max_reference: int | None = None,
        contamination: float = 0.05,
        random_state: int = 0,
    ):
        self.n_neighbors = n_neighbors
        self.aggregate = aggregate
        self.metric = metric
        self.max_reference = max_reference
        self.contamination = contamination
        self.random_state = random_state

    def neighbors(self, X: Any) -> tuple[np.ndarray, np.ndarray]:
        """Nearest training rows: distances [N, k] ascending and their rows in `reference_` [N, k].

        With metric "cosine", `reference_` holds unit vectors and so do the distances.
        """
        rows = self._validate(X, reset=False)
        return self._search(self._prepare(rows), self.n_neighbors, own_rows=None)

    def _check_params(self) -> None:
        super()._check_params()
        if not (isinstance(self.n_neighbors, (int, np.integer)) and self.n_neighbors >= 1):
            raise UserError(f"n_neighbors must be an integer >= 1; got {self.n_neighbors!r}")
        if self.aggregate not in ("mean", "max"):
            raise UserError(f"aggregate: mean or max; got {self.aggregate!r}")
        if self.metric not in ("euclidean", "cosine"):
            raise UserError(f"metric: euclidean or cosine; got {self.metric!r}")

    def _fit(self, rows: Any) -> np.ndarray:
        total = len_rows(rows)
        kept = np.arange(total)
        if self.max_reference is not None and self.max_reference < total:
            rng = np.random.default_rng(self.random_state)
            kept = np.sort(rng.choice(total, self.max_reference, replace=False))
        if len(kept) <= self.n_neighbors:
            raise DataError(
                f"n_neighbors={self.n_neighbors} needs more than {self.n_neighbors} reference "
                f"rows; got n_samples = {len(kept)}"
            )
        self.reference_ = self._prepare(take_rows(rows, kept))
        if np.all(self.reference_ == self.reference_[:1]):
            raise DataError("all rows are identical: every distance is zero")
        own = np.full(total, -1)
        own[kept] = np.arange(len(kept))
        scores, start = [], 0
        for block in iter_blocks(rows, 4096):
            queries = self._prepare(block)
            found, _ = self._search(queries, self.n_neighbors, own[start : start + len(block)])
            scores.append(self._aggregate(found))
            start += len(block)
        return np.concatenate(scores)

    def _score(self, rows: np.ndarray) -> np.ndarray:
        found, _ = self._search(self._prepare(rows), self.n_neighbors, own_rows=None)
        return self._aggregate(found)

    def _aggregate(self, distances: np.ndarray) -> np.ndarray:
        return distances.mean(axis=1) if self.aggregate == "mean" else distances[:, -1]

    def _prepare(self, rows: np.ndarray) -> np.ndarray:
        if self.metric == "euclidean":
            return rows
        lengths = np.linalg.norm(rows, axis=1, keepdims=True)
        return rows / np.maximum(lengths, np.finfo(np.float32).tiny)

    def _search(
        self, queries: np.ndarray, k: int, own_rows: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Exact nearest rows; `own_rows[i]` is the reference row that query i must not find."""
        block = min(_REFERENCE_BLOCK, 1 << (len(self.reference_) - 1).bit_length())
        n_blocks = -(-len(self.reference_) // block)
        spare = n_blocks * block - len(self.reference_)
        reference = jnp.asarray(np.pad(self.reference_, ((0, spare), (0, 0))))
        real = jnp.asarray(len(self.reference_), jnp.int32)
        center = jnp.asarray(self.reference_.mean(axis=0))
        own = np.full(len(queries), -1) if own_rows is None else own_rows
        size = 256 if len(queries) <= 4096 else 1024
        distances, indices = [], []
        for start in range(0, len(queries), size):
            part = queries[start : start + size]
            missing = size - len(part)
            found = _nearest(
                jnp.asarray(np.pad(part, ((0, missing), (0, 0)))),
                jnp.asarray(np.pad(own[start : start + size], (0, missing)).astype(np.int32)),
                reference,
                center,
                real,
                k=k,
                block=block,
            )
            distances.append(np.asarray(found[0], np.float64)[: len(part)])
            indices.append(np.asarray(found[1])[: len(part)])
        return np.concatenate(distances), np.concatenate(indices)


@partial(jax.jit, static_argnames=("k", "block"))
def _nearest(queries, own, reference, center, real, *, k, block):
    """Top candidates from |a|^2 - 2ab + |b|^2 per reference block, then exact distances."""
    wanted = min(k + _SPARE, block)
    # Centering keeps the expanded form accurate when all rows share a large offset.
    q = queries - center[None, :]
    blocks = reference.reshape(-1, block, reference.shape[1])

    def merge(best, step):
        start, rows = step
        r = rows - center[None, :]
        approx = jnp.sum(r**2, axis=1)[None, :] - 2.0 * jnp.matmul(q, r.T, precision=HIGHEST)
        ids = start + jnp.arange(block, dtype=jnp.int32)
        usable = (ids < real)[None, :] & (ids[None, :] != own[:, None])
        values = jnp.concatenate([best[0], jnp.where(usable, -approx, -jnp.inf)], axis=1)
        known = jnp.concatenate([best[1], jnp.broadcast_to(ids[None, :], approx.shape)], axis=1)
        top, where = jax.lax.top_k(values, wanted)
        return (top, jnp.take_along_axis(known, where, axis=1)), None

    first = (
        jnp.full((len(queries), wanted), -jnp.inf, queries.dtype),
        jnp.zeros((len(queries), wanted), jnp.int32),
    )
    starts = jnp.arange(blocks.shape[0], dtype=jnp.int32) * block
    (top, ids), _ = jax.lax.scan(merge, first, (starts, blocks))
    exact = jnp.sqrt(jnp.sum((queries[:, None, :] - reference[ids]) ** 2, axis=2))
    exact = jnp.where(jnp.isfinite(top), exact, jnp.inf)
    nearest, where = jax.lax.top_k(-exact, k)
    return -nearest, jnp.take_along_axis(ids, where, axis=1)
