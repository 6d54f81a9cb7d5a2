"""Scores of a detector as Parquet and CSV files."""

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import pyarrow as pa

from loopjax.errors import UserError
from loopjax.io import write_atomically
from loopjax.store.parquet import open_parquet, write_parquet
from loopjax.store.schema import read_metadata, with_prefix

_FORMULA = ("=", "+", "-", "@", "\t", "\r")  # what makes a spreadsheet compute a cell


@dataclass(frozen=True)
class Scores:
    """One detector's scores.

    Attributes:
        table: columns id, path, score, percentile, p_value, is_anomaly, rank (+ group).
        metadata: model, score convention and the like, as text.
    """

    table: pa.Table
    metadata: dict[str, str]


def write_scores(scores: Scores, path: str | Path, csv: str | Path | None = None) -> None:
    """Writes scores as Parquet and, if asked, as CSV (binary columns left out).

    Raises:
        WriteError: a file could not be written.
    """
    table = scores.table.replace_schema_metadata(with_prefix(scores.metadata))
    write_parquet(table, Path(path))
    if csv is not None:
        write_csv(scores.table, Path(csv))


def read_scores(path: str | Path) -> Scores:
    """Reads scores written by `write_scores`.

    Raises:
        UserError: no such file, a damaged one, or one without a score column.
    """
    path = Path(path)
    if path.is_dir():
        path = path / "scores.parquet"
    if not path.is_file():
        raise UserError(f"{path}: no such score file; make one with `loopjax score`")
    table = open_parquet(path, repair="score again").read()
    if "score" not in table.schema.names:
        raise UserError(f"{path} has no column 'score'; columns: {table.schema.names}")
    return Scores(table.replace_schema_metadata(None), read_metadata(table.schema))


def write_csv(table: pa.Table, path: Path) -> None:
    """Writes a table as UTF-8 CSV, see `write_rows`.

    Raises:
        WriteError: the file could not be written.
    """

    def write(temporary: Path) -> None:
        with temporary.open("w", encoding="utf-8", newline="") as file:
            write_rows(table, file)

    write_atomically(path, write)


def write_rows(table: pa.Table, file: TextIO) -> None:
    """Writes a table as CSV without its binary columns; lists are joined by semicolons.

    Quotes, newlines and separators in names are safe, and a text that a spreadsheet would take for
    a formula gets an apostrophe in front.
    """
    names = [f.name for f in table.schema if not pa.types.is_binary(f.type)]
    writer = csv.writer(file)
    writer.writerow(names)
    for batch in table.select(names).to_batches(max_chunksize=4096):
        for row in zip(*(column.to_pylist() for column in batch.columns), strict=True):
            writer.writerow([_cell(value) for value in row])


def _cell(value: object) -> object:
    if isinstance(value, list):
        value = ";".join(map(str, value))
    if isinstance(value, str) and value.startswith(_FORMULA):
        return f"'{value}"
    return value
