"""The most similar rows by cosine, exact, by blocked matrix products on the device."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa

QUERY_ROWS = 1024  # at once; with blocks of 8192 rows, 32 MiB of cosines
_SMALLEST = 64  # rows are padded to powers of two from here on: few compiled programs


class MostSimilar:
    """The rows that are most similar to each of some queries, while rows arrive in blocks.

    Memory holds the queries, one block and k results per query, however many rows there are.
    """

    def __init__(self, queries: np.ndarray, k: int, own: np.ndarray | None = None):
        """Begins with no rows.

        Args:
            queries: float32 [Q, D].
            k: how many rows to find for each query.
            own: int [Q], the row that a query must not find, which is itself; -1 for none.
        """
        self._n_queries, self._k, self._n_rows = len(queries), k, 0
        size = min(QUERY_ROWS, _padded(len(queries)))
        own = np.full(len(queries), -1) if own is None else own
        self._parts = []
        for start in range(0, len(queries), size):
            unit = unit_rows(queries[start : start + size])
            padding = size - len(unit)
            part = (
                np.pad(unit, ((0, padding), (0, 0))),
                np.pad(own[start : start + size].astype(np.int32), (0, padding)),
            )
            self._parts.append(jax.device_put(part))
        best = (np.full((size, k), -np.inf, np.float32), np.full((size, k), -1, np.int32))
        self._best = [jax.device_put(best) for _ in self._parts]

    def add(self, rows: np.ndarray) -> None:
        """Compares the queries with the next rows, float32 [n, D]."""
        n = len(rows)
        block = np.pad(unit_rows(rows), ((0, _padded(n) - n), (0, 0)))
        block, start, count = jax.device_put((block, np.int32(self._n_rows), np.int32(n)))
        self._best = [
            _merge(best, queries, own, block, start, count)
            for best, (queries, own) in zip(self._best, self._parts, strict=True)
        ]
        self._n_rows += n

    def found(self) -> tuple[np.ndarray, np.ndarray]:
        """Cosines float32 [Q, k], falling, and row numbers int32 [Q, k], counted as they came.

        Of equal cosines the earlier row comes first. Where there are fewer than k rows, the last
        places hold minus infinity and -1.
        """
        if not self._best:
            return np.zeros((0, self._k), np.float32), np.zeros((0, self._k), np.int32)
        cosines, rows = (np.concatenate(arrays) for arrays in zip(*self._best, strict=True))
        return cosines[: self._n_queries], rows[: self._n_queries]


def unit_rows(rows: np.ndarray) -> np.ndarray:
    """Rows [n, D] of length 1 as float32, whatever their scale; rows of zeros stay."""
    rows = np.asarray(rows, np.float32)
    largest = np.abs(rows).max(axis=1, keepdims=True, initial=0)
    scaled = rows / np.where(largest > 0, largest, 1)
    lengths = np.linalg.norm(scaled, axis=1, keepdims=True)
    return scaled / np.where(lengths > 0, lengths, 1)


def _padded(n: int) -> int:
    return max(_SMALLEST, 1 << (n - 1).bit_length())


@jax.jit
def _merge(best, queries, own, block, start, count):
    cosines = jnp.matmul(queries, block.T, precision=jax.lax.Precision.HIGHEST)
    places = jnp.arange(block.shape[0], dtype=jnp.int32)
    rows = start + places
    usable = (places < count)[None, :] & (rows[None, :] != own[:, None])
    values, at = jax.lax.top_k(
        jnp.where(usable, cosines, -jnp.inf), min(best[0].shape[1], block.shape[0])
    )
    # A place that only padding could fill stays -1.
    found = jnp.where(jnp.isfinite(values), rows[at], -1)
    values = jnp.concatenate([best[0], values], axis=1)
    found = jnp.concatenate([best[1], found], axis=1)
    top, at = jax.lax.top_k(values, best[0].shape[1])
    return top, jnp.take_along_axis(found, at, axis=1)


def similar_table(
    names: Sequence[str], cosines: np.ndarray, places: np.ndarray, rows: pa.Table
) -> pa.Table:
    """What was found as a table: query, rank from 1, cosine, and the columns of the row found.

    Args:
        names: [Q] of the queries.
        cosines: [Q, k] as found; places that nothing fills are left out.
        places: int [Q, k] rows of `rows`.
        rows: their table.
    """
    query, rank = np.nonzero(np.isfinite(cosines))
    found = {
        "query": pa.array(np.asarray(names, object)[query], pa.string()),
        "rank": pa.array(rank + 1),
        "cosine": pa.array(cosines[query, rank]),
    }
    columns = rows.take(pa.array(places[query, rank]))
    return pa.table(found | {name: columns[name] for name in columns.column_names})
