"""Fills the pages of the documentation whose contents stand in the code; a hook of MkDocs.

A line `{{ name }}` in a page becomes what the function `name` of `FILLERS` returns, so that a new
option, setting, column or public name is documented by the declaration that makes it.
"""

import argparse
import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from loopjax import detectors
from loopjax.cli import VERBS, parser_of
from loopjax.experiment.load import schema
from loopjax.store.schema import COLUMNS, FAILURE_COLUMNS

ROOT = Path(__file__).resolve().parents[2]
_MARK = re.compile(r"^\{\{ (\w+) \}\}$", re.MULTILINE)
_LEAVING = re.compile(r"\[([^\]]+)\]\(((?:\.\./)*)((?!https?:|#|mailto:)[^)#]+)(#[^)]*)?\)")


def on_page_markdown(markdown: str, page: Any, **_: object) -> str:
    """Called by MkDocs for each page."""
    if page.file.src_uri.endswith(".ipynb"):
        return markdown
    filled = _MARK.sub(lambda found: FILLERS[found.group(1)](), markdown)
    return _without_leaving_links(filled, ROOT / "docs" / page.file.src_uri)


def cli() -> str:
    """Every verb with its help."""
    parts = []
    for name, verb in VERBS.items():
        parser = parser_of(verb)
        parser.formatter_class = lambda prog: argparse.RawDescriptionHelpFormatter(prog, width=96)
        parts.append(f"## loopjax {name}\n\n```text\n{parser.format_help().rstrip()}\n```\n")
    return "\n".join(parts)


def config() -> str:
    """Every setting of an experiment file."""
    parts = []
    for name, node in schema()["properties"].items():
        inner = _of_items(node).get("properties")
        parts.append(f"## {name}\n\n{_sentence(node)}\n")
        if inner:
            rows = [
                (f"`{key}`", _type(value), _default(value), value.get("description", ""))
                for key, value in inner.items()
            ]
            parts.append(_table(("setting", "type", "default", "what it does"), rows))
        else:
            parts.append(f"{_type(node)}; default: {_default(node) or 'none'}\n")
    return "\n".join(parts)


def api() -> str:
    """Every public name, from the stub that type checkers read."""
    stub = (ROOT / "loopjax" / "__init__.pyi").read_text()
    found = re.findall(r"^from \.([\w.]+) import (\w+) as", stub, re.MULTILINE)
    order = sorted(found, key=lambda pair: pair[1].lower())
    return "\n".join(f"::: loopjax.{module}.{name}\n" for module, name in order)


def detector_kinds() -> str:
    """Every kind of detector with its hyper-parameters."""
    parts = []
    for kind in detectors.detector_kinds():
        cls = detectors.detector_class(kind)
        parts.append(f"## {kind}\n\n{_paragraphs(inspect.getdoc(cls) or '')}\n")
        signature = inspect.signature(cls).parameters
        rows = [
            (f"`{name}`", f"`{signature[name].default!r}`")
            for name in detectors.parameter_types(kind)
        ]
        parts.append(_table(("parameter", "default"), rows))
    return "\n".join(parts)


def store_columns() -> str:
    """The columns of a store."""
    return _columns(COLUMNS)


def failure_columns() -> str:
    """The columns of the list of rejected inputs."""
    return _columns(FAILURE_COLUMNS)


def file_differences() -> str:
    """DIFFERENCES.md."""
    return (ROOT / "DIFFERENCES.md").read_text()


def file_changelog() -> str:
    """CHANGELOG.md."""
    return (ROOT / "CHANGELOG.md").read_text()


def file_contributing() -> str:
    """CONTRIBUTING.md."""
    return (ROOT / "CONTRIBUTING.md").read_text()


FILLERS: Mapping[str, Callable[[], str]] = {
    filler.__name__: filler
    for filler in (
        *(cli, config, api, detector_kinds, store_columns, failure_columns),
        *(file_differences, file_changelog, file_contributing),
    )
}


def _without_leaving_links(markdown: str, page: Path) -> str:
    """Names a file of the repository where the site, which does not hold it, cannot link to it."""

    def plain(found: re.Match[str]) -> str:
        words, up, path = found.group(1), found.group(2), found.group(3)
        for base in (page.parent, ROOT):
            target = (base / f"{up}{path}").resolve()
            if target.is_relative_to(ROOT / "docs") and target.exists():
                return found.group(0) if base == page.parent else words
            if target.exists():
                shown = target.relative_to(ROOT).as_posix()
                return words if words == shown else f"{words} (`{shown}`)"
        return found.group(0)  # MkDocs complains

    return _LEAVING.sub(plain, markdown)


def _columns(fields: Iterator[Any] | tuple[Any, ...]) -> str:
    rows = [(f"`{name}`", f"`{_arrow(type_)}`", words) for name, type_, words in fields]
    return _table(("column", "type", "what it holds"), rows)


def _arrow(type_: pa.DataType) -> str:
    return str(type_).replace("list<item: ", "list<")


def _of_items(node: Mapping[str, Any]) -> Mapping[str, Any]:
    return node.get("items", node) if node.get("type") == "array" else node


def _type(node: Mapping[str, Any]) -> str:
    if "enum" in node:
        return ", ".join(f"`{value}`" for value in node["enum"])
    if "anyOf" in node:
        return " or ".join(_type(choice) for choice in node["anyOf"])
    if node.get("type") == "array":
        return f"list of {_type(node.get('items', {}))}"
    if node.get("type") == "object":
        return "mapping"
    limits = [
        f"{sign} {node[key]:g}"
        for key, sign in (
            *(("minimum", "at least"), ("exclusiveMinimum", "above")),
            *(("maximum", "at most"), ("exclusiveMaximum", "below")),
        )
        if key in node and abs(node[key]) < 1e6
    ]
    return " ".join((node.get("type", "any"), *limits))


def _default(node: Mapping[str, Any]) -> str:
    if "default" not in node or isinstance(node["default"], dict):
        return ""
    return (
        f"`{node['default']!r}`".replace("None", "null")
        .replace("True", "true")
        .replace("False", "false")
    )


def _sentence(node: Mapping[str, Any]) -> str:
    text = node.get("description", "")
    return f"{text[:1].upper()}{text[1:]}.\n" if text else ""


def _paragraphs(docstring: str) -> str:
    """The prose of a docstring: what stands before its sections."""
    return re.split(r"\n(?:Args|Attributes|Raises|Returns|Examples?):\n", docstring)[0].strip()


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return (
        "\n".join(
            "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in line) + " |"
            for line in lines
        )
        + "\n"
    )
