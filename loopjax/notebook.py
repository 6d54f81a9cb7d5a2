"""HTML that notebooks show in place of `repr`; every text is escaped."""

from collections.abc import Iterable, Mapping, Sequence
from html import escape


class Markup(str):
    """HTML that stands as it is."""


def html_table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table; numbers to four digits."""
    cells = "".join(f"<th>{escape(name)}</th>" for name in head)
    lines = "".join(
        "<tr>" + "".join(f"<td>{_shown(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    return f"<table><thead><tr>{cells}</tr></thead><tbody>{lines}</tbody></table>"


def html_facts(title: str, facts: Mapping[str, object]) -> str:
    """A title, and a table of names and values; what is None or empty is left out."""
    shown = [(name, value) for name, value in facts.items() if value not in (None, "", ())]
    return f"<b>{escape(title)}</b>{html_table(('', ''), shown)}"


def _shown(cell: object) -> str:
    if isinstance(cell, Markup):
        return cell
    if cell is None:
        return ""
    return escape(f"{cell:.4g}" if isinstance(cell, float) else str(cell))
