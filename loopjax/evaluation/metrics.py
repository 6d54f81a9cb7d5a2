"""Scores in, judgments out: thresholds, separation, labeled metrics, tests and intervals.

Arrays only: nothing here knows of audio, encoders or detectors. Higher score = more anomalous.
Separation is defined as in the reproduction of the paper (checked to 15 digits on its published
score files); it depends on the scale of a score, so it never ranks detectors here: AUROC does.
"""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike
from scipy import special, stats
from sklearn import metrics

from loopjax.errors import UserError
from loopjax.evaluation.statistics import (
    Table,
    compare_with_published,
    finite,
    holm,
    protocol_splits,
    seed_interval,
    welch_tests,
)

__all__ = [
    "compare_with_published",
    "conformal_p_values",
    "holm",
    "labeled",
    "per_group",
    "principal_plane",
    "protocol_splits",
    "seed_interval",
    "separation",
    "thresholds",
    "welch_tests",
]

TOP_SHARE = 0.05  # "the top" of a score distribution, as in the paper's 95 % quantile


def thresholds(
    train_scores: ArrayLike,
    method: Literal["quantile", "boxcox", "sigma", "conformal"] = "quantile",
    *,
    quantile: float = 0.95,
    sigma: float = 3.0,
    boxcox_lambda: float = 0.0,
    boxcox_sigma: float = 1.0,
    calibration_scores: ArrayLike | None = None,
    target_fpr: float = 0.05,
) -> float:
    """Returns the score above which a loop counts as anomalous (`score > threshold`).

    Args:
        train_scores: [N] scores of the loops the detector was fitted on.
        method: "quantile" (the paper's choice), "boxcox" (mean + `boxcox_sigma` standard
            deviations after a Box-Cox transform; lambda 0 = logarithm, as in the reference),
            "sigma" (mean + `sigma` standard deviations) or "conformal" (from held-out normals:
            at most `target_fpr` of new normal loops are flagged, whatever the distribution).
        quantile: share of training loops below the threshold.
        sigma: number of standard deviations for "sigma".
        boxcox_lambda: exponent of the Box-Cox transform.
        boxcox_sigma: number of standard deviations in the transformed domain.
        calibration_scores: [M] scores of normal loops that were not fitted on; "conformal" only.
        target_fpr: false-positive rate that "conformal" guarantees.

    Raises:
        UserError: unknown method, scores that are empty or not finite, non-positive scores with
            "boxcox", or too few calibration loops for `target_fpr`.
    """
    train = finite(train_scores, "training scores")
    if method == "quantile":
        return float(np.quantile(train, quantile))
    if method == "sigma":
        return float(train.mean() + sigma * train.std())
    if method == "boxcox":
        if train.min() <= 0:
            raise UserError("threshold 'boxcox' needs scores above 0; use 'quantile' instead")
        transformed = special.boxcox(train, boxcox_lambda)
        cut = transformed.mean() + boxcox_sigma * transformed.std()
        return float(special.inv_boxcox(cut, boxcox_lambda))
    if method == "conformal":
        if calibration_scores is None:
            raise UserError("threshold 'conformal' needs held-out normal loops; hold some out")
        return _conformal_threshold(finite(calibration_scores, "held-out scores"), target_fpr)
    raise UserError(f"unknown threshold {method!r}: quantile, boxcox, sigma or conformal")


def _conformal_threshold(calibration: np.ndarray, target_fpr: float) -> float:
    """Smallest threshold t with: score > t  <=>  p-value <= target_fpr."""
    if not 0 < target_fpr < 1:
        raise UserError(f"target false-positive rate {target_fpr}: expected between 0 and 1")
    n = len(calibration)
    tolerated = int(np.floor(target_fpr * (n + 1) + 1e-9)) - 1
    if tolerated < 0:
        needed = int(np.ceil(1 / target_fpr - 1e-9)) - 1
        raise UserError(
            f"a false-positive rate of {target_fpr} needs {needed} held-out normal loops; "
            f"there are {n}: hold out more or allow a rate of {1 / (n + 1):.3g}"
        )
    return float(np.sort(calibration)[n - 1 - tolerated])


def conformal_p_values(calibration: ArrayLike, scores: ArrayLike) -> np.ndarray:
    """Returns [N] p-values: the share of normal loops at least as odd, with the +1 correction.

    p = (1 + #{calibration >= score}) / (M + 1): among loops exchangeable with the calibration
    set P(p <= a) <= a for every a. The smallest possible value is 1 / (M + 1).
    """
    ordered = np.sort(finite(calibration, "held-out scores"))
    scores = finite(scores, "scores")
    at_least = len(ordered) - np.searchsorted(ordered, scores, side="left")
    return (1.0 + at_least) / (len(ordered) + 1.0)


def separation(
    train_scores: ArrayLike,
    held_out_scores: ArrayLike | None = None,
    *,
    threshold: float | None = None,
) -> dict[str, Any]:
    """Measures how far the top of a score distribution stands from its bulk, without labels.

    With T the scores above the 95 % quantile and R the rest: gap_ratio = median(T) / median(R);
    robust_z_top5 = (mean(T) - median) / MAD, MAD unscaled; dynamic_range_log10 =
    log10(q99.5 / median). All three change under a monotone rescaling of the score (paper.md
    section 4 a-c), so compare them only within one detector.

    Args:
        train_scores: [N] scores of fitted loops.
        held_out_scores: [M] scores of held-out normal loops; adds the same three numbers with the
            suffix `_held_out`, the share above the threshold (should be about 0.05) and the
            Kolmogorov-Smirnov distance between both score distributions (0 = they agree).
        threshold: decision threshold; default the 95 % quantile of the training scores.

    Raises:
        UserError: empty or non-finite scores.
    """
    train = finite(train_scores, "training scores")
    cut = float(np.quantile(train, 1 - TOP_SHARE)) if threshold is None else float(threshold)
    row: dict[str, Any] = {
        "n_train": len(train),
        "threshold": cut,
        "median": float(np.median(train)),
        "max": float(train.max()),
        **_spread(train),
        "share_above_threshold_train": float(np.mean(train > cut)),
    }
    if held_out_scores is not None:
        held_out = finite(held_out_scores, "held-out scores")
        agreement: Any = stats.ks_2samp(train, held_out)
        row |= {
            "n_held_out": len(held_out),
            "share_above_threshold": float(np.mean(held_out > cut)),
            "ks_train_held_out": float(agreement.statistic),
            "ks_p_value": float(agreement.pvalue),
            **{f"{name}_held_out": value for name, value in _spread(held_out).items()},
        }
    return row


def _spread(scores: np.ndarray) -> dict[str, float | None]:
    median = np.median(scores)
    is_top = scores > np.quantile(scores, 1 - TOP_SHARE)
    if not is_top.any():  # constant scores have no top
        return {"gap_ratio": None, "robust_z_top5": None, "dynamic_range_log10": None}
    mad = np.median(np.abs(scores - median))
    bulk = np.median(scores[~is_top])
    high = np.quantile(scores, 0.995)
    return {
        "gap_ratio": float(np.median(scores[is_top]) / bulk) if bulk > 0 else None,
        "robust_z_top5": float((scores[is_top].mean() - median) / mad) if mad > 0 else None,
        "dynamic_range_log10": float(np.log10(high / median)) if median > 0 else None,
    }


def labeled(
    labels: ArrayLike,
    scores: ArrayLike,
    bootstrap: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> dict[str, Any]:
    """Returns AUROC, pAUC(0.1) and average precision with stratified bootstrap intervals.

    pAUC(0.1) is the area up to a false-positive rate of 0.1 in McClish's standardization (0.5 =
    chance), as DCASE task 2 reports it.

    Args:
        labels: [N] 1 = anomaly, 0 = normal.
        scores: [N] higher = more anomalous.
        bootstrap: resamples (drawn within each class, so both classes are always present);
            0 leaves the intervals out.
        seed: of the resampling.
        level: coverage of the percentile intervals.

    Returns:
        dict with `auroc`, `pauc_0.1`, `average_precision`, each also with `_low` and `_high`,
        and `n_normal`, `n_anomaly`.

    Raises:
        UserError: only one class present, wrong lengths or non-finite scores.
    """
    scores = finite(scores, "scores")
    labels = np.asarray(labels).astype(bool)
    if labels.shape != scores.shape:
        raise UserError(f"{len(labels)} labels for {len(scores)} scores")
    if labels.all() or not labels.any():
        raise UserError("labeled metrics need normal and anomalous loops; all labels are equal")
    row: dict[str, Any] = {
        "n_normal": int((~labels).sum()),
        "n_anomaly": int(labels.sum()),
        "auroc": float(metrics.roc_auc_score(labels, scores)),
        "pauc_0.1": float(metrics.roc_auc_score(labels, scores, max_fpr=0.1)),
        "average_precision": float(metrics.average_precision_score(labels, scores)),
    }
    if bootstrap:
        samples = _bootstrap(labels, scores, bootstrap, np.random.default_rng(seed))
        tail = (1 - level) / 2
        for name, values in samples.items():
            row[f"{name}_low"], row[f"{name}_high"] = map(
                float, np.quantile(values, [tail, 1 - tail])
            )
    return row


def _bootstrap(
    labels: np.ndarray, scores: np.ndarray, resamples: int, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """The three metrics of `labeled` on [resamples] weighted copies of the data at once.

    A resample is a vector of counts per loop, so one sort serves all of them: a thousand calls
    to scikit-learn take seconds per detector, this takes milliseconds.
    """
    n_pos, n_neg = int(labels.sum()), int((~labels).sum())
    counts = np.empty((resamples, len(labels)))
    counts[:, labels] = rng.multinomial(n_pos, np.full(n_pos, 1 / n_pos), size=resamples)
    counts[:, ~labels] = rng.multinomial(n_neg, np.full(n_neg, 1 / n_neg), size=resamples)
    order = np.argsort(-scores, kind="stable")
    last_of_tie = np.append(np.diff(scores[order]) != 0, True)
    positives = np.cumsum(counts[:, order] * labels[order], axis=1)[:, last_of_tie]
    negatives = np.cumsum(counts[:, order] * ~labels[order], axis=1)[:, last_of_tie]
    start = np.zeros((resamples, 1))
    tpr = np.hstack([start, positives / n_pos])
    fpr = np.hstack([start, negatives / n_neg])
    flagged = np.maximum(positives + negatives, 1)
    precision_gain = np.diff(tpr, axis=1) * (positives / flagged)
    max_fpr = 0.1
    width = np.diff(np.minimum(fpr, max_fpr), axis=1)
    rise = np.diff(tpr, axis=1) / np.maximum(np.diff(fpr, axis=1), 1e-12)
    partial = np.sum(width * (tpr[:, :-1] + 0.5 * rise * width), axis=1)
    chance = 0.5 * max_fpr**2
    return {
        "auroc": np.sum(np.diff(fpr, axis=1) * (tpr[:, 1:] + tpr[:, :-1]) / 2, axis=1),
        "pauc_0.1": 0.5 * (1 + (partial - chance) / (max_fpr - chance)),
        "average_precision": precision_gain.sum(axis=1),
    }


def per_group(
    groups: Sequence[str],
    scores: ArrayLike,
    threshold: float | None = None,
    labels: ArrayLike | None = None,
) -> Table:
    """Breaks scores down by group (folder): size, quartiles, flagged share, AUROC where labeled.

    Args:
        groups: [N] group names.
        scores: [N] anomaly scores.
        threshold: adds `n_flagged` and `share_flagged`.
        labels: [N] 1 = anomaly; adds `n_anomaly` and `auroc` (null in groups of one class).

    Returns:
        One row per group, oddest median first.
    """
    scores = finite(scores, "scores")
    names = np.asarray(groups, dtype=object)
    truth = None if labels is None else np.asarray(labels).astype(bool)
    rows: Table = []
    for name in sorted(set(names.tolist())):
        members = names == name
        own = scores[members]
        row: dict[str, Any] = {
            "group": name,
            "n": int(members.sum()),
            "median": float(np.median(own)),
            "q25": float(np.quantile(own, 0.25)),
            "q75": float(np.quantile(own, 0.75)),
        }
        if threshold is not None:
            row["n_flagged"] = int(np.sum(own > threshold))
            row["share_flagged"] = float(np.mean(own > threshold))
        if truth is not None:
            own_truth = truth[members]
            both = own_truth.any() and not own_truth.all()
            row["n_anomaly"] = int(own_truth.sum())
            row["auroc"] = float(metrics.roc_auc_score(own_truth, own)) if both else None
        rows.append(row)
    return sorted(rows, key=lambda row: -row["median"])


def principal_plane(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Projects [N, D] onto its first two principal components.

    Returns:
        ([N, 2] coordinates with the sign fixed, so equal data give equal pictures; [2] share of
        variance). Rows of one dimension or one row alone give zeros for what is missing.
    """
    centered = matrix - matrix.mean(axis=0)
    u, s, _ = np.linalg.svd(centered, full_matrices=False)
    plane = np.zeros((len(matrix), 2))
    share = np.zeros(2)
    kept = min(2, len(s))
    plane[:, :kept] = u[:, :kept] * s[:kept]
    plane *= np.where(np.take_along_axis(plane, np.abs(plane).argmax(0)[None], 0) < 0, -1, 1)
    total = float(np.sum(s**2))
    if total > 0:
        share[:kept] = s[:kept] ** 2 / total
    return plane, share
