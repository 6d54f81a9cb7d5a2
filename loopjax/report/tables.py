"""Tables as people read them: numbers become texts."""

import math
import re
from dataclasses import dataclass

import numpy as np

from loopjax.evaluation.tables import Cell, Estimate, Table

UNIT = re.compile(r"(?<=\d) (?=(%|dB|k?Hz|m?s|MiB|loops?|inputs?)(?!\w))")


def number(value: float | None, digits: int = 3) -> str | None:
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


def with_units(text: str) -> str:
    """A sentence whose numbers stay on one line with the unit or the thing that they count."""
    return UNIT.sub("\u00a0", text)


@dataclass(frozen=True)
class Column:
    """A column as it is shown."""

    label: str
    is_numeric: bool


@dataclass(frozen=True)
class ShownTable:
    """A table as it is shown: every cell a text, a truth value, or None for nothing."""

    title: str
    note: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[str | bool | None, ...], ...]


def shown_table(table: Table) -> ShownTable:
    """Turns a table's cells into texts; an estimate becomes "0.91 (0.88 to 0.93)"."""
    columns = []
    for key in table.columns:
        cells = [row[key] for row in table.rows if row.get(key) is not None]
        numeric = bool(cells) and all(
            isinstance(cell, int | float | Estimate) and not isinstance(cell, bool)
            for cell in cells
        )
        columns.append(Column(_label(key), numeric))
    rows = tuple(tuple(_text(row.get(key)) for key in table.columns) for row in table.rows)
    return ShownTable(table.title, with_units(table.note), tuple(columns), rows)


def _label(key: str) -> str:
    """A column's heading; lower case, because some columns are named after detectors."""
    text = key.replace("_", " ")
    for name in ("auroc", "ks", "fpr", "sd"):
        text = re.sub(rf"\b{name}\b", name.upper(), text)
    return text.replace("pauc", "pAUC")


def _text(cell: Cell) -> str | bool | None:
    if isinstance(cell, bool) or cell is None or isinstance(cell, str):
        return cell
    if not isinstance(cell, Estimate):
        return number(cell)
    if cell.low is None or cell.high is None:
        return number(cell.value)
    return f"{number(cell.value)} ({number(cell.low)} to {number(cell.high)})"
