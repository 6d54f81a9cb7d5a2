"""Isolation Forest with trees as arrays: rows that random cuts separate early are anomalous."""

import math
from functools import partial
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np

from loopjax.detectors.base import Detector
from loopjax.detectors.rows import DataError, RowBlocks, len_rows, score_in_blocks
from loopjax.errors import ParameterError

# Rows scored together; small enough for their transposed copy to stay in cache.
_TILE = 512
# Features tried per node before the exact search over all of them.
_TRIES = 4
_FIT_BYTES = 64 * 2**20


class IsolationForest(Detector):
    """Isolation Forest (Liu et al. 2008) with scikit-learn's definitions.

    Score = 2^(-E[h] / c(psi)), h the depth of the row's leaf plus c(rows in the leaf); a node is
    cut at a uniform value of one feature drawn among those that still vary inside it.

    Args:
        n_estimators: number of trees.
        max_samples: rows per tree without replacement: a count, a fraction, or "auto" (256 or all).
        max_features: features per tree without replacement: a count or a fraction.
        contamination: fraction of training rows above `threshold_`; "auto" is 0.05.
        random_state: seed of rows, features and cuts.

    Fitted: `feature_` int32 and `cut_`, `path_` float32, all [T, 2^(depth+1) - 1] in heap order
    (children of i are 2i + 1 where x <= cut, 2i + 2 else); feature -1 marks a leaf, whose `path_`
    is its path length. `max_samples_` is psi.
    """

    kind: ClassVar[str] = "isolation-forest"
    depends_on_seed: ClassVar[bool] = True

    feature_: np.ndarray
    cut_: np.ndarray
    path_: np.ndarray
    max_samples_: int

    def __init__(
        self,
        n_estimators: int = 100,
        max_samples: int | float | Literal["auto"] = "auto",
        max_features: int | float = 1.0,
        contamination: float | Literal["auto"] = 0.05,
        random_state: int | None = 0,
    ):
        self.n_estimators = n_estimators
        self.max_samples = max_samples
        self.max_features = max_features
        self.contamination = contamination
        self.random_state = random_state

    def check_params(self) -> None:
        """Check every hyper-parameter; see `Detector.check_params`."""
        super().check_params()
        if self.n_estimators < 1:
            raise ParameterError(f"n_estimators must be at least 1; got {self.n_estimators!r}")
        for name in ("max_samples", "max_features"):
            value = getattr(self, name)
            if value != "auto" and not (0.0 < value <= 1.0 or _is_count(value)):
                raise ParameterError(
                    f"{name} must be a count or a fraction in (0, 1]; got {value!r}"
                )

    def _learn(self, rows: Any) -> None:
        total, width = len_rows(rows), self.n_features_in_
        psi = min(256, total) if self.max_samples == "auto" else _count(self.max_samples, total)
        if psi < 2:
            raise DataError(f"max_samples={self.max_samples!r} leaves {psi} row per tree")
        n_columns = _count(self.max_features, width)
        rng = np.random.default_rng(self._seed())
        drawn = np.stack([rng.choice(total, psi, replace=False) for _ in range(self.n_estimators)])
        columns = np.stack(
            [np.sort(rng.choice(width, n_columns, replace=False)) for _ in range(self.n_estimators)]
        ).astype(np.int32)
        depth = math.ceil(math.log2(psi))
        heap = (self.n_estimators, 2 ** (depth + 1) - 1)
        draws = (
            rng.integers(0, n_columns, (*heap, _TRIES), dtype=np.int32),
            rng.random(heap, dtype=np.float32),
            rng.random(heap, dtype=np.float32),
        )
        self.max_samples_ = psi
        group = max(1, _FIT_BYTES // (psi * n_columns * 4))
        # Equal groups share one compiled shape.
        group = -(-self.n_estimators // -(-self.n_estimators // group))
        built = []
        for start in range(0, self.n_estimators, group):
            chosen = slice(start, start + group)
            samples = _gather(rows, drawn[chosen], columns[chosen])
            built.append(_grow_exact_if_needed([d[chosen] for d in draws], samples, psi))
        stacked = [np.concatenate(parts) for parts in zip(*built, strict=True)]
        feature, self.cut_, self.path_ = stacked
        if np.all(feature < 0):
            raise DataError("all rows are identical: no cut separates them")
        inside = np.take_along_axis(columns, np.maximum(feature, 0), axis=1)
        self.feature_ = np.where(feature < 0, -1, inside).astype(np.int32)

    def _score(self, rows: np.ndarray) -> np.ndarray:
        total = path_lengths(self.feature_, self.cut_, self.path_, rows)
        mean = total.astype(np.float64) / self.feature_.shape[0]
        return np.exp2(-mean / average_path(self.max_samples_))


def path_lengths(
    feature: np.ndarray, cut: np.ndarray, path: np.ndarray, rows: np.ndarray
) -> np.ndarray:
    """Path lengths of rows [N, D] summed over trees in heap order (see `IsolationForest`); [N]."""
    # Trees of full depth: a row at a leaf goes on to the left, down to a copy of its path.
    leaf = feature < 0
    path = path.copy()
    inner = path.shape[1] // 2
    for node in range(inner):
        path[:, 2 * node + 1] = np.where(leaf[:, node], path[:, node], path[:, 2 * node + 1])
    cut = np.where(leaf, np.float32(np.inf), cut)[:, :inner]
    trees = (
        jnp.asarray(np.maximum(feature, 0)[:, :inner]),
        jnp.asarray(cut),
        jnp.asarray(path[:, inner:]),
    )
    return score_in_blocks(lambda block: _paths_sum(block, *trees), rows, _TILE, 16 * _TILE)


def average_path(n: Any) -> Any:
    """c(n): expected path length of an unsuccessful search in a binary tree of n rows."""
    n = np.asarray(n, np.float64)
    safe = np.maximum(n, 3.0)
    long = 2.0 * (np.log(safe - 1.0) + np.euler_gamma) - 2.0 * (safe - 1.0) / safe
    return np.where(n <= 1, 0.0, np.where(n == 2, 1.0, long))


def _is_count(value: object) -> bool:
    return isinstance(value, (int, np.integer)) and bool(value >= 1)


def _count(wanted: float | str, total: int) -> int:
    if isinstance(wanted, float):
        return max(1, int(wanted * total))
    return min(int(wanted), total)


def _gather(rows: np.ndarray | RowBlocks, drawn: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Rows `drawn` [T, psi] of `columns` [T, F], zeros up to a power of two: [T, 2^k, F]."""
    n_trees, psi = drawn.shape
    samples = _aligned_zeros((n_trees, 1 << (psi - 1).bit_length(), columns.shape[1]))
    if isinstance(rows, np.ndarray):
        for tree, (own_rows, own_columns) in enumerate(zip(drawn, columns, strict=True)):
            picked = rows[own_rows]
            whole = len(own_columns) == rows.shape[1]
            samples[tree, :psi] = picked if whole else picked[:, own_columns]
        return samples
    start = 0
    for block in rows:
        tree, place = np.nonzero((drawn >= start) & (drawn < start + len(block)))
        picked = block[drawn[tree, place] - start]
        samples[tree, place] = np.take_along_axis(picked, columns[tree], axis=1)
        start += len(block)
    return samples


def _aligned_zeros(shape: tuple[int, ...]) -> np.ndarray:
    """Float32 zeros on a cache line's start, which a CPU takes over without a copy."""
    size = math.prod(shape) * 4
    raw = np.zeros(size + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + size].view(np.float32).reshape(shape)


def _grow_exact_if_needed(
    draws: list[np.ndarray], samples: np.ndarray, psi: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Grow trees by one feature per node; where it was constant, by more tries, then by them all.

    All ways share the tries, so the slower ones only fill in what the quick one could not decide.
    """
    # c(n) for every possible leaf size n.
    correction = average_path(np.arange(samples.shape[1] + 1)).astype(np.float32)
    tries, places, lots = draws
    first = _grow((tries[:, :, :1], places, lots), samples, psi, correction, exact=False)
    parts = [np.array(part) for part in first]
    for exact in (False, True):
        undecided = np.flatnonzero(parts[3])
        if not undecided.size:
            break
        # Repeated up to a power of two, so that few shapes are compiled.
        again = np.resize(undecided, min(len(samples), 1 << (undecided.size - 1).bit_length()))
        chosen = (tries[again], places[again], lots[again])
        grown = _grow(chosen, samples[again], psi, correction, exact=exact)
        for part, new in zip(parts, grown, strict=True):
            part[again] = new
    return parts[0], parts[1], parts[2]


@partial(jax.jit, static_argnames="exact")
def _grow(draws, samples, psi, correction, *, exact):
    if exact:  # node-by-feature tables: one tree at a time bounds the memory
        return jax.lax.map(
            lambda tree: _grow_one(tree[0], tree[1], psi, correction, exact), (draws, samples)
        )
    one = partial(_grow_one, psi=psi, correction=correction, exact=exact)
    return jax.vmap(one)(draws, samples)


def _grow_one(draws, rows, psi, correction, exact: bool):
    """One tree over the first psi of rows [P, F]: heap arrays and whether a node was undecided.

    `draws` per heap node: features to try [heap, 4], position of the cut [heap] and, for the exact
    search, which of the varying features [heap].
    """
    tries, places, lots = draws
    size, count = rows.shape[0], len(places)
    depth = int(math.log2(count + 1)) - 1
    lane = jnp.arange(size)

    def one_level(level, carry):
        node, settled, feature, cut, path, undecided = carry
        here = jnp.where(settled, count, node)  # segment ids out of range are dropped
        sizes = jax.ops.segment_sum(jnp.ones(size, jnp.int32), here, count)
        chosen, low, high, open_ = _choose(tries, lots, rows, here, sizes, exact)
        deep = level == depth
        chosen = jnp.where(deep, -1, chosen)
        cuts = low + places * (high - low)
        # Rounding must not put the cut on the maximum, or one side would stay empty.
        cuts = jnp.where(cuts >= high, low, cuts)
        split, leaf = chosen >= 0, (chosen < 0) & (sizes > 0)
        feature = jnp.where(split, chosen, feature)
        cut = jnp.where(split, cuts, cut)
        path = jnp.where(leaf, level + correction[sizes], path)
        own = chosen[node]
        right = rows[lane, jnp.maximum(own, 0)] > cuts[node]
        settled |= own < 0
        node = jnp.where(settled, node, 2 * node + 1 + right)
        return node, settled, feature, cut, path, undecided | (~deep & jnp.any(open_))

    start = (
        jnp.zeros(size, jnp.int32),
        lane >= psi,
        jnp.full(count, -1, jnp.int32),
        jnp.zeros(count, rows.dtype),
        jnp.zeros(count, rows.dtype),
        jnp.zeros((), bool),
    )
    return jax.lax.fori_loop(0, depth + 1, one_level, start)[2:]


def _choose(tries, lots, rows, here, sizes, exact: bool):
    """Per heap node: a feature that varies among its rows (-1 if none), its minimum and maximum."""
    count = len(sizes)
    values = jnp.take_along_axis(rows, tries[jnp.minimum(here, count - 1)], axis=1)
    low = jax.ops.segment_min(values, here, count)
    high = jax.ops.segment_max(values, here, count)
    varies = (high > low) & (sizes > 1)[:, None]
    found = jnp.any(varies, axis=1)
    open_ = ~found & (sizes > 1)
    first = jnp.argmax(varies, axis=1)[:, None]
    chosen, low, high = (jnp.take_along_axis(a, first, axis=1)[:, 0] for a in (tries, low, high))
    if exact:
        all_low = jax.ops.segment_min(rows, here, count)
        all_high = jax.ops.segment_max(rows, here, count)
        usable = (all_high > all_low) & open_[:, None]
        rank = jnp.cumsum(usable, axis=1, dtype=jnp.int32)
        wanted = 1 + (lots * rank[:, -1]).astype(jnp.int32)
        pick = jnp.argmax(rank == wanted[:, None], axis=1)[:, None]
        rescued = jnp.any(usable, axis=1)
        chosen = jnp.where(rescued, pick[:, 0], chosen)
        low = jnp.where(rescued, jnp.take_along_axis(all_low, pick, axis=1)[:, 0], low)
        high = jnp.where(rescued, jnp.take_along_axis(all_high, pick, axis=1)[:, 0], high)
        found |= rescued
    return jnp.where(found, chosen, -1).astype(jnp.int32), low, high, open_


@jax.jit
def _paths_sum(rows, feature, cut, path):
    """Sum of path lengths over trees, [B]; rows go tile by tile through all trees."""

    def one_tile(tile):
        def add_tree(total, tree):
            return total + _descend(tile, *tree), None

        zero = jnp.zeros(_TILE, rows.dtype)
        return jax.lax.scan(add_tree, zero, (feature, cut, path))[0]

    tiles = rows.reshape(-1, _TILE, rows.shape[1])
    return jax.lax.map(lambda tile: one_tile(tile.T), tiles).reshape(-1)


def _descend(columns, feature, cut, path):
    """Path length of every row of a transposed tile [D, B] in one tree.

    Unsigned indices that are promised to lie inside spare the checks, half of a CPU's time.
    """

    def look_up(table, index):
        return table.at[index].get(mode="promise_in_bounds")

    width = columns.shape[1]
    flat, lane = columns.reshape(-1), jnp.arange(width, dtype=jnp.uint32)
    start = feature.astype(jnp.uint32) * width
    node = jnp.zeros(width, jnp.uint32)
    for _ in range(int(math.log2(len(path)))):
        value = look_up(flat, look_up(start, node) + lane)
        node = 2 * node + 1 + (value > look_up(cut, node)).astype(jnp.uint32)
    return look_up(path, node - len(feature))
