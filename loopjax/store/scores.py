"""Scores of a detector as Parquet and CSV files, here or on an object store.

Under a name that ends in `.parquet` they are one file; under any other a folder of parts, each of
which says how many there are: an object store has no moment at which a whole folder appears.
"""

import csv
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import TextIO

import pyarrow as pa

from loopjax.errors import UserError
from loopjax.io import write_atomically, write_folder
from loopjax.io.remote import is_remote, listed, place_of
from loopjax.store.parquet import open_parquet, write_parquet, write_parquet_tables
from loopjax.store.schema import read_metadata, with_prefix

PARTS_KEY = "n_parts"  # of the metadata
_PARTS = "part-*.parquet"
SCORED_COLUMNS = ("id", "path", "group", "flags", "duration_s")  # of the row table, where there
FORMULA = ("=", "+", "-", "@", "\t", "\r")  # what makes a spreadsheet compute a cell


@dataclass(frozen=True)
class Scores:
    """One detector's scores.

    Attributes:
        table: columns id, path, score, percentile, p_value, is_anomaly, rank (+ group).
        metadata: model, score convention and the like, as text.
    """

    table: pa.Table
    metadata: dict[str, str]


def score_table(rows: pa.Table, columns: pa.Table) -> pa.Table:
    """What a scores file says of N rows: who they are, what was computed, what else is known.

    Args:
        rows: columns of a store's row table (`SCORED_COLUMNS`).
        columns: score, percentile, p_value, q_value, is_anomaly, rank, scored_as.
    """
    names = [name for name in SCORED_COLUMNS if name in rows.column_names]
    table = rows.select(names[:2])
    for source, chosen in ((columns, columns.column_names), (rows, names[2:])):
        for name in chosen:
            table = table.append_column(name, source[name])
    return table.replace_schema_metadata(None)


def write_scores(scores: Scores, path: str | Path, csv: str | Path | None = None) -> None:
    """Writes scores as Parquet and, if asked, as CSV (binary columns left out).

    Raises:
        UserError: something else lies in the folder.
        WriteError: a file could not be written.
    """
    place = place_of(path)
    require_scores_place(place)
    write_score_tables([scores.table], 1, place, scores.metadata)
    if csv is not None:
        write_csv(scores.table, place_of(csv))


def require_scores_place(place: Path) -> None:
    """Refuses a folder of other things, which scores would take the place of.

    Raises:
        UserError: names it.
    """
    if place.is_dir() and not all(fnmatch(inside.name, _PARTS) for inside in place.iterdir()):
        raise UserError(f"{place} is a folder of other things; choose another -o")


def write_score_tables(
    tables: Iterable[pa.Table], n_tables: int, place: Path, metadata: dict[str, str]
) -> None:
    """Writes tables of scores as one file or as a folder, in place of earlier ones.

    Args:
        tables: parts of the ranking.
        n_tables: how many.
        place: of the file or the folder.
        metadata: of `Scores`.

    Raises:
        WriteError: a file could not be written.
    """
    if place.suffix == ".parquet":
        own = with_prefix(metadata)
        write_parquet_tables((table.replace_schema_metadata(own) for table in tables), place)
        return
    noted = with_prefix({**metadata, PARTS_KEY: str(n_tables)})

    def write(folder: Path) -> None:
        for number, table in enumerate(tables):
            part = folder / f"part-{number:05d}.parquet"
            write_parquet(table.replace_schema_metadata(noted), part)

    if not is_remote(place):
        write_folder(place, write)
        return
    for old in listed(place, _PARTS):
        old.unlink()
    write(place)


def read_scores(path: str | Path) -> Scores:
    """Reads scores written by `write_scores`.

    Raises:
        UserError: no such file, a damaged one, a folder that lacks parts, or no score column.
    """
    path = place_of(path)
    files = score_files(path)
    if not files:
        missing = path / "scores.parquet" if path.is_dir() else path
        raise UserError(f"{missing}: no such score file; make one with `loopjax score`")
    tables = []
    for file in files:
        tables.append(open_parquet(file, repair="score again").read())
        if "score" not in tables[-1].schema.names:
            raise UserError(f"{file} has no column 'score'; columns: {tables[-1].schema.names}")
    metadata = read_metadata(tables[0].schema)
    if lacks_parts(files, metadata):
        raise UserError(
            f"{path} holds {len(files)} of {metadata[PARTS_KEY]} parts; give the same "
            "`loopjax score` again"
        )
    whole = pa.concat_tables(tables, promote_options="default") if tables[1:] else tables[0]
    return Scores(whole.replace_schema_metadata(None), metadata)


def score_files(path: Path) -> list[Path]:
    """The files of scores at a path: itself, one in a run folder, or the parts of a folder."""
    if not path.is_dir():
        return [path] if path.is_file() else []
    whole = path / "scores.parquet"
    return [whole] if whole.is_file() else listed(path, _PARTS)


def is_folder_of_scores(path: Path) -> bool:
    """Whether a path is a folder that holds scores in parts, and is no run."""
    return path.is_dir() and score_files(path) not in ([], [path / "scores.parquet"])


def lacks_parts(files: Sequence[Path], metadata: Mapping[str, str]) -> bool:
    """Whether a folder has other parts than its first one says in its metadata."""
    return PARTS_KEY in metadata and metadata[PARTS_KEY] != str(len(files))


def write_csv(table: pa.Table, path: Path) -> None:
    """Writes a table as UTF-8 CSV, see `write_rows`.

    Raises:
        WriteError: the file could not be written.
    """
    write_csv_tables([table], path)


def write_csv_tables(tables: Iterable[pa.Table], path: Path) -> None:
    """Writes tables of the same columns below one another as UTF-8 CSV, see `write_rows`.

    Raises:
        WriteError: the file could not be written.
    """

    def write(temporary: Path) -> None:
        with temporary.open("w", encoding="utf-8", newline="") as file:
            for number, table in enumerate(tables):
                write_rows(table, file, with_names=number == 0)

    write_atomically(path, write)


def write_rows(table: pa.Table, file: TextIO, with_names: bool = True) -> None:
    """Writes a table as CSV without its binary columns; lists are joined by semicolons.

    Quotes, newlines and separators in names are safe, and a text that a spreadsheet would take for
    a formula gets an apostrophe in front.
    """
    names = [f.name for f in table.schema if not pa.types.is_binary(f.type)]
    writer = csv.writer(file)
    if with_names:
        writer.writerow(names)
    for batch in table.select(names).to_batches(max_chunksize=4096):
        for row in zip(*(column.to_pylist() for column in batch.columns), strict=True):
            writer.writerow([_cell(value) for value in row])


def _cell(value: object) -> object:
    if isinstance(value, list):
        value = ";".join(map(str, value))
    if isinstance(value, str) and value.startswith(FORMULA):
        return f"'{value}"
    return value
