"""How every figure looks: small multiples in one style, written as SVG for light and dark pages.

Ink is written as `currentColor`: inlined in a page a figure takes the page's color, and opened
alone it follows the system's color scheme. Text stays text. Files are reproducible byte for byte
(no date, ids salted with the file name).
"""

import html
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from loopjax.io import write_text

INK = "#010203"  # stands for currentColor until the file is written
COLORS = ("#3d7fc1", "#d9822b", "#2e9c7c", "#a066c9", "#c94f6d", "#8c8f3f", "#5aa9c9", "#8a8f98")
ANOMALOUS, NORMAL = "#e0603a", "#3d7fc1"
STYLE: Any = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.sans-serif": ["system-ui", "Segoe UI", "Helvetica Neue", "Noto Sans", "DejaVu Sans"],
    "font.size": 10,
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "axes.titlepad": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.7,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.formatter.useoffset": False,
    "grid.color": INK,
    "grid.alpha": 0.13,
    "grid.linewidth": 0.6,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.width": 0.7,
    "ytick.major.width": 0.7,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "figure.facecolor": "none",
    "figure.constrained_layout.use": True,
    "lines.linewidth": 1.6,
}
THEME = (
    "<style>svg:root{color:#1d2025;background:#fff}"
    "@media (prefers-color-scheme:dark){svg:root{color:#e6e4df;background:#14171a}}</style>"
)


def panels(
    names: list[str],
    draw: Callable[[Axes, str, int], None],
    out: Path,
    title: str,
    *,
    width: float,
    height: float,
    columns: int,
    legend: bool = False,
    ylabel: str = "",
) -> Path:
    """Small multiples: one panel per name, at most `columns` beside each other (inches)."""
    rows = max(1, -(-len(names) // columns))
    columns = max(1, -(-len(names) // rows))  # even rows: 4 panels at 3 across become 2 x 2
    with mpl.rc_context({**STYLE, "svg.hashsalt": out.stem}):
        figure = Figure(figsize=(width * columns, height * rows + (0.4 if legend else 0)))
        for i, name in enumerate(names):
            axes = figure.add_subplot(rows, columns, i + 1)
            draw(axes, name, i)
            if ylabel and i % columns == 0:
                axes.set_ylabel(ylabel)
        if legend and figure.axes:
            handles, labels = figure.axes[0].get_legend_handles_labels()
            figure.legend(handles, labels, loc="outside upper left", ncols=len(labels))
        return write_svg(figure, out, title)


def write_svg(figure: Figure, out: Path, title: str) -> Path:
    """Writes a figure as an SVG with a title, in the colors of its surroundings.

    Raises:
        WriteError: the file cannot be written.
    """
    drawn = io.StringIO()
    figure.savefig(drawn, format="svg", metadata={"Date": None, "Creator": None})
    text = drawn.getvalue()
    start = text.index("<svg")
    head_end = text.index(">", start) + 1
    label = html.escape(title, quote=True)
    head = text[start : head_end - 1] + f' role="img" aria-label="{label}">'
    text = text[:start] + head + f"<title>{label}</title>" + THEME + text[head_end:]
    write_text(out, text.replace(INK, "currentColor"))
    return out


def threshold_line(axes: Axes, threshold: float, horizontal: bool) -> None:
    """Draws a decision threshold."""
    line = axes.axhline if horizontal else axes.axvline
    line(threshold, color=ANOMALOUS, lw=1.1, ls=(0, (4, 2)), label="threshold")


def log_axis(axes: Axes, which: str) -> None:
    """Makes the "x" or "y" axis logarithmic, with plain numbers where it spans little.

    Whatever it spans, several ticks have numbers.
    """
    axis = axes.yaxis if which == "y" else axes.xaxis
    low, high = axis.get_data_interval()
    axes.set_yscale("log") if which == "y" else axes.set_xscale("log")
    axis.set_minor_formatter(NullFormatter())
    if high / low > 30:
        axis.set_major_locator(LogLocator(10, numticks=6))
        return
    fine = high / low < 6
    axis.set_major_locator(MaxNLocator(4) if fine else LogLocator(10, subs=(1, 2, 5), numticks=8))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
