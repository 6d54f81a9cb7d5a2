"""The figures: arrays in, one SVG file out.

Only this wing imports matplotlib; callers check `require_report_extra` and import this file late.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from loopjax.evaluation.robustness import CurvePoint
from loopjax.report import conclusions
from loopjax.report.plane import principal_plane
from loopjax.report.style import (
    ANOMALOUS,
    COLORS,
    INK,
    NORMAL,
    STYLE,
    log_axis,
    panels,
    threshold_line,
    write_svg,
)

TICKS_HZ = (125, 250, 500, 1000, 2000, 4000, 8000, 16000)


def score_boxes(
    scores: Mapping[str, Mapping[str, ArrayLike]],
    out: Path,
    thresholds: Mapping[str, float] | None = None,
    title: str | None = None,
) -> Path:
    """Draws log-scale box plots, one panel per detector, one box per split.

    Args:
        scores: detector -> split ("train", "held out", "anomaly") -> [N] scores.
        out: SVG file to write.
        thresholds: detector -> decision threshold, drawn as a line.
        title: what the figure says; default: a conclusion from its numbers.
    """
    title = title or conclusions.of_scores(scores)

    def draw(axes: Axes, name: str, index: int) -> None:
        splits = {k: np.asarray(v, float) for k, v in scores[name].items() if np.size(v)}
        boxes = axes.boxplot(
            list(splits.values()),
            tick_labels=list(splits),
            widths=0.55,
            patch_artist=True,
            medianprops={"color": INK, "linewidth": 1.3},
            whiskerprops={"color": INK, "linewidth": 0.8},
            capprops={"color": INK, "linewidth": 0.8},
            flierprops={
                "marker": ".",
                "markersize": 3.5,
                "markeredgecolor": ANOMALOUS,
                "alpha": 0.7,
            },
        )
        for box, split in zip(boxes["boxes"], splits, strict=True):
            color = ANOMALOUS if "anom" in split else COLORS[index % len(COLORS)]
            box.set(facecolor=color, edgecolor=color, alpha=0.9 if split == "train" else 0.55)
        if thresholds and name in thresholds:
            threshold_line(axes, thresholds[name], horizontal=True)
        if all((v > 0).all() for v in splits.values()):
            log_axis(axes, "y")
        axes.set_title(name)
        axes.grid(visible=False, axis="x")
        axes.tick_params(axis="x", labelsize=8)

    return panels(list(scores), draw, out, title, width=2.1, height=3.2, columns=6)


def score_histograms(
    scores: Mapping[str, Mapping[str, ArrayLike]],
    thresholds: Mapping[str, float],
    out: Path,
    title: str | None = None,
) -> Path:
    """Draws one log-spaced histogram of scores per detector, splits overlaid, with its threshold.

    Args:
        scores: detector -> split -> [N] scores.
        thresholds: detector -> decision threshold.
        out: SVG file to write.
        title: what the figure says; default: a conclusion from its numbers.
    """
    title = title or conclusions.of_thresholds(scores, thresholds)

    def draw(axes: Axes, name: str, index: int) -> None:
        splits = {k: np.asarray(v, float) for k, v in scores[name].items() if np.size(v)}
        pooled = np.concatenate(list(splits.values()))
        low, high = pooled.min(), pooled.max()
        logarithmic = low > 0 and high / low > 5
        edges = np.geomspace(low, high * 1.0001, 33) if logarithmic else np.linspace(low, high, 33)
        for i, (split, values) in enumerate(splits.items()):
            color = ANOMALOUS if "anom" in split else COLORS[i]
            percent = np.full(len(values), 100 / len(values))
            axes.hist(values, edges, weights=percent, color=color, alpha=0.55, label=split)
        if logarithmic:
            log_axis(axes, "x")
        threshold_line(axes, thresholds[name], horizontal=False)
        axes.set(title=name, xlabel="score")

    return panels(
        list(scores),
        draw,
        out,
        title,
        width=3.2,
        height=2.5,
        columns=3,
        legend=True,
        ylabel="% of loops",
    )


def latent_distributions(
    latents: Mapping[str, ArrayLike], out: Path, title: str | None = None
) -> Path:
    """Draws the spread of every latent dimension: median, quartiles and the 5-95 % band.

    Args:
        latents: detector -> [N, D] latent vectors (dimensions are sorted by their median).
        out: SVG file to write.
        title: what the figure says; default: a conclusion from its numbers.
    """
    title = title or conclusions.of_spread(latents)

    def draw(axes: Axes, name: str, index: int) -> None:
        matrix = np.asarray(latents[name], float)
        levels = np.quantile(matrix, [0.05, 0.25, 0.5, 0.75, 0.95], axis=0)
        levels = levels[:, np.argsort(levels[2])]
        x, color = np.arange(levels.shape[1]), COLORS[index % len(COLORS)]
        axes.fill_between(x, levels[0], levels[4], step="mid", color=color, alpha=0.22, lw=0)
        axes.fill_between(x, levels[1], levels[3], step="mid", color=color, alpha=0.5, lw=0)
        axes.step(x, levels[2], where="mid", color=INK, lw=1.0)
        axes.set(title=name, xlabel="dimension, by median")

    return panels(list(latents), draw, out, title, width=3.4, height=2.6, columns=3, ylabel="value")


def latent_pca(
    latents: Mapping[str, ArrayLike],
    is_anomaly: Mapping[str, ArrayLike],
    out: Path,
    title: str | None = None,
) -> Path:
    """Draws the first two principal components of each latent space with the flagged loops.

    Args:
        latents: detector -> [N, D] latent vectors.
        is_anomaly: detector -> [N] bool, flagged by that detector.
        out: SVG file to write.
        title: what the figure says; default: a conclusion from its numbers.
    """
    title = title or conclusions.of_flagged(latents, is_anomaly)

    def draw(axes: Axes, name: str, index: int) -> None:
        plane, explained = principal_plane(np.asarray(latents[name], float))
        flagged = np.asarray(is_anomaly[name], bool)
        axes.scatter(*plane[~flagged].T, s=9, color=NORMAL, alpha=0.5, lw=0, label="normal")
        axes.scatter(
            *plane[flagged].T, s=20, color=ANOMALOUS, alpha=0.9, lw=0, marker="D", label="anomaly"
        )
        axes.set(
            title=name, xlabel=f"PC 1 ({explained[0]:.0%})", ylabel=f"PC 2 ({explained[1]:.0%})"
        )

    return panels(list(latents), draw, out, title, width=3.3, height=3.1, columns=3, legend=True)


def latent_heat_map(
    latents: Mapping[str, ArrayLike],
    scores: Mapping[str, ArrayLike],
    out: Path,
    title: str | None = None,
) -> Path:
    """Draws each latent space as a picture: one row per loop, the highest score on top.

    Args:
        latents: detector -> [N, D] latent vectors.
        scores: detector -> [N] scores that sort the rows.
        out: SVG file to write.
        title: what the figure says; default: a conclusion from its numbers.
    """
    title = title or conclusions.of_heat(latents, scores)

    def draw(axes: Axes, name: str, index: int) -> None:
        matrix = np.asarray(latents[name], float)
        matrix = matrix[np.argsort(-np.asarray(scores[name], float), kind="stable")]
        matrix = matrix - np.median(matrix, axis=0)
        limit = float(np.quantile(np.abs(matrix), 0.99)) or 1.0
        image = axes.imshow(
            matrix, aspect="auto", cmap="RdBu_r", vmin=-limit, vmax=limit, interpolation="nearest"
        )
        axes.grid(visible=False)
        axes.set(title=name, xlabel="dimension")
        bar = axes.figure.colorbar(image, ax=axes, shrink=0.7, aspect=25, pad=0.02)
        bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue]

    return panels(list(latents), draw, out, title, width=3.4, height=4.0, columns=3, ylabel="loop")


def training_curves(
    histories: Mapping[str, Mapping[str, Sequence[float]]],
    out: Path,
    title: str | None = None,
) -> Path:
    """Draws losses per epoch, one panel per detector and stage, on a log axis.

    Args:
        histories: panel ("AE, stage 1") -> curve name ("train", "validation") -> [epochs] loss.
        out: SVG file to write.
        title: what the figure says; default: a conclusion from its numbers.
    """
    title = title or conclusions.of_training(histories)

    def draw(axes: Axes, name: str, index: int) -> None:
        lowest = np.inf
        for i, (curve, losses) in enumerate(histories[name].items()):
            values = np.asarray(losses, float)
            axes.plot(np.arange(1, len(values) + 1), values, color=COLORS[i], label=curve)
            lowest = min(lowest, values.min(initial=np.inf))
        if lowest > 0:
            log_axis(axes, "y")
        axes.set(title=name, xlabel="epoch")
        axes.legend()

    return panels(
        list(histories), draw, out, title, width=3.2, height=2.4, columns=3, ylabel="loss"
    )


def robustness_curves(
    points: Sequence[CurvePoint],
    out: Path,
    title: str | None = None,
) -> Path:
    """Draws AUROC against severity, one panel per perturbation, one curve per detector.

    Shaded are the points' intervals.

    Args:
        points: every point of every curve.
        out: SVG file to write.
        title: what the figure says; default: a conclusion from its numbers.
    """
    title = title or conclusions.of_robustness(points)
    perturbations = list(dict.fromkeys(point.perturbation for point in points))
    detectors = list(dict.fromkeys(point.detector for point in points))
    lowest = min(0.4, *(point.auroc.value for point in points))

    def draw(axes: Axes, name: str, index: int) -> None:
        own = [point for point in points if point.perturbation == name]
        axes.axhline(0.5, color=INK, lw=0.8, alpha=0.5, ls=(0, (3, 3)))
        for i, detector in enumerate(detectors):
            curve = sorted((p for p in own if p.detector == detector), key=lambda p: p.level)
            levels = [point.level for point in curve]
            color = COLORS[i % len(COLORS)]
            axes.fill_between(
                levels,
                np.array([point.auroc.low for point in curve], float),  # None is NaN
                np.array([point.auroc.high for point in curve], float),
                color=color,
                alpha=0.08,
                lw=0,
            )
            axes.plot(
                levels,
                [point.auroc.value for point in curve],
                color=color,
                ls="-" if i < len(COLORS) else "--",  # the ninth has the first one's color
                marker="os^Dv<>P"[i % 8],
                markersize=3.6,
                lw=1.4,
                label=detector,
            )
        ticks = {point.level: point.severity for point in own}
        axes.set_xticks(list(ticks), list(ticks.values()))
        axes.set(title=name, ylim=(lowest - 0.04, 1.03), xlabel=own[0].unit)
        axes.grid(visible=False, axis="x")

    return panels(
        perturbations,
        draw,
        out,
        title,
        width=2.7,
        height=2.25,
        columns=4,
        legend=True,
        ylabel="AUROC",
    )


def explanation(parts: Mapping[str, Any], out: Path, title: str = "Explanation") -> Path:
    """Draws why one loop got its score: waveform, log-mel, score over time, muted parts.

    Args:
        parts: `duration_s`; `waveform` [P, 2] (low, high per pixel); `mel` [bands, frames];
            `time_s` [K], `score` [K] (windows) or empty; `token_time_s` [T], `token_score` [T]
            (HTS-AT time steps) or empty; `full_score`, `threshold`;
            `segment_drop` [S] and `band_drop` [B] (score lost when that part is muted);
            `mel_hz` [bands], `band_hz` [B] pairs: where bands lie.
        out: SVG file to write.
        title: name of the figure for screen readers.
    """
    with mpl.rc_context({**STYLE, "svg.hashsalt": out.stem}):
        figure = Figure(figsize=(8.6, 6.6))
        grid = figure.add_gridspec(3, 2, width_ratios=(5.2, 1.5), height_ratios=(1.0, 1.7, 1.6))
        wave = figure.add_subplot(grid[0, 0])
        mel = figure.add_subplot(grid[1, 0], sharex=wave)
        time = figure.add_subplot(grid[2, 0], sharex=wave)
        bands = figure.add_subplot(grid[1, 1])
        end = float(parts["duration_s"])
        low, high = np.asarray(parts["waveform"], float).T
        x = np.linspace(0, end, len(low))
        wave.fill_between(x, low, high, color=NORMAL, lw=0)
        wave.set(title=title, ylabel="amplitude", xlim=(0, end))
        drops = np.asarray(parts["segment_drop"], float)
        edges = np.linspace(0, end, len(drops) + 1)
        strongest = max(float(np.max(drops, initial=0)), 1e-12)
        for left, right, drop in zip(edges[:-1], edges[1:], drops, strict=True):
            if drop > 0:
                wave.axvspan(left, right, color=ANOMALOUS, alpha=0.45 * drop / strongest, lw=0)
        mel.imshow(
            np.asarray(parts["mel"], float),
            aspect="auto",
            origin="lower",
            cmap="magma",
            extent=(0, end, -0.5, len(parts["mel"]) - 0.5),
        )
        centers_hz = np.asarray(parts["mel_hz"], float)
        ticks_hz = [hz for hz in TICKS_HZ if centers_hz[0] <= hz <= centers_hz[-1]]
        places = np.interp(ticks_hz, centers_hz, np.arange(len(centers_hz)))
        mel.set_yticks(places, [f"{hz:g}" for hz in ticks_hz])
        mel.set_ylabel("Hz")
        mel.grid(visible=False)
        if len(parts["time_s"]):
            time.plot(
                parts["time_s"], parts["score"], color=NORMAL, marker="o", ms=3, label="excerpt"
            )
        if len(parts["token_time_s"]):
            time.step(
                parts["token_time_s"],
                parts["token_score"],
                where="mid",
                color=COLORS[2],
                lw=1.2,
                label="encoder step",
            )
        time.axhline(parts["full_score"], color=INK, lw=1.0, label="whole loop")
        time.axhline(parts["threshold"], color=ANOMALOUS, lw=1.0, ls=(0, (4, 2)), label="threshold")
        time.set(xlabel="time (s)", ylabel="score", xlim=(0, end))
        time.legend(loc="best")
        band_drops = np.asarray(parts["band_drop"], float)
        y = np.arange(len(band_drops))
        bands.barh(
            y, band_drops, color=[ANOMALOUS if d > 0 else NORMAL for d in band_drops], height=0.8
        )
        bands.axvline(0, color=INK, lw=0.8)
        bands.set(title="score lost when muted", ylabel="Hz")
        bands.set_yticks(y, [f"{low:.0f}\u2013{high:.0f}" for low, high in parts["band_hz"]])
        return write_svg(figure, out, title)
