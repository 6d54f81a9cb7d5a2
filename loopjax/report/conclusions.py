"""What a figure says, as a sentence from its numbers: the figure's title."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike

from loopjax.evaluation.robustness import CurvePoint
from loopjax.report.tables import number

COLLAPSED = 1e-3  # of the widest dimension's spread


def of_scores(scores: Mapping[str, Mapping[str, ArrayLike]]) -> str:
    """How far held-out or anomalous loops score from the training loops, where it is farthest."""
    ratios: dict[tuple[str, str], float] = {}
    for name, splits in scores.items():
        base = _median(splits.get("train"))
        for split in ("anomaly", "held out"):
            if base > 0 and np.size(splits.get(split, ())):
                ratios[split, name] = _median(splits.get(split)) / base
    split = "anomaly" if any(key[0] == "anomaly" for key in ratios) else "held out"
    own = {name: ratio for (kind, name), ratio in ratios.items() if kind == split}
    if not own:
        return "Scores per detector and split"
    least, most = min(own, key=own.__getitem__), max(own, key=own.__getitem__)
    words = {"anomaly": "Labeled anomalies", "held out": "Loops that were held out"}[split]
    if least == most:
        return f"{words} score {number(own[most])} times the training loops' median by {most}"
    return (
        f"{words} score {number(own[least])} times ({least}) to {number(own[most])} times ({most}) "
        "the training loops' median"
    )


def of_thresholds(
    scores: Mapping[str, Mapping[str, ArrayLike]], thresholds: Mapping[str, float]
) -> str:
    """How many loops each detector flags, at least and at most."""
    flagged = {}
    for name, splits in scores.items():
        pooled = np.concatenate([np.asarray(values, float) for values in splits.values()])
        flagged[name] = float(100 * np.mean(pooled > thresholds[name]))
    least, most = min(flagged, key=flagged.__getitem__), max(flagged, key=flagged.__getitem__)
    if least == most:
        return f"{most} flags {flagged[most]:.1f} % of the loops"
    return (
        f"Detectors flag from {flagged[least]:.1f} % ({least}) to {flagged[most]:.1f} % ({most}) "
        "of the loops"
    )


def of_spread(latents: Mapping[str, ArrayLike]) -> str:
    """Whether dimensions of a latent space have collapsed."""
    dead = {}
    for name, values in latents.items():
        spread = np.asarray(values, float).std(axis=0)
        dead[name] = (int((spread < COLLAPSED * spread.max(initial=0)).sum()), len(spread))
    worst = max(dead, key=lambda name: dead[name][0])
    if dead[worst][0] == 0:
        return "Every dimension of the latent spaces is used"
    count, width = dead[worst]
    return f"{count} of {width} latent dimensions of {worst} hardly vary"


def of_flagged(latents: Mapping[str, ArrayLike], is_anomaly: Mapping[str, ArrayLike]) -> str:
    """How far flagged loops lie from the middle of the latent space, against the others."""
    ratios = {}
    for name, values in latents.items():
        matrix, flagged = np.asarray(values, float), np.asarray(is_anomaly[name], bool)
        distance = np.linalg.norm(matrix - np.median(matrix, axis=0), axis=1)
        if flagged.any() and not flagged.all() and _median(distance[~flagged]) > 0:
            ratios[name] = _median(distance[flagged]) / _median(distance[~flagged])
    if not ratios:
        return "No loop is flagged in the latent spaces"
    name = max(ratios, key=ratios.__getitem__)
    return (
        f"Flagged loops lie {number(ratios[name])} times as far from the middle of the latent "
        f"space as others ({name})"
    )


def of_heat(latents: Mapping[str, ArrayLike], scores: Mapping[str, ArrayLike]) -> str:
    """How much wider the most anomalous tenth deviates than the rest."""
    ratios = {}
    for name, values in latents.items():
        matrix, own = np.asarray(values, float), np.asarray(scores[name], float)
        deviation = np.abs(matrix - np.median(matrix, axis=0)).mean(axis=1)
        top = own >= np.quantile(own, 0.9)
        rest = deviation[~top].mean() if (~top).any() else 0.0
        if rest > 0:
            ratios[name] = float(deviation[top].mean() / rest)
    if not ratios:
        return "Latent vectors, most anomalous on top"
    name = max(ratios, key=ratios.__getitem__)
    return (
        f"Latent vectors of the most anomalous tenth, on top, deviate {number(ratios[name])} times "
        f"as much as the rest ({name})"
    )


def of_training(histories: Mapping[str, Mapping[str, Sequence[float]]]) -> str:
    """Where the losses end, against where they began."""
    falls = {}
    for panel, curves in histories.items():
        losses = np.asarray(curves.get("validation", next(iter(curves.values()))), float)
        losses = losses[np.isfinite(losses)]
        if len(losses) and losses[0] > 0:
            falls[panel] = 100 * (1 - losses[-1] / losses[0])
    if not falls:
        return "Training curves"
    least, most = min(falls, key=falls.__getitem__), max(falls, key=falls.__getitem__)
    if least == most:
        return f"Training lowers the loss by {falls[most]:.0f} % ({most})"
    return (
        f"Training lowers the loss by {falls[least]:.0f} % ({least}) to {falls[most]:.0f} % "
        f"({most})"
    )


def of_robustness(points: Sequence[CurvePoint]) -> str:
    """Which perturbation is noticed best, and which hardly, by the best detector of each."""
    best: dict[str, float] = {}
    for point in points:
        best[point.perturbation] = max(best.get(point.perturbation, 0.0), point.auroc.value)
    least, most = min(best, key=best.__getitem__), max(best, key=best.__getitem__)
    if least == most:
        return f"At most, {most} is detected with AUROC {best[most]:.2f}"
    return (
        f"{most} is detected best (AUROC up to {best[most]:.2f}), {least} worst (up to "
        f"{best[least]:.2f})"
    )


def _median(values: ArrayLike | None) -> float:
    found = np.asarray([] if values is None else values, float)
    return float(np.median(found)) if found.size else 0.0
