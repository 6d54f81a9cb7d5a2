"""Folds and splits that do not leak: rows that are nearly equal stay on one side.

A loop and its near-copy on two sides of a split make the copy look known: it is scored by a model
that has seen it. So rows are first grouped, by equal content and by the cosine of their embeddings,
and groups are dealt out as a whole.
"""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from functools import partial

import numpy as np
from scipy.linalg import eigh
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import KDTree

from loopjax.errors import UserError

PROJECTED = 12  # dimensions in which candidates for near-duplicates are looked up
SAMPLE = 4096  # rows that choose these dimensions
BLOCK = 4096  # rows looked up at once
COPY_COSINE = 0.999  # from which rows, relative to the mean one, count as copies
FEW_COLUMNS = 3
STRICTEST = 1e-5  # 1 - cosine; below lie rounding errors
ROUNDING = 1e-5  # of float32 cosines and distances


def near_duplicates(X: np.ndarray, cosine: float) -> np.ndarray:
    """Pairs of rows whose cosine similarity is at least `cosine`.

    Exact: unit vectors of that cosine are at most sqrt(2 - 2 cosine) apart, a projection only
    brings them closer, and every candidate found in the projection is checked in full.

    Args:
        X: [N, D].
        cosine: in (0, 1]; 1 finds rows that point the same way up to rounding.

    Returns:
        int [P, 2] row numbers, the smaller first.
    """
    if len(X) < 2:
        return np.empty((0, 2), np.int64)
    unit = unit_rows(X)
    projected = unit @ leading_directions(unit[:: max(1, len(unit) // SAMPLE)][:SAMPLE]).T
    tree = KDTree(projected)
    radius = reach_of(cosine)
    found = []
    for start in range(0, len(unit), BLOCK):
        near = tree.query_ball_point(projected[start : start + BLOCK], radius)
        for i, candidates in enumerate(near, start):
            later = np.asarray([j for j in candidates if j > i], np.int64)
            if len(later):
                alike = later[unit[later] @ unit[i] >= cosine - ROUNDING]
                found.append(np.column_stack([np.full(len(alike), i), alike]))
    return np.concatenate(found) if found else np.empty((0, 2), np.int64)


def unit_rows(rows: np.ndarray) -> np.ndarray:
    """Rows [N, D] of any scale at length 1, float32; zero rows stay."""
    largest = np.abs(rows).max(axis=1, keepdims=True)
    rows = rows / np.where(largest > 0, largest, 1)
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return (rows / np.where(lengths > 0, lengths, 1)).astype(np.float32)


def leading_directions(sample: np.ndarray) -> np.ndarray:
    """Directions along which a sample of unit rows [n, D] varies most, at most [PROJECTED, D]."""
    centered = sample - sample.mean(axis=0)
    width = centered.shape[1]
    _, axes = eigh(centered.T @ centered, subset_by_index=[max(width - PROJECTED, 0), width - 1])
    return axes.T


def reach_of(cosine: float) -> float:
    """How far unit vectors of a cosine can be from one another."""
    return np.sqrt(max(2 - 2 * cosine, 0.0)) + ROUNDING


def linked_groups(
    n_rows: int, pairs: np.ndarray, keys: Iterable[Sequence[str] | np.ndarray] = ()
) -> np.ndarray:
    """Groups of rows that belong together, directly or through others.

    Args:
        n_rows: N.
        pairs: int [P, 2] rows that belong together.
        keys: columns [N] of texts, or of numbers instead; rows with an equal text, which is not
            empty, or an equal number from 0 on belong together.

    Returns:
        int [N], the first row of each row's group.
    """
    links = [np.asarray(pairs, np.int64).reshape(-1, 2)]
    for column in keys:
        if isinstance(column, np.ndarray):
            (known,) = np.nonzero(column >= 0)
            _, at, which = np.unique(column[known], return_index=True, return_inverse=True)
            links.append(np.column_stack([known[at][which], known]))
            continue
        first: dict[str, int] = {}
        equal = [(first.setdefault(key, i), i) for i, key in enumerate(column) if key]
        links.append(np.asarray(equal, np.int64).reshape(-1, 2))
    ends = np.concatenate(links)
    graph = coo_array((np.ones(len(ends), bool), (ends[:, 0], ends[:, 1])), (n_rows, n_rows))
    _, component = connected_components(graph, directed=False)
    _, first_row = np.unique(component, return_index=True)
    return first_row[component]


def like_groups(
    pairs_at: Callable[[float], np.ndarray],
    n_rows: int,
    cosine: float,
    folds: int,
    keys: Sequence[Sequence[str] | np.ndarray] = (),
) -> tuple[np.ndarray, float]:
    """Groups of rows that are alike, small enough to be dealt out to folds.

    Args:
        pairs_at: pairs of rows of a cosine, int [P, 2].
        n_rows: N.
        cosine: from which rows are alike, unless chains of like rows then hold more than a fold;
            it becomes stricter until they do not, as far as rounding allows.
        folds: how many there will be.
        keys: see `linked_groups`.

    Returns:
        int [N] as `linked_groups`, and the cosine.
    """
    while True:
        groups = linked_groups(n_rows, pairs_at(cosine), keys)
        if fit_folds(groups, folds) or 1 - cosine < STRICTEST:
            return groups, cosine
        cosine = 1 - (1 - cosine) / 4


def fit_folds(groups: np.ndarray, folds: int) -> bool:
    """Whether no group is larger than a fold."""
    return np.unique(groups, return_counts=True)[1].max() <= max(len(groups) / folds, 2)


def copy_groups(
    X: np.ndarray,
    folds: int,
    cosine: float = COPY_COSINE,
    keys: Sequence[Sequence[str] | np.ndarray] = (),
) -> tuple[np.ndarray, float]:
    """Groups of rows [N, D] that are copies of one another, wherever zero lies.

    The cosine is that of rows seen from `center_of` all. Rows of at most `FEW_COLUMNS` are copies
    where they are equal: in a plane or in space, many point nearly the same way.

    Returns:
        int [N] and the cosine, see `like_groups`.
    """
    rows = X.astype(np.float64)
    if rows.shape[1] <= FEW_COLUMNS:
        equal = np.unique(rows, axis=0, return_inverse=True)[1].ravel()
        return linked_groups(len(rows), np.empty((0, 2)), [*keys, equal]), 1.0
    rows -= center_of(rows)
    at_center = np.where(rows.any(axis=1), -1, 0)  # these point nowhere, but are equal
    return like_groups(partial(near_duplicates, rows), len(rows), cosine, folds, [*keys, at_center])


def center_of(rows: np.ndarray) -> np.ndarray:
    """Mean row [D] of [N, D], of which a tenth on either side of every column is clipped.

    Seen from a mean that follows one row far outside, all others would point the same way.
    """
    low = np.quantile(rows, 0.1, axis=0, method="higher")
    high = np.quantile(rows, 0.9, axis=0, method="lower")
    return np.clip(rows, low, high).mean(axis=0, dtype=np.float64)


def fold_numbers(
    groups: np.ndarray, names: Sequence[str], folds: int, seed: int, eligible: np.ndarray
) -> np.ndarray:
    """Deals groups out to folds of nearly equal size.

    Args:
        groups: int [N] from `linked_groups`.
        names: [N] ids; with the seed they decide the order in which groups of a size are dealt.
        folds: number of folds, at least 2.
        seed: another seed, other folds.
        eligible: bool [N], the rows that fit; their number per fold is what is balanced.

    Returns:
        int [N], the fold of every row, eligible or not.

    Raises:
        UserError: some fold would leave nothing to fit on, because one group holds nearly all.
    """
    groups = np.asarray(groups)
    members, inverse = np.unique(groups, return_inverse=True)
    size = np.bincount(inverse, weights=eligible, minlength=len(members)).astype(int)
    digests = bytearray()
    for first in members:
        digests += hashlib.sha256(f"{seed}:{names[first]}".encode()).digest()
    words = np.frombuffer(digests, ">u8").reshape(-1, 4)
    order = np.lexsort((*words.T[::-1], -size))
    chosen = np.empty(len(members), int)
    loads = ([0] * folds, [0] * folds)  # eligible rows, then groups of the others
    for group, own in zip(order, size[order], strict=True):
        load = loads[0 if own else 1]
        chosen[group] = fold = load.index(min(load))
        load[fold] += max(own, 1)
    total, largest = int(size.sum()), int(size.max(initial=0))
    if min(loads[0]) == 0 or largest > 0.5 * total:
        raise UserError(
            f"one group of equal or nearly equal loops holds {largest} of {total} loops, "
            "which leaves nothing to compare them with: raise "
            "split.near_duplicate_cosine or remove the copies"
        )
    return chosen[inverse]
