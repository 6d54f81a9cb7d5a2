"""Detector against detector and seed against seed: tests, corrections, intervals.

Scores of different detectors have different units, so the tests here come on scales without units
beside the raw one that the reference used.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from loopjax.evaluation.vectors import finite_vector


@dataclass(frozen=True)
class WelchTest:
    """One pair of detectors on one scale; numbers are None where the `note` says why.

    Attributes:
        a: a detector.
        b: another.
        scale: "raw", "log" or "percentile".
        t: Welch's statistic.
        dof: its degrees of freedom.
        p_value: two-sided.
        p_holm: adjusted for all pairs of the scale.
        cohens_d: difference of means over the pooled standard deviation.
        cliffs_delta: P(a > b) - P(a < b).
        note: why the scale does not apply.
    """

    a: str
    b: str
    scale: str
    t: float | None = None
    dof: float | None = None
    p_value: float | None = None
    cohens_d: float | None = None
    cliffs_delta: float | None = None
    p_holm: float | None = None
    note: str | None = None


@dataclass(frozen=True)
class SeedInterval:
    """One number over several seeds; with one seed `sd`, `low` and `high` are None."""

    n_seeds: int
    mean: float
    min: float
    max: float
    sd: float | None = None
    low: float | None = None
    high: float | None = None


def welch_tests(
    scores_by_detector: Mapping[str, ArrayLike],
    reference_scores: Mapping[str, ArrayLike] | None = None,
) -> tuple[WelchTest, ...]:
    """Compares every pair of detectors by Welch's t-test, Holm-corrected, with effect sizes.

    The reference tests raw scores of different detectors against each other; those have different
    units, so a tiny p-value there only says that the units differ. Beside "raw" stand two scales
    without units: "log" (log10 of score / own median) and "percentile" (of each score among the
    detector's own `reference_scores`), on which detectors may be compared.

    Args:
        scores_by_detector: name -> [N_d] scores, for example of the held-out loops.
        reference_scores: name -> [M_d] scores that give each detector its scale (training
            scores); default: the tested scores, and then the "percentile" scale is left out.

    Returns:
        One test per pair and scale; scores at or below 0 have no logarithm.
    """
    scores = {n: finite_vector(s, f"scores of {n}") for n, s in scores_by_detector.items()}
    reference = {
        n: finite_vector(s, f"scores of {n}") for n, s in (reference_scores or scores).items()
    }
    scales: dict[str, dict[str, np.ndarray | None]] = {"raw": dict(scores), "log": {}}
    for name, values in scores.items():
        median = np.median(reference[name])
        positive = median > 0 and values.min() > 0
        scales["log"][name] = np.log10(values / median) if positive else None
    if reference_scores is not None:
        scales["percentile"] = {
            name: 100
            * np.searchsorted(np.sort(reference[name]), values, side="right")
            / len(reference[name])
            for name, values in scores.items()
        }
    names = list(scores)
    rows: list[WelchTest] = []
    for scale, samples in scales.items():
        tested: list[WelchTest] = []
        for i, a in enumerate(names):
            for b in names[i + 1 :]:
                x, y = samples[a], samples[b]
                if x is None or y is None:
                    which = a if x is None else b
                    rows.append(WelchTest(a, b, scale, note=f"{which} has scores at or below 0"))
                else:
                    tested.append(_welch(a, b, scale, x, y))
        adjusted = holm([test.p_value for test in tested if test.p_value is not None])
        rows += [replace(t, p_holm=float(p)) for t, p in zip(tested, adjusted, strict=True)]
    return tuple(rows)


def _welch(a: str, b: str, scale: str, x: np.ndarray, y: np.ndarray) -> WelchTest:
    test: Any = stats.ttest_ind(x, y, equal_var=False)  # its type is private to scipy
    pooled = np.sqrt(
        ((len(x) - 1) * x.var(ddof=1) + (len(y) - 1) * y.var(ddof=1)) / (len(x) + len(y) - 2)
    )
    u = stats.mannwhitneyu(x, y).statistic
    return WelchTest(
        a,
        b,
        scale,
        t=float(test.statistic),
        dof=float(test.df),
        p_value=float(test.pvalue),
        cohens_d=float((x.mean() - y.mean()) / pooled) if pooled > 0 else 0.0,
        cliffs_delta=float(2 * u / (len(x) * len(y)) - 1),
    )


def holm(p_values: Sequence[float]) -> np.ndarray:
    """Returns Holm's step-down adjustment of [K] p-values (family-wise error control)."""
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p)
    stepped = np.maximum.accumulate(p[order] * (len(p) - np.arange(len(p))))
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(stepped, 1.0)
    return adjusted


def seed_interval(values: ArrayLike, level: float = 0.95) -> SeedInterval:
    """Returns mean, standard deviation, range and t-interval of one number over [K] seeds."""
    values = finite_vector(values, "values over seeds")
    n, mean = len(values), float(values.mean())
    found = SeedInterval(n, mean, float(values.min()), float(values.max()))
    if n == 1:  # a single run has no spread
        return found
    sd = float(values.std(ddof=1))
    half = float(stats.t.ppf(0.5 + level / 2, n - 1) * sd / np.sqrt(n))
    return replace(found, sd=sd, low=mean - half, high=mean + half)
