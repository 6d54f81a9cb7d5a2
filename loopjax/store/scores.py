"""Scores of a detector as Parquet and CSV files."""

import csv
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from loopjax.errors import UserError
from loopjax.io import write_atomically
from loopjax.store.parquet import first_line, write_parquet
from loopjax.store.schema import read_metadata, with_prefix


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
    try:
        table = pq.ParquetFile(path, page_checksum_verification=True).read()
    except (OSError, pa.ArrowInvalid) as error:
        raise UserError(f"{path} is damaged: {first_line(error)}; score again") from None
    if "score" not in table.schema.names:
        raise UserError(f"{path} has no column 'score'; columns: {table.schema.names}")
    return Scores(table.replace_schema_metadata(None), read_metadata(table.schema))


def write_csv(table: pa.Table, path: Path) -> None:
    """Writes a table as UTF-8 CSV; quotes, newlines and separators in names are safe.

    Raises:
        WriteError: the file could not be written.
    """
    names = [f.name for f in table.schema if not pa.types.is_binary(f.type)]
    columns = [table[name].to_pylist() for name in names]

    def write(temporary: Path) -> None:
        with temporary.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(names)
            for row in zip(*columns, strict=True):
                writer.writerow([";".join(v) if isinstance(v, list) else v for v in row])

    write_atomically(path, write)
