"""The rejected inputs of a store.

They travel in the footer of a Parquet file that has the columns of the shards and no rows, because
other tools read a folder of Parquet files as one table: every file in it must have its columns.
The list is an Arrow stream, compressed and in base 64, under the key `loopjax_failures`.
"""

import base64
from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa

from loopjax.io.remote import listed
from loopjax.store.parquet import CheckedFile, first_line, open_parquet, write_parquet
from loopjax.store.schema import FAILURE_SCHEMA, Rejected, shard_schema

FAILURES_NAME = "failures-in-footer.parquet"
_PIECE = "failures-in-footer-p"  # one per process, until they are merged
_OLD_NAMES = ("failures.parquet", "failures-p*.parquet")  # ordinary tables of version 0.1
_NOTE = b"loopjax_failures"


def table_of_failures(failures: Iterable[Rejected]) -> pa.Table:
    """Rejected inputs as a table (`FAILURE_SCHEMA`)."""
    rows = list(failures)
    columns = {name: [getattr(row, name) for row in rows] for name in FAILURE_SCHEMA.names}
    return pa.table(columns, schema=FAILURE_SCHEMA)


def write_failures(failures: pa.Table, path: Path, metadata: dict[str, str]) -> None:
    """Writes a list of rejected inputs beside the shards that carry this metadata.

    Raises:
        WriteError: the file could not be written.
    """
    sink = pa.BufferOutputStream()
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    with pa.ipc.new_stream(sink, FAILURE_SCHEMA, options=options) as stream:
        stream.write_table(failures)
    empty = shard_schema(int(metadata["embedding_dim"]), metadata).empty_table()
    write_parquet(empty, path, {_NOTE: base64.b64encode(sink.getvalue())})


def read_failures(folder: Path) -> pa.Table:
    """Rejected inputs of a store, from all processes that wrote to it.

    Raises:
        UserError: a list is damaged; names the file.
    """
    return merge_failures(read_failure_file(open_parquet(file)) for file in failure_files(folder))


def failure_files(folder: Path) -> list[Path]:
    """The lists in a store, oldest first: one, or several of a run that goes on or was killed."""
    patterns = (*_OLD_NAMES, FAILURES_NAME, f"{_PIECE}*.parquet")
    return [file for pattern in patterns for file in listed(folder, pattern)]


def piece_of(folder: Path, process_index: int) -> Path:
    """The list that one process of a run writes."""
    return folder / f"{_PIECE}{process_index:03d}.parquet"


def unit_failures(folder: Path, unit: str, has_rows: bool) -> Path:
    """The list of a unit of work; where the unit has no rows, it stands for the whole unit."""
    return folder / f"{_PIECE}u{unit}{'' if has_rows else '-alone'}.parquet"


def read_failure_file(file: CheckedFile) -> pa.Table:
    """One list.

    Raises:
        UserError: it is damaged.
    """
    if _NOTE not in file.notes:
        try:
            return file.read().select(FAILURE_SCHEMA.names).cast(FAILURE_SCHEMA)
        except (KeyError, ValueError, pa.ArrowException) as error:
            raise file.damaged(first_line(error)) from None
    try:
        with pa.ipc.open_stream(base64.b64decode(file.notes[_NOTE])) as stream:
            return stream.read_all()
    except (ValueError, OSError, pa.ArrowException) as error:
        raise file.damaged(first_line(error)) from None


def merge_failures(tables: Iterable[pa.Table]) -> pa.Table:
    """One list sorted by path; of an input that was rejected twice, the later row counts."""
    rows = {row["key"]: row for table in tables for row in table.to_pylist()}
    ordered = sorted(rows.values(), key=lambda row: row["path"])
    return pa.Table.from_pylist(ordered, schema=FAILURE_SCHEMA)
