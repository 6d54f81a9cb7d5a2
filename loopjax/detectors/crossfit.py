"""Cross-fitted scores: every row of a corpus scored by a model that never saw it or a copy of it.

A detector scores the rows that it was fitted on lower than new ones, so a ranking that mixes both
puts new rows on top. Here the rows are dealt into folds, copies into the same one, and every fold
is scored by a model of the others. Ranking, threshold, percentiles and p-values of a corpus all
come from these scores; a model of all rows scores what comes later.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from loopjax.detectors.base import Detector
from loopjax.detectors.rows import DataError, as_rows
from loopjax.detectors.svdd.estimator import DeepSVDD
from loopjax.detectors.svdd.together import fit_heads

N_FOLDS = 5
# Rows whose cosine, after the mean row is taken off, reaches this count as copies.
COPY_COSINE = 0.999
_BLOCK_ROWS = 2048


@dataclass(frozen=True)
class CrossFit:
    """Scores of a corpus's own rows.

    Attributes:
        scores: float64 [N], in the units of the model of all rows.
        folds: int [N]; row i was scored by a model of the rows of all other folds.
        n_moved: rows that lie in the fold of a copy of theirs instead of one of their own.
    """

    scores: np.ndarray
    folds: np.ndarray
    n_moved: int


def copy_groups(
    X: np.ndarray, hashes: Sequence[str] | None = None, cosine: float = COPY_COSINE
) -> np.ndarray:
    """Groups of rows that are copies of one another, directly or through others; int [N].

    Exact, without an N x N matrix: unit rows whose cosine reaches c differ by at most sqrt(2 - 2c)
    along any direction, so sorted along the first principal axis each block of rows meets only the
    blocks within that distance.

    Args:
        X: [N, D] embeddings.
        hashes: [N] content hashes; equal ones are copies whatever the embeddings say.
        cosine: of rows minus the mean row, from which on two rows are copies.
    """
    rows = as_rows(X).astype(np.float64)
    rows -= rows.mean(axis=0)
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    units = rows / np.maximum(lengths, np.finfo(np.float64).tiny)
    axis = np.linalg.eigh(units.T @ units)[1][:, -1] if units.shape[1] <= 4096 else units[0]
    order = np.argsort(units @ axis, kind="stable")
    units, place = units[order], (units @ axis)[order]
    reach = np.sqrt(max(2.0 - 2.0 * cosine, 0.0)) + 1e-9
    links = [(np.arange(len(rows)), np.arange(len(rows)))]
    for start in range(0, len(units), _BLOCK_ROWS):
        stop = min(start + _BLOCK_ROWS, len(units))
        end = int(np.searchsorted(place, place[stop - 1] + reach, side="right"))
        for other in range(start, end, _BLOCK_ROWS):
            near = units[start:stop] @ units[other : min(other + _BLOCK_ROWS, end)].T >= cosine
            first, second = np.nonzero(near)
            links.append((order[start + first], order[other + second]))
    if hashes is not None:
        _, first, which = np.unique(np.asarray(hashes), return_index=True, return_inverse=True)
        links.append((np.arange(len(rows)), first[which]))
    a, b = (np.concatenate(side) for side in zip(*links, strict=True))
    graph = coo_matrix((np.ones(len(a), bool), (a, b)), shape=(len(rows), len(rows)))
    return connected_components(graph, directed=False)[1]


def deal_folds(groups: np.ndarray, n_folds: int = N_FOLDS, seed: int = 0) -> np.ndarray:
    """A fold for every row, int [N]: groups stay whole, folds are as equal as that allows.

    Raises:
        DataError: fewer groups than folds.
    """
    _, members, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    if len(sizes) < n_folds:
        raise DataError(
            f"{len(groups)} rows are copies of {len(sizes)} different ones; {n_folds} folds need "
            f"at least {n_folds} different rows"
        )
    shuffled = np.random.default_rng([seed, 4]).permutation(len(sizes))
    filled = np.zeros(n_folds, np.int64)
    fold_of = np.zeros(len(sizes), np.int64)
    for group in shuffled[np.argsort(-sizes[shuffled], kind="stable")]:
        fold_of[group] = np.argmin(filled)
        filled[fold_of[group]] += sizes[group]
    return fold_of[members]


def fit_and_cross_fit(
    detectors: Sequence[Detector],
    X: np.ndarray,
    groups: np.ndarray | None = None,
    n_folds: int = N_FOLDS,
    seed: int = 0,
) -> list[CrossFit]:
    """Fit detectors on all rows [N, D] and score those rows by models that never saw them.

    Afterwards `decision_scores_`, `threshold_`, percentiles and p-values of every detector come
    from its cross-fitted scores. Deep SVDD heads of all folds and seeds train together.

    The scale of a score depends on the fit. Models of the same recipe on the same kind of rows
    share the ratio of unseen to seen scores, so each fold's scores are divided by the median
    training score of its model and multiplied by that of the model of all rows. On the paper's 392
    bass loops with eight anomalies among them this takes Deep SVDD's AUROC from .357 to .383 (ff)
    and from .686 to .692 (nff), and leaves the others where they were (within .009); of new loops,
    1 to 9 % lie above the threshold that was to leave 5 %, where in-sample thresholds flagged up to
    94 % (PCA, nff).

    Args:
        detectors: unfitted; they become the models of all rows.
        X: [N, D].
        groups: [N], rows with equal numbers share a fold; default `copy_groups(X)`.
        n_folds: how many models per detector.
        seed: of the folds.

    Raises:
        DataError: too few rows, or too many copies.
        ParameterError: a hyper-parameter is out of range.
        ModelCheckError: a model collapsed.
    """
    rows = np.asarray(X)
    groups = copy_groups(rows) if groups is None else np.asarray(groups)
    folds = deal_folds(groups, n_folds, seed)
    n_moved = len(groups) - len(np.unique(groups))
    everything = np.arange(len(rows))
    subsets = [np.flatnonzero(folds != fold) for fold in range(n_folds)]
    models = [[unfitted(detector) for _ in subsets] for detector in detectors]
    heads = [
        head
        for detector, folded in zip(detectors, models, strict=True)
        for head in (detector, *folded)
        if isinstance(head, DeepSVDD)
    ]
    if heads:
        fit_heads(heads, rows, [everything, *subsets] * (len(heads) // (n_folds + 1)))
    found = []
    for detector, folded in zip(detectors, models, strict=True):
        if not isinstance(detector, DeepSVDD):
            detector.fit(rows)
        unit = np.median(detector.decision_scores_)
        scores = np.zeros(len(rows))
        for fold, (model, subset) in enumerate(zip(folded, subsets, strict=True)):
            if not isinstance(detector, DeepSVDD):
                model.fit(rows[subset])
            own = np.median(model.decision_scores_)
            held_out = folds == fold
            factor = unit / own if own and detector.rescale_across_fits else 1.0
            scores[held_out] = model.decision_function(rows[held_out]) * factor
        detector.calibrate_by(scores)
        found.append(CrossFit(scores, folds, n_moved))
    return found


def unfitted(detector: Detector) -> Detector:
    """Another detector of the same parameters, without progress and checkpoints of its own."""
    params = detector.get_params(deep=False)
    own = {name: params[name] for name in params if name not in detector.run_time_params}
    return type(detector)(**own)
