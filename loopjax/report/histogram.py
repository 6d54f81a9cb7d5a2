"""The histogram of all scores at the head of a page, laid out as rectangles."""

import math
from dataclasses import dataclass

import numpy as np

from loopjax.report.tables import number, with_units

WIDTH, HEIGHT, BINS = 440, 110, 44
BASELINE = 112  # y of the axis


@dataclass(frozen=True)
class Bar:
    """One bin."""

    x: float
    y: float
    width: float
    height: float
    is_anomalous: bool  # above the threshold


@dataclass(frozen=True)
class Histogram:
    """Bars, threshold line and the texts around them; lengths in the picture's own units."""

    width: int
    bars: tuple[Bar, ...]
    threshold_x: float | None
    low: str | None
    high: str | None
    label: str


def histogram(scores: np.ndarray, threshold: float | None) -> Histogram | None:
    """Lays out a histogram of scores [N]; a log axis where scores span more than 5x.

    Returns:
        None where all scores are equal.
    """
    if len(scores) < 2 or scores.min() == scores.max():
        return None
    low, high = float(scores.min()), float(scores.max())
    logarithmic = low > 0 and high / low > 5
    place = np.log10 if logarithmic else np.asarray
    start, end = float(place(low)), float(place(high))
    fraction = (place(scores) - start) / (end - start)
    counts = np.bincount(np.minimum((fraction * BINS).astype(int), BINS - 1), minlength=BINS)
    cut_x = None
    if threshold is not None and (threshold > 0 or not logarithmic) and low <= threshold <= high:
        cut_x = round(float((place(threshold) - start) / (end - start)) * WIDTH, 1)
    step = WIDTH / BINS
    bars = []
    for i, count in enumerate(counts):
        if count:
            height = max(2.0, HEIGHT * math.sqrt(count / counts.max()))
            bars.append(
                Bar(
                    x=round(i * step + 0.75, 1),
                    y=round(BASELINE - height, 1),
                    width=round(step - 1.5, 1),
                    height=round(height, 1),
                    is_anomalous=cut_x is not None and (i + 0.5) * step > cut_x,
                )
            )
    scale = "logarithmic score axis, " if logarithmic else ""
    axis = f"Scores of all {len(scores)} loops ({scale}bar height is the root of the count)."
    label = axis
    if threshold is not None and cut_x is not None:
        beyond = int((scores > threshold).sum())
        label = f"{beyond} of {len(scores)} loops lie beyond the threshold, the dashed line. {axis}"
    return Histogram(WIDTH, tuple(bars), cut_x, number(low), number(high), with_units(label))
