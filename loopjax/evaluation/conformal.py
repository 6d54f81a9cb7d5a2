"""Conformal p-values: how unusual a score is among normal loops that no detector has seen.

p = (1 + #{calibration >= score}) / (n + 1). Among loops exchangeable with the n calibration loops
P(p <= a) <= a for every a, whatever the distribution of the scores; no p-value lies below
1 / (n + 1) (Vovk, Gammerman and Shafer, Algorithmic Learning in a Random World, 2005).
"""

import numpy as np
from numpy.typing import ArrayLike

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
