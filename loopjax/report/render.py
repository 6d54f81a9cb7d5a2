"""The page's parts become one HTML file in which only its own script can run."""

import base64
import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from loopjax.report.content import Page
from loopjax.report.data import Plain

ASSETS = Path(__file__).parent / "assets"
SCRIPTS = ("data.js", "player.js", "list.js", "marks.js", "map.js", "page.js")
# A page that was opened from a disk has no origin, so 'self' is nothing to it.
POLICY = (
    "default-src 'none'; script-src '{script}'; style-src 'unsafe-inline'; "
    "img-src data: 'self' file:; media-src 'self' file: blob:; base-uri 'none'; form-action 'none'"
)


def render(page: Page, data: Plain, policy: str = POLICY, scripts: Sequence[str] = SCRIPTS) -> str:
    """The page as HTML.

    Args:
        page: its texts.
        data: what its script knows.
        policy: content security policy, with a place for the hash of the script.
        scripts: files of `assets`, in order.
    """
    import jinja2
    import markupsafe

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(ASSETS),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=False,
    )
    trusted = markupsafe.Markup  # for our own assets, and SVG and JSON made harmless before
    js = _script(scripts)
    digest = base64.b64encode(hashlib.sha256(js.encode()).digest()).decode()
    values = {field.name: getattr(page, field.name) for field in dataclasses.fields(page)}
    return environment.get_template("report.html.j2").render(
        **values,
        css=trusted((ASSETS / "report.css").read_text(encoding="utf-8")),
        js=trusted(js),
        policy=trusted(policy.format(script=f"sha256-{digest}")),
        data=trusted(_json_for_script(data)),
        is_live="live.js" in scripts,
    )


def _script(names: Sequence[str]) -> str:
    """The files as one script with a scope of its own."""
    parts = [(ASSETS / name).read_text(encoding="utf-8") for name in names]
    return '"use strict";\n(() => {\n' + "\n".join(parts) + "})();\n"


def _json_for_script(value: Plain) -> str:
    """JSON that cannot end the script element it stands in."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text
