"""Which loops of a store sound as if they belonged in another folder.

Every folder gets a head: a normal distribution of embeddings with the folder's own mean and the
spread that all folders share, fitted in folds, so that no loop is judged by a head that saw it or a
copy of it (linear discriminant analysis; Ledoit and Wolf's idea of mixing the covariance with a
multiple of the identity keeps it invertible where loops are fewer than numbers). Beside the heads,
the nearest other loops vote. The numbers below were chosen on the libraries of
`scripts/render/one_shots.py`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from scipy.sparse import csr_array
from scipy.special import log_softmax

from loopjax.errors import UserError
from loopjax.evaluation.conformal import cross_conformal_p_values
from loopjax.evaluation.folds import fold_numbers, linked_groups
from loopjax.library.labels import labels_of
from loopjax.library.neighbors import Neighbors, nearest_neighbors
from loopjax.store.blocks import StoredRows, open_rows
from loopjax.store.similar import unit_rows

N_FOLDS = 40  # nearly all of a small folder trains its heads
FEWEST_FOLDS, MAX_HEADS = 10, 50_000  # folds x labels are in memory, with the width of a row each
N_NEIGHBORS = 10
SHRINKAGE = 0.2  # fraction of the identity in the shared covariance
CERTAINTY = 0.5  # of the heads' squared distances: few loops make a head too sure of itself
OWN_ROWS = 2.0  # so many rows at the middle of all are added to a folder: few rows mean little
FALLOFF = 0.2  # of a vote, with the cosine to the neighbor
LEAST, LEAST_VOTE = -20.0, 1e-3  # nothing is quite impossible
DURATION_WEIGHT = 3.0
FEW = 3.0  # a folder's usual fit is mixed with so many rows of all
FOLDER_WEIGHT = 0.7
COPY_COSINE = 0.99  # pairs of features that never lie in two folds
NO_SPREAD = 1e-6  # of unit vectors that differ by rounding alone
LEAST_SPREAD = 1e-3  # of a number, as a fraction of what numbers usually have
MAX_FOLDERS = 5000
SHOWN = ("id", "path", "duration_s", "sha256", "path_bytes")


@dataclass(frozen=True)
class Mislabelled:
    """All labeled loops, the most suspicious first.

    Attributes:
        table: columns rank, label, sounds_like (the other label that fits best), p_value (the
            fraction of loops at least as suspicious: if no loop is mislabeled, it is at most a
            with probability a), margin (log odds of the other label against its own, less what
            loops of its label usually have), head_probability (of its own label), votes (fraction
            of its neighbors' votes for its own label), then the columns of the store.
        n_labels: different labels.
    """

    table: pa.Table
    n_labels: int


def mislabelled(
    store: str | Path, column: str = "group", depth: int = 0, seed: int = 0
) -> Mislabelled:
    """Compares every loop's label with what it sounds like.

    The store is read in blocks; memory holds labels x numbers per fold.

    Args:
        store: folder of `loopjax embed` or of a run, or a file of embeddings.
        column: of the store with the labels; loops where it is empty are left out.
        depth: take only the first so many folders of a label such as `Drums/Kicks/Soft`; 0: all.
        seed: of the folds.

    Raises:
        UserError: no such store or column, fewer than two labels with two loops each, or all loops
                are copies of one another.
    """
    rows = open_rows(store)
    labels, y = labels_of(rows, column, depth)
    labeled = y >= 0
    if (np.bincount(y[labeled], minlength=1) >= 2).sum() < 2:
        raise UserError(
            f"{store}: column {column!r} holds {len(labels)} labels; at least two with two loops "
            "each are needed to tell which are wrong"
        )
    if len(labels) > MAX_FOLDERS:
        raise UserError(
            f"{store}: column {column!r} holds {len(labels)} labels, more than {MAX_FOLDERS}: join "
            "some with --depth"
        )
    table = rows.table([name for name in SHOWN if name in rows.columns])
    table = table.filter(pa.array(labeled))
    features = _Features.of(rows, labeled, table)
    near = nearest_neighbors((x for _, x in features.blocks()), min(N_NEIGHBORS, len(table) - 1))
    folds = _folds(table, near, len(labels), seed)
    heads = _fit_heads(features, y[labeled], folds, len(labels))
    judged = _judge(features, y[labeled], folds, heads, near)
    return Mislabelled(_table(table, labels, y[labeled], judged, column), len(labels))


@dataclass(frozen=True)
class _Heads:
    """Linear scores of every fold: x @ slopes[fold] + offsets[fold]."""

    slopes: np.ndarray  # [F, D, C]
    offsets: np.ndarray  # [F, C]


@dataclass(frozen=True)
class _Judged:
    """What heads and neighbors say of each row; all [N]."""

    own: np.ndarray  # log probability of the own label, heads and votes together
    best: np.ndarray  # the same of the best other label
    other: np.ndarray  # that label
    head_probability: np.ndarray  # of the own label, heads alone
    votes: np.ndarray  # fraction for the own label, neighbors alone


def _folds(table: pa.Table, near: Neighbors, n_labels: int, seed: int) -> np.ndarray:
    """A fold for every row [N]; equal and nearly equal loops share theirs."""
    row, place = np.nonzero(near.cosines >= COPY_COSINE)
    pairs = np.stack([row, near.rows[row, place]], axis=1)
    contents = [table["sha256"].to_pylist()] if "sha256" in table.column_names else []
    groups = linked_groups(len(table), pairs, contents)
    n_folds = min(N_FOLDS, max(FEWEST_FOLDS, MAX_HEADS // n_labels), len(np.unique(groups)))
    if n_folds < 2:
        raise UserError("all loops are copies of one another: nothing to compare them with")
    eligible = np.ones(len(table), bool)
    return fold_numbers(groups, table["id"].to_pylist(), n_folds, seed, eligible)


@dataclass(frozen=True)
class _Features:
    """What heads and neighbors see of the labeled rows: the standardized embedding, and how long.

    A drum hit and a drum loop can sound alike for a moment; their durations cannot.
    """

    rows: StoredRows
    labeled: np.ndarray  # bool, the N rows among those of the store
    center: np.ndarray  # [D]
    spread: np.ndarray  # [D]
    duration: np.ndarray  # [N, 2], log duration and its square, or [N, 0]

    @classmethod
    def of(cls, rows: StoredRows, labeled: np.ndarray, table: pa.Table) -> "_Features":
        center, square = np.zeros(rows.width), np.zeros(rows.width)
        for matrix in rows.matrices(labeled):
            unit = unit_rows(matrix).astype(np.float64)
            center += unit.sum(axis=0) / len(table)
            square += (unit**2).sum(axis=0) / len(table)
        variance = np.maximum(square - center**2, 0)
        usual = float(np.sqrt(variance.mean()))
        if usual < NO_SPREAD:
            raise UserError("all loops are copies of one another: nothing to compare them with")
        spread = np.maximum(np.sqrt(variance), LEAST_SPREAD * usual)
        return cls(rows, labeled, center, spread, _durations(table, rows.width))

    def blocks(self) -> Iterator[tuple[slice, np.ndarray]]:
        """Places among the labeled rows, and their features [n, F]."""
        start = 0
        for matrix in self.rows.matrices(self.labeled):
            place = slice(start, start + len(matrix))
            standard = unit_rows((unit_rows(matrix) - self.center) / self.spread)
            yield place, np.hstack([standard, self.duration[place]])
            start += len(matrix)


def _durations(table: pa.Table, width: int) -> np.ndarray:
    """Log duration and its square, as wide as `DURATION_WEIGHT` usual numbers of an embedding."""
    if "duration_s" not in table.column_names or table["duration_s"].null_count:
        return np.zeros((len(table), 0))
    seconds = np.log(np.maximum(table["duration_s"].to_numpy(), 1e-3))
    spread = (seconds - seconds.mean()) / max(seconds.std(), 1e-6)
    return DURATION_WEIGHT / np.sqrt(width) * np.stack([spread, spread**2 - 1], axis=1)


def _fit_heads(features: _Features, y: np.ndarray, folds: np.ndarray, n_labels: int) -> _Heads:
    width = features.rows.width + features.duration.shape[1]
    n_folds = int(folds.max()) + 1
    sums = np.zeros((n_folds, n_labels, width))
    products = np.zeros((n_folds, width, width))
    for place, x in features.blocks():
        for fold in np.unique(folds[place]):
            inside = folds[place] == fold
            members = y[place][inside]
            of_label = csr_array(
                (np.ones(len(members)), (members, np.arange(len(members)))),
                (n_labels, len(members)),
            )
            sums[fold] += of_label @ x[inside]
            products[fold] += x[inside].T @ x[inside]
    counts = np.stack([np.bincount(y[folds == f], minlength=n_labels) for f in range(n_folds)])
    slopes = np.empty((n_folds, width, n_labels), np.float32)
    offsets = np.empty((n_folds, n_labels), np.float32)
    all_counts, all_sums, all_products = counts.sum(axis=0), sums.sum(axis=0), products.sum(axis=0)
    for fold in range(n_folds):
        n = (all_counts - counts[fold])[:, None]
        total = all_sums - sums[fold]
        means = (total + OWN_ROWS * total.sum(axis=0) / n.sum()) / (n + OWN_ROWS)
        crossed = total.T @ means
        spread = all_products - products[fold] - crossed - crossed.T
        spread = (spread + means.T @ (n * means)) / n.sum()
        size = max(np.trace(spread) / width, 1e-12)
        spread = (1 - SHRINKAGE) * spread + SHRINKAGE * size * np.eye(width)
        slopes[fold] = CERTAINTY * np.linalg.solve(spread, means.T)
        offsets[fold] = (np.log(n[:, 0] + 1) - (means.T * slopes[fold]).sum(axis=0)) / 2
    return _Heads(slopes, offsets)


def _judge(
    features: _Features,
    y: np.ndarray,
    folds: np.ndarray,
    heads: _Heads,
    near: Neighbors,
) -> _Judged:
    n, n_labels = len(y), heads.offsets.shape[1]
    own, best, head_own, vote_own = (np.empty(n) for _ in range(4))
    other = np.empty(n, np.int64)
    common = np.sqrt(np.bincount(y, minlength=n_labels))  # else large folders win every vote
    for place, x in features.blocks():
        scores = np.empty((len(x), n_labels))
        for fold in np.unique(folds[place]):
            inside = folds[place] == fold
            scores[inside] = x[inside] @ heads.slopes[fold] + heads.offsets[fold]
        scores = np.maximum(log_softmax(scores, axis=1), LEAST)
        votes = np.zeros_like(scores)
        found = near.rows[place]
        weights = np.exp((near.cosines[place] - 1) / FALLOFF) * (found >= 0)
        np.add.at(votes, (np.arange(len(x))[:, None], y[found]), weights)
        votes = votes / common + LEAST_VOTE
        votes /= votes.sum(axis=1, keepdims=True)
        both = log_softmax(scores + np.log(votes), axis=1)
        at = np.arange(len(x)), y[place]
        own[place], head_own[place], vote_own[place] = both[at], np.exp(scores[at]), votes[at]
        both[at] = -np.inf
        other[place], best[place] = both.argmax(axis=1), both.max(axis=1)
    return _Judged(own, best, other, head_own, vote_own)


def _table(
    table: pa.Table, labels: np.ndarray, y: np.ndarray, judged: _Judged, column: str
) -> pa.Table:
    # A folder of everything has members that fit badly; that alone makes none of them suspicious.
    counts = np.bincount(y, minlength=len(labels))
    usual = np.bincount(y, weights=judged.own, minlength=len(labels))
    usual = (usual + FEW * np.median(judged.own)) / (counts + FEW)
    margin = judged.best - judged.own + FOLDER_WEIGHT * usual[y]
    order = np.argsort(-margin, kind="stable")
    found = {
        "rank": pa.array(np.arange(1, len(y) + 1)),
        "label": pa.array(labels[y[order]].tolist(), pa.string()),
        "sounds_like": pa.array(labels[judged.other[order]].tolist(), pa.string()),
        "p_value": pa.array(cross_conformal_p_values(margin)[order]),
        "margin": pa.array(margin[order]),
        "head_probability": pa.array(judged.head_probability[order]),
        "votes": pa.array(judged.votes[order]),
    }
    rest = table.take(pa.array(order))
    return pa.table(found | {n: rest[n] for n in rest.column_names if n not in (*found, column)})
