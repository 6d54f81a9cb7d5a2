"""Near-duplicates among rows that do not fit into memory; see `folds`."""

from collections.abc import Callable, Iterable
from itertools import chain

import numpy as np
from scipy.spatial import KDTree

from loopjax.evaluation.folds import (
    BLOCK,
    ROUNDING,
    SAMPLE,
    leading_directions,
    linked_groups,
    reach_of,
    unit_rows,
)

HELD_ROWS = 32_768  # rows in memory while candidates are checked: 100 MB of 768 numbers
MAX_PAIRS = 4_000_000  # candidates and links in memory


def near_duplicates_in_blocks(
    blocks: Callable[[], Iterable[np.ndarray]],
    take: Callable[[np.ndarray], np.ndarray],
    n_rows: int,
    cosine: float,
) -> np.ndarray:
    """Pairs that link the same rows as `near_duplicates` does, directly or through others.

    All rows are read twice, projected to a few numbers each; then only those that have a candidate.

    Args:
        blocks: opens a pass over all rows, float32 [n, D] at a time.
        take: rows by their ascending numbers.
        n_rows: N.
        cosine: in (0, 1].

    Returns:
        int [P, 2] row numbers, at most `MAX_PAIRS` and a pair per row.
    """
    step = max(1, n_rows // SAMPLE)
    directions = leading_directions(unit_rows(take(np.arange(0, n_rows, step)[:SAMPLE])))
    projected, done = np.empty((n_rows, len(directions))), 0  # as the tree takes it: no copies
    for rows in blocks():
        projected[done : done + len(rows)] = unit_rows(rows) @ directions.T
        done += len(rows)
    tree, reach = KDTree(projected), reach_of(cosine)
    links, candidates, n_waiting = np.empty((0, 2), np.int64), [], 0
    for start in range(0, n_rows, BLOCK):
        near = tree.query_ball_point(projected[start : start + BLOCK], reach)
        counts = np.fromiter(map(len, near), np.int64, len(near))
        second = np.fromiter(chain.from_iterable(near), np.int64, int(counts.sum()))
        first = np.repeat(np.arange(start, start + len(near)), counts)
        candidates.append(np.column_stack([first, second])[second > first])
        n_waiting += len(candidates[-1])
        if n_waiting > MAX_PAIRS or start + BLOCK >= n_rows:
            found = _alike(np.concatenate(candidates), take, cosine)
            links, candidates, n_waiting = np.concatenate([links, found]), [], 0
            if len(links) > MAX_PAIRS:  # one link per row keeps the same rows together
                links = np.column_stack([linked_groups(n_rows, links), np.arange(n_rows)])
    return links


def _alike(
    pairs: np.ndarray, take: Callable[[np.ndarray], np.ndarray], cosine: float
) -> np.ndarray:
    """Those of candidate pairs [P, 2], ordered by their first row, that are near-duplicates."""
    found, start = [np.empty((0, 2), np.int64)], 0
    while start < len(pairs):
        # As many pairs as touch no more rows than may be held; always at least one.
        part = pairs[start : start + HELD_ROWS // 2]
        numbers = np.unique(part)
        unit = unit_rows(take(numbers))
        a, b = (np.searchsorted(numbers, part[:, side]) for side in (0, 1))
        for begin in range(0, len(part), BLOCK):
            own = slice(begin, begin + BLOCK)
            near = np.einsum("nd,nd->n", unit[a[own]], unit[b[own]]) >= cosine - ROUNDING
            found.append(part[own][near])
        start += len(part)
    return np.concatenate(found)
