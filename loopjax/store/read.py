"""Embeddings as open columnar files: what a store holds and how to read it back.

A store is a folder of `part-*.parquet` shards (`shards.py` writes them) with one row per loop and
the encoder's identity in the file metadata. Shards of different encoders or settings never mix.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from loopjax.errors import UserError
from loopjax.io import write_atomically
from loopjax.store.foreign import SUFFIXES, read_embedding_file

SCHEMA_VERSION = "1"
PREFIX = "loopjax."  # of our keys in the Parquet metadata
EMBEDDING = "embedding"
_STORED = "__stored_row"
_REPAIR = "run the same `loopjax embed` again to redo its rows"
IDENTITY_KEYS = (
    "schema_version",
    "encoder",
    "weights_sha256",
    "preprocessing_sha256",
    "embedding_dim",
)

ROW_FIELDS = (
    ("id", pa.string()),  # first 16 hex of the content's SHA-256, "-", first 8 of the key
    ("key", pa.string()),
    ("path", pa.string()),  # for people; bytes that are not UTF-8 are escaped
    ("path_bytes", pa.binary()),  # absolute, exact
    ("group", pa.string()),
    ("sha256", pa.string()),
    ("size_bytes", pa.int64()),
    ("mtime_ns", pa.int64()),
    ("sample_rate_hz", pa.int32()),  # of the file
    ("channels", pa.int32()),
    ("n_frames", pa.int64()),
    ("duration_s", pa.float64()),
    ("subtype", pa.string()),
    ("flags", pa.list_(pa.string())),
    ("crop_std", pa.float32()),  # spread over random crops; null with deterministic crops
)
FAILURE_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("path", pa.string()),
        ("path_bytes", pa.binary()),
        ("stage", pa.string()),
        ("reason", pa.string()),
        ("message", pa.string()),
        ("size_bytes", pa.int64()),
    ]
)


@dataclass(frozen=True)
class Embeddings:
    """Embeddings with their row table.

    Attributes:
        matrix: float32 [N, D].
        table: N rows (`ROW_FIELDS`, fewer for files of other origin), same order as `matrix`.
        metadata: encoder, weights_sha256, preprocessing, ... as text.
        failures: inputs that were rejected (`FAILURE_SCHEMA`); may be empty.
    """

    matrix: np.ndarray
    table: pa.Table
    metadata: dict[str, str]
    failures: pa.Table = field(default_factory=FAILURE_SCHEMA.empty_table)

    def __len__(self) -> int:
        return len(self.matrix)


def shard_schema(embedding_dim: int, metadata: dict[str, str]) -> pa.Schema:
    """Schema of a shard, with its metadata."""
    width = pa.list_(pa.float32(), embedding_dim)
    return pa.schema([*ROW_FIELDS, (EMBEDDING, width)], metadata=with_prefix(metadata))


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


def read_embeddings(path: str | Path) -> Embeddings:
    """Reads a store folder, or a `.parquet`, `.npy`, `.npz` or `.pkl` file of embeddings.

    Rows come back sorted by path and id, whatever the order of the shards.

    Raises:
        UserError: nothing to read, a damaged file, shards of different encoders or settings, a
            row of the wrong width or with NaN; names file and row.
    """
    path = Path(path)
    if path.is_dir():
        parts = part_files(path)
        if not parts and (path / "embeddings").is_dir():
            return read_embeddings(path / "embeddings")
        if not parts:
            raise UserError(f"{path} holds no part-*.parquet; run `loopjax embed SRC -o {path}`")
        embeddings = _read_parts(parts)
        return Embeddings(
            embeddings.matrix, embeddings.table, embeddings.metadata, read_failures(path)
        )
    if not path.exists():
        raise UserError(f"{path}: no such store or embedding file")
    if path.suffix == ".parquet":
        return _read_parts([path])
    if path.suffix not in SUFFIXES:
        known = ", ".join([".parquet", *SUFFIXES])
        raise UserError(f"{path} is neither a store folder nor one of {known}")
    matrix, table, metadata = read_embedding_file(path)
    require_finite(matrix, str(path))
    return Embeddings(matrix, table, {"schema_version": SCHEMA_VERSION, **metadata})


def part_files(folder: Path) -> list[Path]:
    """The finished shards of a store, sorted by name."""
    return sorted(folder.glob("part-*.parquet"))


def read_failures(folder: Path) -> pa.Table:
    """Rejected inputs of a store, from all processes that wrote to it."""
    rows: dict[str, dict[str, Any]] = {}
    newer = sorted(Path(folder).glob("failures-p*.parquet"))  # of a run that goes on or was killed
    for file in (Path(folder) / "failures.parquet", *newer):
        if file.exists():
            rows.update((row["key"], row) for row in pq.read_table(file).to_pylist())
    ordered = sorted(rows.values(), key=lambda row: row["path"])
    return pa.Table.from_pylist(ordered, schema=FAILURE_SCHEMA)


def read_metadata(schema: pa.Schema) -> dict[str, str]:
    """Our keys in a file's metadata."""
    return {
        key.decode()[len(PREFIX) :]: value.decode()
        for key, value in (schema.metadata or {}).items()
        if key.startswith(PREFIX.encode())
    }


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
    column = _read_columns(part, file, [EMBEDDING])[EMBEDDING]
    matrix = _as_matrix(pa.concat_arrays(column.chunks), part)
    require_finite(matrix, str(part))
    return matrix


def _read_columns(part: Path, file: pq.ParquetFile, names: list[str]) -> pa.Table:
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


def _read_parts(parts: Sequence[Path]) -> Embeddings:
    files = [open_part(part) for part in parts]
    metadata = read_metadata(files[0].schema_arrow)
    for part, file in zip(parts, files, strict=True):
        _require_same(metadata, read_metadata(file.schema_arrow), parts[0], part)
    names = [n for n in files[0].schema_arrow.names if n != EMBEDDING]
    tables = [_read_columns(p, f, names) for p, f in zip(parts, files, strict=True)]
    table = _with_ids(pa.concat_tables(tables, promote_options="default"))
    table = table.append_column(_STORED, pa.array(np.arange(len(table))))
    table = table.sort_by([("path", "ascending"), ("id", "ascending"), (_STORED, "ascending")])
    place = np.empty(len(table), np.int64)  # of each stored row in the sorted matrix
    place[np.asarray(table[_STORED])] = np.arange(len(table))
    matrix = np.empty((0, 0), np.float32)
    done = 0
    for part, file in zip(parts, files, strict=True):
        rows = read_matrix(part, file)
        if done == 0:
            matrix = np.empty((len(table), rows.shape[1]), np.float32)
        if rows.shape[1] != matrix.shape[1]:
            raise UserError(
                f"{part}: row 0 has {rows.shape[1]} values, {parts[0]} has {matrix.shape[1]}"
            )
        matrix[place[done : done + len(rows)]] = rows
        done += len(rows)
    return Embeddings(matrix, table.drop_columns([_STORED]).combine_chunks(), metadata)


def _with_ids(table: pa.Table) -> pa.Table:
    """Adds the columns that files of other origin may lack."""
    if "id" not in table.schema.names:
        table = table.append_column("id", pa.array([f"row-{i:09d}" for i in range(len(table))]))
    if "path" not in table.schema.names:
        table = table.append_column("path", pa.array([""] * len(table), pa.string()))
    return table


def _require_same(
    first: dict[str, str], other: dict[str, str], first_part: Path, other_part: Path
) -> None:
    differing = [key for key in IDENTITY_KEYS if first.get(key) != other.get(key)]
    if differing:
        key = differing[0]
        raise UserError(
            f"{other_part} and {first_part} come from different encoders or settings: "
            f"{key} is {other.get(key)!r} and {first.get(key)!r}; keep them in separate stores"
        )


def with_prefix(metadata: dict[str, str]) -> dict[str, str]:
    """Metadata under the keys that `read_metadata` finds in a file."""
    return {PREFIX + key: str(value) for key, value in metadata.items()}


def first_line(error: Exception) -> str:
    """The first line of a library's message, which may be long."""
    return str(error).splitlines()[0] if str(error) else type(error).__name__
