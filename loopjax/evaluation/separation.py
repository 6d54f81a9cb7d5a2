"""How far the top of a score distribution stands from its bulk, without labels.

Defined as in the reproduction of the paper (checked to 15 digits on its published score files).
All of it changes under a monotone rescaling of the score, so it never ranks detectors: AUROC does.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from loopjax.evaluation.vectors import finite_vector

TOP_FRACTION = 0.05  # "the top" of a score distribution, as in the paper's 95 % quantile


@dataclass(frozen=True)
class Separation:
    """The numbers of one score distribution; None where a number does not exist.

    Attributes:
        n_train: training scores.
        threshold: decision threshold.
        median: of the training scores.
        max: of the training scores.
        gap_ratio: median of the top 5 % over the median of the rest.
        robust_z_top5: (mean of the top - median) / MAD, MAD unscaled.
        dynamic_range_log10: log10(99.5 % quantile / median).
        fraction_above_threshold_train: of training scores.
        n_held_out: held-out scores.
        fraction_above_threshold: of held-out scores; should be about 0.05.
        ks_train_held_out: Kolmogorov-Smirnov distance of training and held-out scores (0 = they
            agree).
        ks_p_value: of that distance.
        gap_ratio_held_out: as `gap_ratio`, of the held-out scores.
        robust_z_top5_held_out: as `robust_z_top5`, of the held-out scores.
        dynamic_range_log10_held_out: as `dynamic_range_log10`, of the held-out scores.
    """

    n_train: int
    threshold: float
    median: float
    max: float
    gap_ratio: float | None
    robust_z_top5: float | None
    dynamic_range_log10: float | None
    fraction_above_threshold_train: float
    n_held_out: int | None = None
    fraction_above_threshold: float | None = None
    ks_train_held_out: float | None = None
    ks_p_value: float | None = None
    gap_ratio_held_out: float | None = None
    robust_z_top5_held_out: float | None = None
    dynamic_range_log10_held_out: float | None = None


def separation(
    train_scores: ArrayLike,
    held_out_scores: ArrayLike | None = None,
    *,
    threshold: float | None = None,
) -> Separation:
    """Measures the separation of a score distribution.

    Args:
        train_scores: [N] scores of fitted loops.
        held_out_scores: [M] scores of held-out normal loops, for the fields that need them.
        threshold: decision threshold; default the 95 % quantile of the training scores.

    Raises:
        UserError: empty or non-finite scores.
    """
    train = finite_vector(train_scores, "training scores")
    cut = float(np.quantile(train, 1 - TOP_FRACTION)) if threshold is None else float(threshold)
    gap_ratio, robust_z, dynamic_range = _spread(train)
    found = Separation(
        n_train=len(train),
        threshold=cut,
        median=float(np.median(train)),
        max=float(train.max()),
        gap_ratio=gap_ratio,
        robust_z_top5=robust_z,
        dynamic_range_log10=dynamic_range,
        fraction_above_threshold_train=float(np.mean(train > cut)),
    )
    if held_out_scores is None:
        return found
    held_out = finite_vector(held_out_scores, "held-out scores")
    agreement: Any = stats.ks_2samp(train, held_out)  # its type is private to scipy
    gap_ratio, robust_z, dynamic_range = _spread(held_out)
    return replace(
        found,
        n_held_out=len(held_out),
        fraction_above_threshold=float(np.mean(held_out > cut)),
        ks_train_held_out=float(agreement.statistic),
        ks_p_value=float(agreement.pvalue),
        gap_ratio_held_out=gap_ratio,
        robust_z_top5_held_out=robust_z,
        dynamic_range_log10_held_out=dynamic_range,
    )


def _spread(scores: np.ndarray) -> tuple[float | None, float | None, float | None]:
    """Gap ratio, robust z and dynamic range of scores [N]."""
    median = np.median(scores)
    is_top = scores > np.quantile(scores, 1 - TOP_FRACTION)
    if not is_top.any():  # constant scores have no top
        return None, None, None
    mad = np.median(np.abs(scores - median))
    bulk = np.median(scores[~is_top])
    high = np.quantile(scores, 0.995)
    return (
        float(np.median(scores[is_top]) / bulk) if bulk > 0 else None,
        float((scores[is_top].mean() - median) / mad) if mad > 0 else None,
        float(np.log10(high / median)) if median > 0 else None,
    )
