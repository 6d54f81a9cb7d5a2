"""Conformal p-values: how unusual a score is among normal loops that no detector has seen.

p = (1 + #{calibration >= score}) / (n + 1). Among loops exchangeable with the n calibration loops
P(p <= a) <= a for every a, whatever the distribution of the scores; no p-value lies below
1 / (n + 1) (Vovk, Gammerman and Shafer, Algorithmic Learning in a Random World, 2005).
"""

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from loopjax.errors import UserError
from loopjax.evaluation.vectors import finite_vector


def conformal_p_values(calibration: ArrayLike, scores: ArrayLike) -> np.ndarray:
    """Returns [N] p-values: the fraction of normal loops that score at least as high.

    Args:
        calibration: [M] scores of normal loops that were not fitted on.
        scores: [N] scores to judge.

    Raises:
        UserError: empty or non-finite scores.
    """
    ordered = np.sort(finite_vector(calibration, "held-out scores"))
    scores = finite_vector(scores, "scores")
    at_least = len(ordered) - np.searchsorted(ordered, scores, side="left")
    return (1.0 + at_least) / (len(ordered) + 1.0)


def conformal_threshold(calibration: ArrayLike, target_fpr: float) -> float:
    """Smallest threshold t with: score > t exactly where the p-value is <= target_fpr.

    Args:
        calibration: [M] scores of normal loops that were not fitted on.
        target_fpr: the false-positive rate to keep, in (0, 1).

    Raises:
        UserError: a rate outside (0, 1), or one that needs more calibration loops than there are.
    """
    ordered = np.sort(finite_vector(calibration, "held-out scores"))
    n = len(ordered)
    require_attainable(target_fpr, n)
    tolerated = int(np.floor(target_fpr * (n + 1) + 1e-9)) - 1
    return float(ordered[n - 1 - tolerated])


def require_attainable(target_fpr: float, n_calibration: int) -> None:
    """Refuses a false-positive rate that no p-value of so many calibration loops can reach.

    Raises:
        UserError: a rate outside (0, 1), or below 1 / (n_calibration + 1); names the number of
            loops that the rate needs.
    """
    if not 0 < target_fpr < 1:
        raise UserError(f"target false-positive rate {target_fpr}: expected between 0 and 1")
    if np.floor(target_fpr * (n_calibration + 1) + 1e-9) < 1:
        needed = int(np.ceil(1 / target_fpr - 1e-9)) - 1
        raise UserError(
            f"a false-positive rate of {target_fpr} needs {needed} held-out normal loops; "
            f"there are {n_calibration}: hold out more or allow a rate of "
            f"{1 / (n_calibration + 1):.3g}"
        )


def cross_conformal_p_values(scores: ArrayLike) -> np.ndarray:
    """Returns [N] p-values of rows among one another, each scored by models that never saw it.

    p = #{j: score_j >= score_i} / N: the formula above with every other row as calibration (Vovk,
    Cross-conformal predictors, 2015). If all rows are normal, P(p <= a) <= a for every a.

    Args:
        scores: [N] cross-fitted scores.

    Raises:
        UserError: empty or non-finite scores.
    """
    scores = finite_vector(scores, "cross-fitted scores")
    below = np.searchsorted(np.sort(scores), scores, side="left")
    return (len(scores) - below) / len(scores)


def adjusted_p_values(p_values: ArrayLike) -> np.ndarray:
    """Returns [N] the smallest false-discovery rate at which each row is a discovery; NaN stays."""
    adjusted = np.array(p_values, np.float64)
    known = np.isfinite(adjusted)
    if known.any():
        adjusted[known] = stats.false_discovery_control(adjusted[known])
    return adjusted


def discoveries(p_values: ArrayLike, fdr: float) -> np.ndarray:
    """Rows that can be called anomalous together, bool [N] (Benjamini and Hochberg, 1995).

    Among the rows called so, at most a fraction `fdr` is normal, in expectation. That is what one
    reads in a list; a false-positive rate speaks of the normal rows instead.

    Args:
        p_values: [N]; rows with NaN are never called anomalous and count in nothing.
        fdr: false-discovery rate to keep, in (0, 1).

    Raises:
        UserError: a rate outside (0, 1).
    """
    if not 0 < fdr < 1:
        raise UserError(f"false-discovery rate {fdr}: expected between 0 and 1")
    return adjusted_p_values(p_values) <= fdr
