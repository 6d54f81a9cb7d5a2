"""Figures of a run folder, inlined into a page without anything that could act there."""

import re
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from loopjax.errors import UserError
from loopjax.report.tables import with_units

SVG = "http://www.w3.org/2000/svg"
HALF_PAGE_PT = 520  # wider figures get the whole width of the page
DRAWING = (
    *("svg", "g", "defs", "path", "rect", "circle", "ellipse", "line", "polyline", "polygon"),
    *("text", "tspan", "use", "clipPath", "mask", "pattern", "linearGradient", "radialGradient"),
    *("stop", "image", "symbol", "marker"),
)


@dataclass(frozen=True)
class InlineFigure:
    """One figure, harmless."""

    title: str
    svg: str
    is_wide: bool


def read_figures(folder: Path) -> list[InlineFigure]:
    """Reads every SVG of a folder for inlining, stripped of anything that could act.

    Scripts, event attributes, foreign content and references that leave the file are removed.

    Raises:
        UserError: a file that is no SVG.
    """
    figures: list[InlineFigure] = []
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
            InlineFigure(
                title=with_units(title),
                svg=ElementTree.tostring(root, encoding="unicode"),
                is_wide=len(box) == 4 and float(box[2]) > HALF_PAGE_PT,
            )
        )
    return figures


def _figure_order(path: Path) -> tuple[int, str]:
    """Scores first, then robustness, latent spaces, training; the rest by name."""
    topics = ("score", "robustness", "latent", "training")
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
