"""The score above which a loop counts as anomalous."""

from typing import Literal

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from loopjax.errors import UserError
from loopjax.evaluation.conformal import conformal_threshold
from loopjax.evaluation.vectors import finite_vector

Method = Literal["quantile", "boxcox", "sigma", "conformal"]


def score_threshold(
    train_scores: ArrayLike,
    method: Method = "quantile",
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
        quantile: fraction of training loops below the threshold.
        sigma: number of standard deviations for "sigma".
        boxcox_lambda: exponent of the Box-Cox transform.
        boxcox_sigma: number of standard deviations in the transformed domain.
        calibration_scores: [M] scores of normal loops that were not fitted on; "conformal" only.
        target_fpr: false-positive rate that "conformal" guarantees.

    Raises:
        UserError: unknown method, scores that are empty or not finite, non-positive scores with
            "boxcox", or too few calibration loops for `target_fpr`.
    """
    train = finite_vector(train_scores, "training scores")
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
        return conformal_threshold(calibration_scores, target_fpr)
    raise UserError(f"unknown threshold {method!r}: quantile, boxcox, sigma or conformal")
