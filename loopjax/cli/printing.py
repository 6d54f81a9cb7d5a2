"""Tables of results on stdout."""

import sys
from collections.abc import Sequence

import pyarrow as pa
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from loopjax.cli.terminal import printable, say
from loopjax.evaluation.tables import Evaluation

PRINTED_TABLES = 3  # the rest is in evaluation.json and the report


def stdout() -> Console:
    """The console for results; a file or pipe gets lines of one width."""
    width = None if sys.stdout.isatty() else 160
    return Console(width=width, highlight=False)


def cell(value: object) -> str:
    """A table's cell: text from files can neither style nor reorder the table."""
    return "" if value is None else escape(printable(str(value)))


def print_ranking(rows: pa.Table, top: int, n_rows: int) -> None:
    """Prints the first `top` of ranked loops; `n_rows` is how many there are at all."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("rank", justify="right")
    for name in ("score", "percentile", "p-value"):
        table.add_column(name, justify="right")
    table.add_column("anomaly")
    table.add_column("loop", overflow="fold")
    for row in rows.slice(0, top).to_pylist():
        p_value = "" if row["p_value"] is None else f"{row['p_value']:.3g}"
        table.add_row(
            str(row["rank"]),
            f"{row['score']:.6g}",
            f"{row['percentile']:.1f}",
            p_value,
            "yes" if row["is_anomaly"] else "",
            cell(row["path"]),
        )
    stdout().print(table)
    hidden = n_rows - top
    if hidden > 0:
        say(f"{hidden} more loops are less anomalous")


def print_table(rows: pa.Table, columns: Sequence[str], top: int | None = None) -> None:
    """Prints some columns of the first rows of a table."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in columns:
        is_number = not pa.types.is_string(rows.schema.field(name).type)
        label = name.replace("_", " ")
        table.add_column(label, justify="right" if is_number else "left", overflow="fold")
    for row in rows.select(list(columns)).slice(0, top).to_pylist():
        table.add_row(*(cell(_shown(row[name])) for name in columns))
    stdout().print(table)
    if top is not None and len(rows) > top:
        say(f"{len(rows) - top} more")


def print_evaluation(evaluation: Evaluation) -> None:
    """Prints the first tables of an evaluation."""
    from loopjax.report.tables import shown_table

    for part in map(shown_table, evaluation.tables[:PRINTED_TABLES]):
        table = Table(title=cell(part.title), box=None, pad_edge=False, header_style="bold")
        table.title_justify = "left"
        for column in part.columns:
            table.add_column(cell(column.label), justify="right" if column.is_numeric else "left")
        for row in part.rows:
            table.add_row(*(cell(value) for value in row))
        stdout().print(table)


def _shown(value: object) -> object:
    return f"{value:.4g}" if isinstance(value, float) else value
