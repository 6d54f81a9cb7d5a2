"""Embeddings read back from a store, or from files of other origin.

A store is a folder of `part-*.parquet` shards with one row per loop and the encoder's identity in
the file metadata. Shards of different encoders or settings never mix.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from loopjax.errors import UserError
from loopjax.store.foreign import SUFFIXES, read_embedding_file
from loopjax.store.parquet import open_part, read_columns, read_matrix, require_finite
from loopjax.store.schema import (
    EMBEDDING,
    FAILURE_SCHEMA,
    IDENTITY_KEYS,
    SCHEMA_VERSION,
    read_metadata,
)

_STORED = "__stored_row"


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


def _read_parts(parts: Sequence[Path]) -> Embeddings:
    files = [open_part(part) for part in parts]
    metadata = read_metadata(files[0].schema_arrow)
    for part, file in zip(parts, files, strict=True):
        _require_same(metadata, read_metadata(file.schema_arrow), parts[0], part)
    names = [n for n in files[0].schema_arrow.names if n != EMBEDDING]
    tables = [read_columns(p, f, names) for p, f in zip(parts, files, strict=True)]
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
