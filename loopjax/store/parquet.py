"""Parquet files with checksums: written atomically, read with every page checked."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from loopjax.errors import UserError
from loopjax.io import write_atomically
from loopjax.store.schema import EMBEDDING

_REPAIR = "run the same `loopjax embed` again to redo its rows"


def write_parquet(table: pa.Table, path: Path) -> None:
    """Writes a table atomically.

    Raises:
        WriteError: disk full, no permission and the like; nothing is left behind.
    """
    path = Path(path)
    encodings: dict[str, Any] = {  # random mantissas compress as byte planes, not as a dictionary
        "use_dictionary": [name for name in table.schema.names if name != EMBEDDING],
        "use_byte_stream_split": [f"{EMBEDDING}.list.element"]
        if EMBEDDING in table.schema.names
        else False,
    }

    def write(temporary: Path) -> None:
        pq.write_table(
            table,
            temporary,
            compression="zstd",
            row_group_size=1024,  # more would only buffer more while it is written
            write_page_checksum=True,
            **encodings,
        )

    write_atomically(path, write)


def open_part(part: Path) -> pq.ParquetFile:
    """Opens a shard with checksum verification.

    Raises:
        UserError: the file is damaged.
    """
    try:
        return pq.ParquetFile(part, page_checksum_verification=True)
    except (OSError, pa.ArrowInvalid) as error:
        raise UserError(f"{part} is damaged: {first_line(error)}; {_REPAIR}") from None


def read_matrix(part: Path, file: pq.ParquetFile) -> np.ndarray:
    """Reads the embeddings of one shard, float32 [n, D].

    Raises:
        UserError: damaged file, no embedding column, rows of different widths, NaN.
    """
    if EMBEDDING not in file.schema_arrow.names:
        raise UserError(f"{part} has no column {EMBEDDING!r}; columns: {file.schema_arrow.names}")
    column = read_columns(part, file, [EMBEDDING])[EMBEDDING]
    matrix = _as_matrix(pa.concat_arrays(column.chunks), part)
    require_finite(matrix, str(part))
    return matrix


def read_columns(part: Path, file: pq.ParquetFile, names: list[str]) -> pa.Table:
    """Reads columns with every page checked.

    Raises:
        UserError: damaged file.
    """
    try:
        return file.read(columns=names).replace_schema_metadata(None)
    except (OSError, pa.ArrowInvalid) as error:
        raise UserError(f"{part} is damaged: {first_line(error)}; {_REPAIR}") from None


def require_finite(matrix: np.ndarray, where: str) -> None:
    """Refuses NaN and infinity, naming the first bad row."""
    bad = ~np.isfinite(matrix).all(axis=1)
    if bad.any():
        raise UserError(
            f"{where}: row {int(np.argmax(bad))} holds NaN or infinity "
            f"({int(bad.sum())} such rows); embed these loops again"
        )


def _as_matrix(column: pa.Array, part: Path) -> np.ndarray:
    kind = column.type
    if not (
        pa.types.is_fixed_size_list(kind) or pa.types.is_list(kind) or pa.types.is_large_list(kind)
    ):
        raise UserError(f"{part}: column {EMBEDDING!r} is {kind}, expected lists of numbers")
    if column.null_count:
        row = int(np.argmax(np.asarray(column.is_null())))
        raise UserError(f"{part}: row {row} has no embedding")
    if pa.types.is_fixed_size_list(kind):
        width, lengths = kind.list_size, np.full(len(column), kind.list_size)
    else:
        lengths = np.asarray(column.value_lengths())
        width = int(lengths[0]) if len(lengths) else 0
    if (lengths != width).any():
        row = int(np.argmax(lengths != width))
        raise UserError(f"{part}: row {row} has {lengths[row]} values, the others {width}")
    values = column.flatten().to_numpy(zero_copy_only=False)
    return np.asarray(values, np.float32).reshape(len(column), width)


def first_line(error: Exception) -> str:
    """The first line of a library's message, which may be long."""
    return str(error).splitlines()[0] if str(error) else type(error).__name__
