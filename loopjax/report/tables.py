"""Pieces of the report that need no audio: number texts, tables, histogram, figures, run facts."""

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np

from loopjax.errors import UserError

SVG = "http://www.w3.org/2000/svg"
HISTOGRAM_WIDTH, HISTOGRAM_HEIGHT = 440, 110
HISTOGRAM_BINS = 44
HALF_PAGE_PT = 520  # wider figures get the whole width of the page
DRAWING = (
    *("svg", "g", "defs", "path", "rect", "circle", "ellipse", "line", "polyline", "polygon"),
    *("text", "tspan", "use", "clipPath", "mask", "pattern", "linearGradient", "radialGradient"),
    *("stop", "image", "symbol", "marker"),
)


def number(value: Any, digits: int = 3) -> str | None:
    """Writes a number for people: `digits` significant digits, no exponent where avoidable."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, int | np.integer):
        return f"{int(value):,}".replace(",", "\u2009") if abs(value) >= 10_000 else str(int(value))
    value = float(value)
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    if value == 0 or 1e-4 <= abs(value) < 1e5:
        decimals = digits - 1 - (math.floor(math.log10(abs(value))) if value else 0)
        text = f"{value:.{max(decimals, 0)}f}"
    else:
        text = f"{value:.{digits - 1}e}".replace("e-0", "e-").replace("e+0", "e")
    return text.replace("-", "\u2212")


def prepare_table(table: Mapping[str, Any]) -> dict[str, Any]:
    """Turns a table of `evaluation.json` into columns and texts.

    A value with `_low` and `_high` beside it becomes one cell, "0.91 (0.88 to 0.93)".

    Args:
        table: `title`, `rows` (dicts), optionally `note` and `columns` (order of the keys).

    Raises:
        UserError: no title or rows.
    """
    if not isinstance(table, Mapping) or "title" not in table or "rows" not in table:
        raise UserError("evaluation.json: each table needs a title and rows")
    source = list(table["rows"])
    keys = list(table.get("columns") or dict.fromkeys(key for row in source for key in row))
    present = set(keys)
    keys = [
        key
        for key in keys
        if not any(
            key.endswith(end) and key.removesuffix(end) in present for end in ("_low", "_high")
        )
    ]
    columns = []
    for key in keys:
        values = [row.get(key) for row in source if row.get(key) is not None]
        numeric = bool(values) and all(
            isinstance(v, int | float) and not isinstance(v, bool) for v in values
        )
        columns.append({"key": key, "label": _label(key), "numeric": numeric})
    rows = [{key: _cell(row, key) for key in keys} for row in source]
    return {
        "title": table["title"],
        "note": table.get("note", ""),
        "columns": columns,
        "rows": rows,
    }


def _label(key: str) -> str:
    """A column's heading; lower case, because some columns are named after detectors."""
    text = key.replace("_", " ")
    for name in ("auroc", "ks", "fpr", "sd"):
        text = re.sub(rf"\b{name}\b", name.upper(), text)
    return text.replace("pauc", "pAUC")


def _cell(row: Mapping[str, Any], key: str) -> Any:
    value = row.get(key)
    if isinstance(value, bool) or value is None or isinstance(value, str):
        return value
    if isinstance(value, list | tuple):
        return ", ".join(str(number(v) if isinstance(v, float) else v) for v in value)
    text = number(value)
    low, high = row.get(f"{key}_low"), row.get(f"{key}_high")
    if low is not None and high is not None:
        text = f"{text} ({number(low)} to {number(high)})"
    return text


def histogram(scores: np.ndarray, threshold: float | None) -> dict[str, Any] | None:
    """Lays out a score histogram as rectangles; a log axis where scores span more than 5x."""
    if len(scores) < 2 or scores.min() == scores.max():
        return None
    low, high = float(scores.min()), float(scores.max())
    logarithmic = low > 0 and high / low > 5
    place = np.log10 if logarithmic else np.asarray
    start, end = float(place(low)), float(place(high))
    share = (place(scores) - start) / (end - start)
    counts = np.bincount(
        np.minimum((share * HISTOGRAM_BINS).astype(int), HISTOGRAM_BINS - 1),
        minlength=HISTOGRAM_BINS,
    )
    step = HISTOGRAM_WIDTH / HISTOGRAM_BINS
    cut_x = None
    if threshold is not None and (threshold > 0 or not logarithmic) and low <= threshold <= high:
        cut_x = round(float((place(threshold) - start) / (end - start)) * HISTOGRAM_WIDTH, 1)
    bars = []
    for i, count in enumerate(counts):
        if count:
            height = max(2.0, HISTOGRAM_HEIGHT * math.sqrt(count / counts.max()))
            center = (i + 0.5) * step
            bars.append(
                {
                    "x": round(i * step + 0.75, 1),
                    "y": round(112 - height, 1),
                    "width": round(step - 1.5, 1),
                    "height": round(height, 1),
                    "is_odd": cut_x is not None and center > cut_x,
                }
            )
    scale = "logarithmic score axis, " if logarithmic else ""
    label = f"Scores of all {len(scores)} loops ({scale}bar height is the root of the count)"
    return {
        "width": HISTOGRAM_WIDTH,
        "bars": bars,
        "threshold_x": cut_x,
        "low": number(low),
        "high": number(high),
        "label": label + ("; the dashed line is the threshold." if cut_x is not None else "."),
    }


def read_figures(folder: Path) -> list[dict[str, Any]]:
    """Reads every SVG of a folder for inlining, stripped of anything that could act.

    Scripts, event attributes, foreign content and references that leave the file are removed.

    Raises:
        UserError: a file that is no SVG.
    """
    figures: list[dict[str, Any]] = []
    ElementTree.register_namespace("", SVG)
    ElementTree.register_namespace("xlink", "http://www.w3.org/1999/xlink")
    for path in sorted(folder.glob("*.svg"), key=_figure_order):
        try:
            root = ElementTree.fromstring(path.read_text(encoding="utf-8"))
        except (ElementTree.ParseError, UnicodeDecodeError) as error:
            raise UserError(f"{path} is not a readable SVG: {error}") from None
        if root.tag != f"{{{SVG}}}svg":
            raise UserError(f"{path} is not an SVG file")
        title = root.findtext(f"{{{SVG}}}title") or path.stem.replace("_", " ")
        _harmless(root)
        box = (root.get("viewBox") or "").split()
        figures.append(
            {
                "title": title,
                "svg": ElementTree.tostring(root, encoding="unicode"),
                "is_wide": len(box) == 4 and float(box[2]) > HALF_PAGE_PT,
            }
        )
    return figures


def _figure_order(path: Path) -> tuple[int, str]:
    """Scores first, then the ladder, latent spaces, training; the rest by name."""
    topics = ("score", "ladder", "latent", "training")
    place = next((i for i, topic in enumerate(topics) if topic in path.stem), len(topics))
    return place, path.name


def _harmless(root: ElementTree.Element) -> None:
    allowed = {f"{{{SVG}}}{name}" for name in DRAWING}
    text = ElementTree.tostring(root, encoding="unicode")
    referred = set(re.findall(r"url\(#([^)]+)\)|href=\"#([^\"]+)\"", text))
    kept_ids = {name for pair in referred for name in pair}
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag not in allowed:  # <style> too: it would reach the whole page
                parent.remove(child)
        for name, value in list(parent.attrib.items()):
            local = name.rsplit("}", 1)[-1]
            outside = local == "href" and not value.startswith(("#", "data:image/png;base64,"))
            unused_id = local == "id" and value not in kept_ids  # would repeat across figures
            if local.startswith("on") or outside or unused_id:
                del parent.attrib[name]


def run_facts(run: Mapping[str, Any]) -> list[dict[str, str]]:
    """Picks the settings of run.json that a reader asks for first."""
    config = run.get("config") or {}
    found = {
        "Name": run.get("name") or config.get("name"),
        "Started": run.get("started") or run.get("created"),
        "Command": run.get("command"),
        "Encoder": lookup(run, "encoder") or lookup(config, "embed.encoder"),
        "Weights": lookup(run, "weights_sha256", "encoder_weights_sha256"),
        "Detector": lookup(run, "primary", "detector") or config.get("primary"),
        "Seeds": run.get("seeds") or config.get("seeds"),
        "Devices": run.get("devices"),
        "Versions": run.get("versions"),
    }
    return [{"label": label, "value": _fact(value)} for label, value in found.items() if value]


def lookup(values: Mapping[str, Any], *paths: str) -> Any:
    """Returns the first value found under dotted paths; a mapping with an `id` gives its id."""
    for path in paths:
        node: Any = values
        for part in path.split("."):
            node = node.get(part) if isinstance(node, Mapping) else None
        if node is not None:
            return node.get("id") or node.get("name") if isinstance(node, Mapping) else node
    return None


def _fact(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {item}" for key, item in value.items())
    if isinstance(value, Sequence) and not isinstance(value, str):
        return " ".join(map(str, value))
    return str(value)
