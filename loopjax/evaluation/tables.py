"""Tables of results: typed rows that JSON keeps and reports print.

A table is a title, a note and rows of cells. A cell is a text, a number, a truth value, nothing, or
an `Estimate` (a number with its interval). JSON holds an estimate as three keys: `auroc`,
`auroc_low`, `auroc_high`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from html import escape

from loopjax.errors import UserError
from loopjax.notebook import html_table

Json = None | bool | int | float | str | list["Json"] | dict[str, "Json"]


@dataclass(frozen=True)
class Estimate:
    """A number and the interval it lies in; without an interval both ends are None."""

    value: float
    low: float | None = None
    high: float | None = None


Cell = str | int | float | bool | None | Estimate
Row = dict[str, Cell]


@dataclass(frozen=True)
class Table:
    """One table; a row may leave out columns that others have."""

    title: str
    note: str
    rows: tuple[Row, ...]

    @property
    def columns(self) -> tuple[str, ...]:
        """Every column of any row, in the order of first appearance."""
        return tuple(dict.fromkeys(key for row in self.rows for key in row))

    def to_json(self) -> dict[str, Json]:
        """Plain containers for `json.dumps`."""
        return {"title": self.title, "note": self.note, "rows": [_flat(row) for row in self.rows]}

    @classmethod
    def from_json(cls, value: Json, where: str) -> "Table":
        """The table that `to_json` wrote.

        Raises:
            UserError: not a table; names `where` it was found.
        """
        if not isinstance(value, dict) or not isinstance(value.get("title"), str):
            raise UserError(f"{where}: a table needs a title")
        rows, note = value.get("rows"), value.get("note", "")
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise UserError(f"{where}: table {value['title']!r} needs a list of rows")
        return cls(
            str(value["title"]),
            str(note),
            tuple(_estimates(row, where) for row in rows if isinstance(row, dict)),
        )


@dataclass(frozen=True)
class Evaluation:
    """What a run's evaluation found: a few numbers to print large, and tables."""

    tables: tuple[Table, ...]
    headline: dict[str, float] = field(default_factory=dict)

    def _repr_html_(self) -> str:
        """All tables, for notebooks."""
        return "".join(
            f"<b>{escape(table.title)}</b><p>{escape(table.note)}</p>"
            + html_table(
                table.columns, ([_text(row.get(c)) for c in table.columns] for row in table.rows)
            )
            for table in self.tables
        )

    def to_json(self) -> dict[str, Json]:
        """Plain containers for `json.dumps`."""
        headline: dict[str, Json] = dict(self.headline)
        return {"headline": headline, "tables": [table.to_json() for table in self.tables]}

    @classmethod
    def from_json(cls, value: Json, where: str) -> "Evaluation":
        """The evaluation that `to_json` wrote.

        Raises:
            UserError: something else; names `where` it was found.
        """
        if not isinstance(value, dict):
            raise UserError(f"{where}: expected an object with 'headline' and 'tables'")
        tables, headline = value.get("tables", []), value.get("headline", {})
        if not isinstance(tables, list) or not isinstance(headline, dict):
            raise UserError(f"{where}: expected a list of 'tables' and an object 'headline'")
        numbers: dict[str, float] = {}
        for label, number in headline.items():
            if not isinstance(number, int | float):
                raise UserError(f"{where}: headline {label!r} is no number")
            numbers[label] = float(number)
        return cls(tuple(Table.from_json(table, where) for table in tables), numbers)


def _text(cell: Cell) -> str | int | float | bool | None:
    if not isinstance(cell, Estimate):
        return cell
    if cell.low is None or cell.high is None:
        return cell.value
    return f"{cell.value:.3g} [{cell.low:.3g}, {cell.high:.3g}]"


def _flat(row: Mapping[str, Cell]) -> dict[str, Json]:
    flat: dict[str, Json] = {}
    for key, cell in row.items():
        if isinstance(cell, Estimate):
            flat |= {key: cell.value, f"{key}_low": cell.low, f"{key}_high": cell.high}
        else:
            flat[key] = cell
    return flat


def _estimates(row: Mapping[str, Json], where: str) -> Row:
    """Puts a value and its `_low` and `_high` back together."""
    merged: Row = {}
    part_of_estimate: set[str] = set()
    for key, cell in row.items():
        if isinstance(cell, list | dict):
            raise UserError(f"{where}: cell {key!r} holds {type(cell).__name__}, not one value")
        low, high = f"{key}_low", f"{key}_high"
        is_missing = cell is None and row.get(low) is None and row.get(high) is None
        if {low, high} <= row.keys() and (is_missing or isinstance(cell, int | float)):
            part_of_estimate |= {low, high}
            if isinstance(cell, int | float):
                merged[key] = Estimate(cell, _number(row[low]), _number(row[high]))
            else:
                merged[key] = None
        elif key not in part_of_estimate:
            merged[key] = cell
    return merged


def _number(value: Json) -> float | None:
    return float(value) if isinstance(value, int | float) else None
