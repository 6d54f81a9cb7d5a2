"""Robustness curves: how well a detector ranks perturbed loops above their originals, by severity.

Scores in, curve points and tables out. A win matrix [N, N] says how often the perturbed copy i
scores above the original j; its mean is the AUROC of copies against originals.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from loopjax.evaluation.tables import Estimate, Row, Table


@dataclass(frozen=True)
class CurvePoint:
    """One detector at one severity of one perturbation."""

    perturbation: str
    unit: str  # of the severity
    level: int  # 0 = the mildest severity
    severity: str  # in the perturbation's unit
    detector: str
    auroc: Estimate  # of copies against originals; interval over loops
    fraction_raised: float  # of copies that score above their own original
    n_loops: int
    n_seeds: int


def win_matrix(copies: np.ndarray, originals: np.ndarray) -> np.ndarray:
    """How often copy i scores above original j, ties half, mean over seeds.

    Args:
        copies: [seeds, N] scores of the perturbed copies.
        originals: [seeds, N] scores of the originals.

    Returns:
        float64 [N, N].
    """
    above = copies[:, :, None] > originals[:, None, :]
    ties = copies[:, :, None] == originals[:, None, :]
    return (above + 0.5 * ties).mean(axis=0)


def auroc_of_wins(wins: Sequence[np.ndarray], weights: np.ndarray) -> Estimate:
    """AUROC, mean over several win matrices, with its 95 % interval when loops are resampled.

    Args:
        wins: win matrices [N, N].
        weights: int [resamples, N], how often each resample holds each loop.
    """
    win = np.mean(wins, axis=0)
    samples = np.einsum("bi,ij,bj->b", weights, win, weights, optimize=True) / len(win) ** 2
    low, high = np.quantile(samples, [0.025, 0.975])
    return Estimate(float(win.mean()), float(low), float(high))


def severity_table(
    wins: Mapping[tuple[str, int], list[np.ndarray]], weights: np.ndarray, detectors: Sequence[str]
) -> Table:
    """AUROC by severity, mean over the perturbations.

    Args:
        wins: (detector, level) -> one win matrix per perturbation.
        weights: as for `auroc_of_wins`.
        detectors: one row each.
    """
    levels = sorted({level for _, level in wins})
    mild, severe = levels[: len(levels) // 2], levels[-(len(levels) // 2) :]
    rows = []
    for name in detectors:
        row: Row = {"detector": name}
        for level in levels:
            row[f"severity {level + 1}"] = auroc_of_wins(wins[name, level], weights).value
        for label, part in (("milder_half", mild), ("more_severe_half", severe)):
            pooled = [win for level in part for win in wins[name, level]]
            row[label] = auroc_of_wins(pooled, weights)
        rows.append(row)
    return Table(
        "Robustness by severity",
        "AUROC of perturbed copies of held-out normal loops against the originals, mean over the "
        "perturbations, from the mildest severity to the most severe; 95 % intervals over loops.",
        tuple(rows),
    )


def perturbation_table(points: Sequence[CurvePoint], detectors: Sequence[str]) -> Table:
    """AUROC by perturbation, mean over the severities."""
    rows = []
    for perturbation in dict.fromkeys(point.perturbation for point in points):
        own = [point for point in points if point.perturbation == perturbation]
        row: Row = {
            "perturbation": perturbation,
            "from": f"{own[0].severity} {own[0].unit}",
            "to": f"{own[-1].severity} {own[-1].unit}",
        }
        for name in detectors:
            row[name] = float(np.mean([p.auroc.value for p in own if p.detector == name]))
        rows.append(row)
    return Table("Robustness by perturbation", "AUROC, mean over the severities.", tuple(rows))
