"""Exact nearest rows of a reference set, by blocked matrix products on the device."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

_REFERENCE_BLOCK, _BLOCK_STEP = 8192, 512
# Candidates beyond k whose distances are recomputed exactly after the blocked search.
_SPARE = 8
# Columns that are looked at together first: choosing among all costs more than their products.
_GROUP = 16
HIGHEST = jax.lax.Precision.HIGHEST


class NearestRows:
    """Reference rows on the device, searched by one compiled program per size.

    Distances are divided by the reference row's radius, where radii are given.

    Attributes:
        rows: float32 [M, D].
    """

    def __init__(self, rows: np.ndarray, radii: np.ndarray | None = None):
        """Places the rows on the device once.

        Args:
            rows: float32 [M, D].
            radii: positive [M], the unit in which distances to each row are measured; None for 1.
        """
        self.rows = rows
        self._radii = np.ones(len(rows), np.float32) if radii is None else radii.astype(np.float32)
        center = rows.mean(axis=0)
        # Products of tiny or huge values leave float32; a power of two scales them exactly.
        spread = float(np.max(np.abs(rows - center), initial=0.0))
        self._scale = 2.0 ** round(np.log2(spread)) if spread > 0 else 1.0
        self._block = _block_rows(len(rows))
        spare = -len(rows) % self._block
        self._arrays = jax.device_put((
            np.pad(self._scaled(rows), ((0, spare), (0, 0))),
            np.pad(self._radii, (0, spare), constant_values=1.0),
            self._scaled(rows).mean(axis=0),
            np.int32(len(rows)),
        ))  # fmt: skip

    def search(
        self,
        queries: np.ndarray,
        k: int,
        own: np.ndarray | None = None,
        rest: np.ndarray | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """The k nearest reference rows of every query.

        Args:
            queries: float32 [N, D].
            k: how many, fewer than M where `own` is given, at most M otherwise.
            own: int [N], the reference row that a query must not find; -1 for none.
            rest: float [N], squared distance of each query from the space that the reference rows
                span; it is added to every squared distance.

        Returns:
            Distances float64 [N, k] ascending, and row numbers int32 [N, k].
        """
        own = np.full(len(queries), -1, np.int32) if own is None else own.astype(np.int32)
        rest = np.zeros(len(queries)) if rest is None else rest
        # A CPU keeps the distances of few queries in its cache.
        size = 256 if len(queries) <= 4096 or jax.default_backend() == "cpu" else 1024
        distances, indices = [], []
        for start in range(0, len(queries), size):
            part = slice(start, start + size)
            count = len(queries[part])
            padding = (0, size - count)
            found = _nearest(
                np.pad(self._scaled(queries[part]), (padding, (0, 0))),
                np.pad(own[part], padding),
                np.pad(rest[part] / self._scale**2, padding).astype(np.float32),
                *self._arrays,
                k=k,
                block=self._block,
            )
            distances.append(np.asarray(found[0], np.float64)[:count] * self._scale)
            indices.append(np.asarray(found[1])[:count])
        near, where = np.concatenate(distances), np.concatenate(indices)
        for row in np.flatnonzero(~np.isfinite(near).all(axis=1)):  # beyond float32 at this scale
            near[row], where[row] = self._far(queries[row], k, own[row], rest[row])
        return near, where

    def _scaled(self, rows: np.ndarray) -> np.ndarray:
        with np.errstate(over="ignore"):  # what overflows is found again in float64
            return rows / np.float32(self._scale)

    def _far(
        self, query: np.ndarray, k: int, own: int, rest: float
    ) -> tuple[np.ndarray, np.ndarray]:
        difference = self.rows.astype(np.float64) - query
        distances = np.sqrt(np.sum(difference**2, axis=1) + rest) / self._radii
        if own >= 0:
            distances[own] = np.inf
        order = np.argsort(distances, kind="stable")[:k]
        return distances[order], order


def _block_rows(n_rows: int) -> int:
    """Reference rows per block: all of few, in one of a few sizes; of many, parts of equal size."""
    if n_rows <= _REFERENCE_BLOCK:
        return 1 << (n_rows - 1).bit_length()
    n_blocks = -(-n_rows // _REFERENCE_BLOCK)
    return -(-n_rows // (n_blocks * _BLOCK_STEP)) * _BLOCK_STEP


@partial(jax.jit, static_argnames=("k", "block"))
def _nearest(queries, own, rest, reference, radii, center, real, *, k, block):
    """Top candidates from (|a|^2 - 2ab + |b|^2) / r^2 per reference block, then exact distances."""
    wanted = min(k + _SPARE, block)
    # Centering keeps the expanded form accurate when all rows share a large offset.
    q = queries - center[None, :]
    squares = jnp.sum(q**2, axis=1) + rest
    blocks = (reference.reshape(-1, block, reference.shape[1]), radii.reshape(-1, block))

    def merge(best, step):
        start, (rows, units) = step
        r = rows - center[None, :]
        products = jnp.matmul(q, r.T, precision=HIGHEST)
        approx = jnp.sum(r**2, axis=1)[None, :] - 2.0 * products + squares[:, None]
        ids = start + jnp.arange(block, dtype=jnp.int32)
        usable = (ids < real)[None, :] & (ids[None, :] != own[:, None])
        near = jnp.where(usable, -approx / (units**2)[None, :], -jnp.inf)
        near, columns = _candidates(near, wanted)
        values = jnp.concatenate([best[0], near], axis=1)
        known = jnp.concatenate([best[1], start + columns], axis=1)
        top, where = jax.lax.top_k(values, wanted)
        return (top, jnp.take_along_axis(known, where, axis=1)), None

    first = (
        jnp.full((len(queries), wanted), -jnp.inf, queries.dtype),
        jnp.zeros((len(queries), wanted), jnp.int32),
    )
    starts = jnp.arange(blocks[0].shape[0], dtype=jnp.int32) * block
    (top, ids), _ = jax.lax.scan(merge, first, (starts, blocks))
    squared = jnp.sum((queries[:, None, :] - reference[ids]) ** 2, axis=2) + rest[:, None]
    exact = jnp.sqrt(squared) / radii[ids]
    exact = jnp.where(jnp.isfinite(top), exact, jnp.inf)
    nearest, where = jax.lax.top_k(-exact, k)
    return -nearest, jnp.take_along_axis(ids, where, axis=1)


def _candidates(values: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
    """Some of values [Q, M], among them the `count` largest of every row, and their columns.

    Both [Q, C]. The largest are in the groups with the largest maxima; so many groups are enough.
    """
    n_queries, n_columns = values.shape
    n_groups = n_columns // _GROUP
    if n_columns % _GROUP or n_groups <= count:
        columns = jnp.arange(n_columns, dtype=jnp.int32)
        return values, jnp.broadcast_to(columns[None, :], values.shape)
    grouped = values.reshape(n_queries, _GROUP, n_groups)
    _, groups = jax.lax.top_k(grouped.max(axis=1), count)
    chosen = jnp.take_along_axis(grouped, groups[:, None, :], axis=2)
    columns = n_groups * jnp.arange(_GROUP, dtype=jnp.int32)[None, :, None] + groups[:, None, :]
    return chosen.reshape(n_queries, -1), columns.reshape(n_queries, -1)


def local_radii(near: np.ndarray, floor: float, exponent: float) -> np.ndarray:
    """How sparse the neighborhood of every reference row is, as a divisor of distances; [M].

    Args:
        near: [M, k] distances of every reference row to its nearest others.
        floor: smallest radius as a fraction of the median one: copies of a row have radius 0, at
            which everything near them would look infinitely far.
        exponent: 0 leaves plain distances, 1 gives their ratio to the local distance.

    References:
        Wilkinghoff et al., arXiv 2509.10951.
    """
    radii = near.mean(axis=1)
    return np.maximum(radii, floor * np.median(radii)) ** exponent
