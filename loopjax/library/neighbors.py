"""The nearest rows of every row of a store of any size, in memory that does not follow its width.

Up to `EXACT_ROWS` rows each is compared with each. Beyond, rows are first sorted into buckets
around `n / BUCKET_ROWS` centers: a row lies in the buckets of its `SPREAD` nearest centers, and is
compared with all that lie in the bucket of the nearest one. Work then grows with n^1.5 instead of
n^2. What this misses is measured by `scripts/bench/library.py`.
"""

import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from sklearn.cluster import MiniBatchKMeans

from loopjax.store.read import BLOCK_ROWS
from loopjax.store.similar import QUERY_ROWS, MostSimilar, unit_rows

EXACT_ROWS = 20_000
BUCKET_ROWS = 1000
SPREAD = 4
SAMPLE_PER_CENTER = 32


@dataclass(frozen=True)
class Neighbors:
    """The nearest other rows of each row.

    Attributes:
        cosines: float32 [N, k], falling; minus infinity where fewer were compared.
        rows: int32 [N, k], -1 where fewer were compared.
    """

    cosines: np.ndarray
    rows: np.ndarray


def nearest_neighbors(
    blocks: Iterable[np.ndarray], k: int, exact_rows: int = EXACT_ROWS, seed: int = 0
) -> Neighbors:
    """Finds the k nearest other rows of every row by cosine.

    Unit vectors lie in a temporary file meanwhile, 4 bytes per number.

    Args:
        blocks: the rows, float [n, D] each, one block after the other.
        k: how many neighbors.
        exact_rows: up to so many rows are searched exactly.
        seed: of the centers.
    """
    with tempfile.TemporaryDirectory(prefix="loopjax-") as folder:
        vectors = _Vectors(Path(folder) / "unit.f32", blocks)
        n_rows = vectors.shape[0]
        if n_rows <= exact_rows:
            everything = np.arange(n_rows)
            return _search(vectors, [everything], [everything], k)
        centers = _centers(vectors, seed)
        homes = np.empty((n_rows, SPREAD), np.int32)
        for start in range(0, n_rows, BLOCK_ROWS):
            block = vectors.take(np.arange(start, min(start + BLOCK_ROWS, n_rows)))
            nearest = MostSimilar(block, SPREAD)
            nearest.add(centers)
            homes[start : start + len(block)] = nearest.found()[1]
        asking = _members(homes[:, :1], len(centers))
        return _search(vectors, asking, _members(homes, len(centers)), k)


class _Vectors:
    """Unit rows in a file, mapped anew for each use so that its pages do not stay in memory."""

    def __init__(self, path: Path, blocks: Iterable[np.ndarray]):
        n_rows = width = 0
        with path.open("wb") as file:
            for block in blocks:
                file.write(unit_rows(block).tobytes())
                n_rows, width = n_rows + len(block), block.shape[1]
        self._path, self.shape = path, (n_rows, width)

    def take(self, rows: np.ndarray) -> np.ndarray:
        return np.memmap(self._path, np.float32, "r", shape=self.shape)[rows]


def _centers(vectors: _Vectors, seed: int) -> np.ndarray:
    n_rows = vectors.shape[0]
    n_centers = max(2 * SPREAD, n_rows // BUCKET_ROWS)
    rng = np.random.default_rng(seed)
    sample = np.sort(rng.permutation(n_rows)[: n_centers * SAMPLE_PER_CENTER])
    means = MiniBatchKMeans(
        n_centers, batch_size=4096, max_iter=20, init="random", random_state=seed
    )
    means.fit(vectors.take(sample))
    return np.asarray(means.cluster_centers_, np.float32)


def _members(homes: np.ndarray, n_buckets: int) -> list[np.ndarray]:
    """The rows in each bucket, from the buckets [N, s] of each row."""
    flat = homes.ravel()
    order = np.argsort(flat, kind="stable")
    ends = np.cumsum(np.bincount(flat, minlength=n_buckets))
    return np.split(order // homes.shape[1], ends[:-1])


def _search(
    vectors: _Vectors, asking: list[np.ndarray], asked: list[np.ndarray], k: int
) -> Neighbors:
    """Compares the asking rows of each bucket with all that it holds."""
    cosines = np.full((vectors.shape[0], k), -np.inf, np.float32)
    found = np.full((vectors.shape[0], k), -1, np.int32)
    for queries, members in zip(asking, asked, strict=True):
        for start in range(0, len(queries), 8 * QUERY_ROWS):
            part = queries[start : start + 8 * QUERY_ROWS]
            own = np.searchsorted(members, part)
            best = MostSimilar(vectors.take(part), k, own)
            for first in range(0, len(members), BLOCK_ROWS):
                best.add(vectors.take(members[first : first + BLOCK_ROWS]))
            cosines[part], places = best.found()
            found[part] = np.where(places < 0, -1, members[places])
    return Neighbors(cosines, found)
