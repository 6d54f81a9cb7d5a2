"""Embeddings read back from a store, or from files of other origin.

A store is a folder of `part-*.parquet` shards with one row per loop and the encoder's identity in
the file metadata, and a list of rejected inputs. Shards of different encoders or settings never
mix.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np
import pyarrow as pa

from loopjax.errors import UserError
from loopjax.io.remote import listed, place_of
from loopjax.store.columns import as_matrix, repeated_values, row_order
from loopjax.store.display import embeddings_html, require_package
from loopjax.store.failures import read_failures
from loopjax.store.foreign import GET_AGAIN, SUFFIXES, read_foreign_file, read_tables
from loopjax.store.parquet import open_footer, open_parquet, require_finite
from loopjax.store.schema import (
    EMBEDDING,
    FAILURE_SCHEMA,
    IDENTITY_KEYS,
    PROJECTION,
    SCHEMA_VERSION,
    read_metadata,
)

if TYPE_CHECKING:  # neither is needed to read a store
    import pandas
    import polars

BLOCK_ROWS = 8192  # handled at once where a store is too large for memory


@dataclass(frozen=True)
class Embeddings:
    """Embeddings with their row table.

    Attributes:
        matrix: float32 [N, D].
        table: N rows (`ROW_FIELDS`, fewer for files of other origin), same order as `matrix`;
            column `id` is unique.
        metadata: encoder, weights_sha256, preprocessing, ... as text.
        failures: inputs that were rejected (`FAILURE_SCHEMA`); may be empty.
    """

    matrix: np.ndarray
    table: pa.Table
    metadata: dict[str, str]
    failures: pa.Table = field(default_factory=FAILURE_SCHEMA.empty_table)

    def __len__(self) -> int:
        return len(self.matrix)

    def load(self) -> "Embeddings":
        """Itself, as all of it is in memory; see `StoredEmbeddings.load`."""
        return self

    def only(self, keep: np.ndarray) -> "Embeddings":
        """The rows where `keep`, bool [N], is true."""
        rows = self.table.filter(pa.array(keep))
        return Embeddings(self.matrix[keep], rows, self.metadata, self.failures)

    def columns(self, names: Sequence[str]) -> pa.Table:
        """Some columns of the row table, N rows; those that it lacks are left out."""
        return self.table.select([name for name in names if name in self.table.column_names])

    def replacing(self, name: str, values: pa.Array) -> Self:
        """The same with other values [N] in a column of the row table."""
        table = self.table.set_column(self.table.column_names.index(name), name, values)
        return replace(self, table=table)

    def to_arrow(self) -> pa.Table:
        """The row table with a column `embedding`, which pandas, Polars and DuckDB take."""
        width = self.matrix.shape[1] if self.matrix.ndim == 2 else 0
        values = pa.array(np.ascontiguousarray(self.matrix, np.float32).ravel())
        return self.table.append_column(EMBEDDING, pa.FixedSizeListArray.from_arrays(values, width))

    def to_pandas(self) -> "pandas.DataFrame":
        """The rows as a pandas frame, embeddings as arrays in the column `embedding`.

        Raises:
            UserError: pandas is not installed.
        """
        require_package("pandas")
        return self.to_arrow().to_pandas()

    def to_polars(self) -> "polars.DataFrame":
        """The rows as a Polars frame, embeddings in the column `embedding`.

        Raises:
            UserError: Polars is not installed.
        """
        require_package("polars")
        import polars

        return polars.DataFrame(self.to_arrow())

    def _repr_html_(self) -> str:
        """The first rows with players, for notebooks."""
        return embeddings_html(self.table, self.matrix.shape, self.metadata.get("encoder", ""))

    def similar(self, queries: np.ndarray | Sequence[str], k: int = 10) -> pa.Table:
        """The rows most similar to each query by cosine, exact, most similar first.

        Args:
            queries: embeddings [Q, D] of the same encoder, or ids of rows, which do not find
                themselves.
            k: rows per query; fewer where there are no more.

        Returns:
            Columns query (its number, or its id), rank, cosine, and those of `table`.

        Raises:
            UserError: an id that is not there, or vectors of another width.
        """
        from loopjax.store.similar import MostSimilar, similar_table  # jax, only where needed

        own = None
        if isinstance(queries, np.ndarray):
            names, vectors = [str(i) for i in range(len(queries))], np.atleast_2d(queries)
        else:
            names = list(queries)
            known = {row_id: i for i, row_id in enumerate(self.table["id"].to_pylist())}
            if missing := [name for name in names if name not in known]:
                raise UserError(f"no row has the id {missing[0]!r} ({len(missing)} such ids)")
            own = np.asarray([known[name] for name in names], np.int64)
            vectors = self.matrix[own]
        if vectors.shape[1:] != self.matrix.shape[1:]:
            raise UserError(
                f"a query has {vectors.shape[-1]} numbers, a row {self.matrix.shape[1]}"
            )
        best = MostSimilar(vectors, k, own)
        for start in range(0, len(self.matrix), BLOCK_ROWS):
            best.add(self.matrix[start : start + BLOCK_ROWS])
        return similar_table(names, *best.found(), self.table)


def read_embeddings(path: str | Path) -> Embeddings:
    """Reads a store folder, or a file of embeddings of another origin.

    Files are `.parquet`, `.csv`, `.tsv`, `.npy`, `.npz`, `.safetensors` and `.pkl`. The rows of
    tables come back sorted by path and id, those of arrays in their order. At its peak, reading
    takes about three times the size of the float32 matrix.

    Raises:
        UserError: nothing to read, a damaged file, shards of different encoders or settings, a
            row of the wrong width or with NaN, repeated ids; names file and row or column.
    """
    path = place_of(path)
    try:
        return _read_folder(path) if path.is_dir() else _read_file(path)
    except MemoryError:
        raise UserError(f"{path} does not fit into memory") from None


def part_files(folder: Path) -> list[Path]:
    """The finished shards of a store, sorted by name."""
    return listed(folder, "part-*.parquet")


def matrix_of(table: pa.Table, part: Path, column: str = EMBEDDING) -> np.ndarray:
    """The embeddings of a shard, or another column of vectors, float32 [n, D].

    Raises:
        UserError: no such column, rows of different widths, NaN.
    """
    if column not in table.schema.names:
        raise UserError(f"{part} has no column {column!r}; columns: {table.schema.names}")
    matrix = as_matrix(table[column], str(part))
    require_finite(matrix, str(part))
    return matrix


def _read_folder(folder: Path) -> Embeddings:
    parts = part_files(folder)
    if not parts and (folder / "embeddings").is_dir():
        return _read_folder(folder / "embeddings")
    failures = read_failures(folder)
    if not parts and len(failures):
        raise UserError(f"{folder} holds no embeddings: all {len(failures)} inputs were rejected")
    if not parts:
        raise UserError(f"{folder} holds no part-*.parquet; run `loopjax embed SRC -o {folder}`")
    if not read_metadata(open_parquet(parts[0]).schema):
        return _of_other_origin(*read_tables(parts, str(folder)), folder)
    return _read_parts(parts, failures)


def _read_file(path: Path) -> Embeddings:
    if not path.exists():
        raise UserError(f"{path}: no such store or embedding file")
    if not path.is_file():
        raise UserError(f"{path} is a device or pipe; give the path of a file")
    if path.suffix == ".parquet" and read_metadata(open_parquet(path, GET_AGAIN).schema):
        return _read_parts([path], FAILURE_SCHEMA.empty_table())
    if path.suffix not in SUFFIXES:
        raise UserError(f"{path} is neither a store folder nor one of {', '.join(SUFFIXES)}")
    return _of_other_origin(*read_foreign_file(path), path)


def _of_other_origin(matrix: np.ndarray, table: pa.Table, path: Path) -> Embeddings:
    return Embeddings(matrix, table, metadata_of_other_origin(path, matrix.shape[1]))


def metadata_of_other_origin(path: Path, n_features: int) -> dict[str, str]:
    """What is known of embeddings that another tool made."""
    return {
        "schema_version": SCHEMA_VERSION,
        "encoder": "external",
        "source": path.name,
        "embedding_dim": str(n_features),
    }


def _read_parts(parts: Sequence[Path], failures: pa.Table) -> Embeddings:
    metadata: dict[str, str] = {}
    tables = []
    for part in parts:
        file = open_parquet(part)
        found = read_metadata(file.schema)
        metadata = metadata or found
        require_same(metadata, found, parts[0], part)
        names = [name for name in file.schema.names if name not in (EMBEDDING, PROJECTION)]
        tables.append(file.read(names).replace_schema_metadata(None))
    table = pa.concat_tables(tables, promote_options="default")
    _require_distinct(table, parts, tables)
    order = row_order(table)
    place = np.empty_like(order)  # of each stored row in the sorted matrix
    place[order] = np.arange(len(order))
    matrix = np.empty((0, 0), np.float32)
    done = 0
    for part in parts:
        file = open_footer(part)
        columns = [name for name in file.schema.names if name == EMBEDDING]
        rows = matrix_of(file.read(columns), part)
        if done == 0:
            matrix = np.empty((len(table), rows.shape[1]), np.float32)
        if rows.shape[1] != matrix.shape[1]:
            raise UserError(
                f"{part}: row 0 has {rows.shape[1]} values, {parts[0]} has {matrix.shape[1]}"
            )
        matrix[place[done : done + len(rows)]] = rows
        done += len(rows)
    return Embeddings(matrix, table.take(pa.array(order)).combine_chunks(), metadata, failures)


def _require_distinct(table: pa.Table, parts: Sequence[Path], tables: Sequence[pa.Table]) -> None:
    """Refuses a store in which a loop occurs twice, as when a shard was copied into it."""
    repeated = repeated_values(table["id"])
    if repeated:
        holders = [
            part
            for part, rows in zip(parts, tables, strict=True)
            if rows["id"].index(repeated[0]).as_py() >= 0
        ]
        raise repeated_error(repeated[0], len(repeated), holders)


def repeated_error(row_id: str, count: int, holders: Sequence[Path]) -> UserError:
    """The error for a store in which `count` loops, such as `row_id`, occur more than once."""
    names = ", ".join(part.name for part in holders)
    return UserError(
        f"{holders[0].parent} holds loop {row_id} more than once (in {names}; "
        f"{count} such loops); remove the shard that does not belong there"
    )


def require_same(
    first: dict[str, str], other: dict[str, str], first_part: Path, other_part: Path
) -> None:
    """Refuses shards of different encoders or settings in one store.

    Raises:
        UserError: names both shards and what differs.
    """
    differing = [key for key in IDENTITY_KEYS if first.get(key) != other.get(key)]
    if differing:
        key = differing[0]
        raise UserError(
            f"{other_part} and {first_part} come from different encoders or settings: "
            f"{key} is {other.get(key)!r} and {first.get(key)!r}; keep them in separate stores"
        )
