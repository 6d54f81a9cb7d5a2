"""Metrics of scores against labels, overall and by group. Higher score = more anomalous."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from sklearn import metrics

from loopjax.errors import UserError
from loopjax.evaluation.tables import Estimate, Row
from loopjax.evaluation.vectors import finite_vector


@dataclass(frozen=True)
class LabeledMetrics:
    """How well scores tell anomalous loops from normal ones.

    `pauc` is the area under the ROC curve up to a false-positive rate of 0.1 in McClish's
    standardization (0.5 = chance), as DCASE task 2 reports it.
    """

    auroc: Estimate
    pauc: Estimate
    average_precision: Estimate
    n_normal: int
    n_anomaly: int

    def cells(self) -> Row:
        """The three metrics as cells of a table."""
        return {
            "auroc": self.auroc,
            "pauc_0.1": self.pauc,
            "average_precision": self.average_precision,
        }


def labeled_metrics(
    labels: ArrayLike,
    scores: ArrayLike,
    bootstrap: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> LabeledMetrics:
    """Returns AUROC, pAUC(0.1) and average precision with stratified bootstrap intervals.

    Args:
        labels: [N] 1 = anomaly, 0 = normal.
        scores: [N] higher = more anomalous.
        bootstrap: resamples (drawn within each class, so both classes are always present);
            0 leaves the intervals out.
        seed: of the resampling.
        level: coverage of the percentile intervals.

    Raises:
        UserError: only one class present, wrong lengths or non-finite scores.
    """
    scores = finite_vector(scores, "scores")
    labels = np.asarray(labels).astype(bool)
    if labels.shape != scores.shape:
        raise UserError(f"{len(labels)} labels for {len(scores)} scores")
    if labels.all() or not labels.any():
        raise UserError("labeled metrics need normal and anomalous loops; all labels are equal")
    values = {
        "auroc": float(metrics.roc_auc_score(labels, scores)),
        "pauc_0.1": float(metrics.roc_auc_score(labels, scores, max_fpr=0.1)),
        "average_precision": float(metrics.average_precision_score(labels, scores)),
    }
    estimates = {name: Estimate(value) for name, value in values.items()}
    if bootstrap:
        samples = _bootstrap(labels, scores, bootstrap, np.random.default_rng(seed))
        tail = (1 - level) / 2
        for name, value in values.items():
            low, high = np.quantile(samples[name], [tail, 1 - tail])
            estimates[name] = Estimate(value, float(low), float(high))
    return LabeledMetrics(
        auroc=estimates["auroc"],
        pauc=estimates["pauc_0.1"],
        average_precision=estimates["average_precision"],
        n_normal=int((~labels).sum()),
        n_anomaly=int(labels.sum()),
    )


def _bootstrap(
    labels: np.ndarray, scores: np.ndarray, resamples: int, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """The three metrics of `labeled_metrics` on [resamples] weighted copies of the data at once.

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


def group_rows(
    groups: Sequence[str],
    scores: ArrayLike,
    threshold: float | None = None,
    labels: ArrayLike | None = None,
) -> tuple[Row, ...]:
    """Breaks scores down by group (folder): size, quartiles, flagged fraction, AUROC.

    Args:
        groups: [N] group names.
        scores: [N] anomaly scores.
        threshold: adds `n_flagged` and `fraction_flagged`.
        labels: [N] 1 = anomaly; adds `n_anomaly` and `auroc` (null in groups of one class).

    Returns:
        One row per group, the most anomalous median first.

    Raises:
        UserError: empty or non-finite scores.
    """
    scores = finite_vector(scores, "scores")
    names = np.asarray(groups, dtype=object)
    truth = None if labels is None else np.asarray(labels).astype(bool)
    rows: list[tuple[float, Row]] = []
    for name in sorted(set(names.tolist())):
        members = names == name
        own = scores[members]
        median = float(np.median(own))
        row: Row = {
            "group": name,
            "n": int(members.sum()),
            "median": median,
            "q25": float(np.quantile(own, 0.25)),
            "q75": float(np.quantile(own, 0.75)),
        }
        if threshold is not None:
            row["n_flagged"] = int(np.sum(own > threshold))
            row["fraction_flagged"] = float(np.mean(own > threshold))
        if truth is not None:
            own_truth = truth[members]
            both = own_truth.any() and not own_truth.all()
            row["n_anomaly"] = int(own_truth.sum())
            row["auroc"] = float(metrics.roc_auc_score(own_truth, own)) if both else None
        rows.append((median, row))
    return tuple(row for _, row in sorted(rows, key=lambda pair: -pair[0]))
