"""Conformal p-values: how rare a score is among scores of rows the model never saw."""

import math

import numpy as np
from scipy import stats

from loopjax.errors import UserError


def conformal_p_values(calibration: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """(1 + #{calibration >= s}) / (n + 1) of every score; float64 [N], never below 1 / (n + 1).

    The chance that a normal row gets a p-value of at most a is at most a when calibration scores
    and new scores come from the same model. With cross-fitted calibration scores, whose models saw
    a little less than the final one, it holds up to a factor of 2 in the worst case (CV+, Barber et
    al. 2021, theorem 4) and in practice (`tests/detectors/test_crossfit.py`) as it stands.

    Args:
        calibration: [n] scores of normal rows that did not train their model.
        scores: [N] scores of new rows.
    """
    ordered = np.sort(np.asarray(calibration, np.float64))
    below = np.searchsorted(ordered, np.asarray(scores, np.float64), side="left")
    return (1 + len(ordered) - below) / (len(ordered) + 1)


def corpus_p_values(scores: np.ndarray) -> np.ndarray:
    """The fraction of a corpus, the row itself included, that scores at least as high; [N].

    For cross-fitted scores of the corpus's own rows, each of which is one of the n that the others
    are compared with; never below 1 / n.
    """
    scores = np.asarray(scores, np.float64)
    below = np.searchsorted(np.sort(scores), scores, side="left")
    return (len(scores) - below) / len(scores)


def check_target_fpr(rate: float, n_calibration: int) -> float:
    """A false-positive rate that p-values from `n_calibration` rows can keep.

    Raises:
        UserError: not in (0, 1), or below the smallest p-value; names the rows that it needs.
    """
    if not 0.0 < rate < 1.0:
        raise UserError(f"the target false-positive rate must lie in (0, 1); got {rate!r}")
    needed = math.ceil(round(1.0 / rate, 9)) - 1
    if n_calibration < needed:
        raise UserError(
            f"a false-positive rate of {rate:g} needs at least {needed} calibration rows; there "
            f"are {n_calibration}, so no p-value can be below {1 / (n_calibration + 1):.2g}: ask "
            "for a higher rate or give more loops"
        )
    return rate


def benjamini_hochberg(p_values: np.ndarray, fdr: float) -> np.ndarray:
    """Which rows to call anomalous so that about a fraction `fdr` of them is normal; bool [N].

    The step-up procedure of Benjamini and Hochberg (1995) on conformal p-values (Bates et al.
    2023). This is the rate that the reader of a list asks for: of what is flagged, how much is
    wrong.

    Raises:
        UserError: `fdr` is not in (0, 1).
    """
    if not 0.0 < fdr < 1.0:
        raise UserError(f"the false discovery rate must lie in (0, 1); got {fdr!r}")
    return np.asarray(stats.false_discovery_control(p_values) <= fdr)
