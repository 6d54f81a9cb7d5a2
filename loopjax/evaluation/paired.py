"""Is one method better than another? Differences on the same groups and seeds, with intervals."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from loopjax.evaluation.tables import Estimate

Values = Mapping[tuple[str, int], float]  # (group, seed) -> a measure, higher = better
RESAMPLES = 10_000


@dataclass(frozen=True)
class PairedComparison:
    """One method against another.

    Attributes:
        difference: mean over groups of the difference, with its 95 % bootstrap interval when whole
            groups are resampled.
        groups_won: groups in which the first is better on average over seeds; of `n_groups`.
        p_groups: two-sided Wilcoxon signed-rank test over groups (their mean over seeds). Groups
            are independent, but few.
        p_groups_seeds: the same over every group and seed. Seeds of one group are no independent
            samples, so this one promises more than it can hold; read both.
    """

    difference: Estimate
    groups_won: int
    n_groups: int
    p_groups: float | None
    p_groups_seeds: float | None


def compare_paired(first: Values, second: Values, seed: int = 0) -> PairedComparison | None:
    """Compares two methods where both have values; None where they share none."""
    shared = sorted(first.keys() & second.keys())
    if not shared:
        return None
    differences = np.array([first[key] - second[key] for key in shared])
    names = np.array([group for group, _ in shared])
    groups = sorted(set(names.tolist()))
    means = np.array([differences[names == group].mean() for group in groups])
    drawn = np.random.default_rng(seed).integers(len(means), size=(RESAMPLES, len(means)))
    low, high = np.quantile(means[drawn].mean(axis=1), [0.025, 0.975])
    return PairedComparison(
        difference=Estimate(float(means.mean()), float(low), float(high)),
        groups_won=int((means > 0).sum()),
        n_groups=len(groups),
        p_groups=_wilcoxon(means),
        p_groups_seeds=_wilcoxon(differences),
    )


def _wilcoxon(differences: np.ndarray) -> float | None:
    """P-value of the signed-rank test; None where there is nothing to test."""
    if len(differences) < 2 or not np.any(differences):
        return None
    found: Any = stats.wilcoxon(differences)  # SciPy's stubs miss its fields
    return float(found.pvalue)
