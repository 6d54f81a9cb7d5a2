"""A store of any size, read a few thousand rows at a time."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from loopjax.errors import UserError
from loopjax.io.remote import place_of
from loopjax.store.parquet import open_footer
from loopjax.store.read import (
    BLOCK_ROWS,
    Embeddings,
    matrix_of,
    part_files,
    read_embeddings,
    require_same,
)
from loopjax.store.schema import EMBEDDING, PROJECTION, Project, read_metadata


@dataclass(frozen=True)
class Block:
    """Consecutive rows.

    Attributes:
        start: number of the first row.
        matrix: float32 [n, D].
        table: the columns asked for, n rows.
    """

    start: int
    matrix: np.ndarray
    table: pa.Table


@dataclass(frozen=True)
class StoredRows:
    """The rows of a store in the order in which they are stored, or of a file of another origin.

    Attributes:
        n_rows: how many.
        width: numbers of an embedding.
        columns: what there is besides the embedding.
        metadata: encoder, weights_sha256, preprocessing, ... as text.
    """

    n_rows: int
    width: int
    columns: tuple[str, ...]
    metadata: dict[str, str]
    _source: tuple[Path, ...] | Embeddings

    @property
    def parts(self) -> tuple[Path, ...]:
        """The shards, in the order of their rows; none for files of another origin."""
        return () if isinstance(self._source, Embeddings) else self._source

    def blocks(self, columns: Sequence[str] = ()) -> Iterator[Block]:
        """All rows with their embeddings, at most `BLOCK_ROWS` at a time.

        Raises:
            UserError: a damaged shard; names it.
        """
        if isinstance(self._source, Embeddings):
            for start in range(0, self.n_rows, BLOCK_ROWS):
                table = self._source.table.select(list(columns)).slice(start, BLOCK_ROWS)
                yield Block(start, self._source.matrix[start : start + BLOCK_ROWS], table)
            return
        start = 0
        for part in self._source:
            for block in _blocks_of(part, start, columns):
                yield block
                start += len(block.matrix)

    def matrices(self, among: np.ndarray) -> Iterator[np.ndarray]:
        """The embeddings of the rows where `among` (bool, all rows) is true, a block at a time.

        Raises:
            UserError: a damaged shard; names it.
        """
        for block in self.blocks():
            yield block.matrix[among[block.start : block.start + len(block.matrix)]]

    def projected(self, project: Project) -> Iterator[np.ndarray]:
        """All rows in the space that sounds share with texts, float32 [n, P] of unit length.

        Shards that were written without projections are projected now.

        Raises:
            UserError: a damaged shard; names it.
        """
        if isinstance(self._source, Embeddings):
            yield from (project(block.matrix) for block in self.blocks())
            return
        for part in self._source:
            file = open_footer(part)
            if PROJECTION in file.schema.names:
                for table in file.blocks([PROJECTION], BLOCK_ROWS):
                    yield matrix_of(table, part, PROJECTION)
            else:
                yield from (project(block.matrix) for block in _blocks_of(part, 0, ()))

    def table(self, columns: Sequence[str]) -> pa.Table:
        """Some columns of all rows.

        Raises:
            UserError: a damaged shard; names it.
        """
        if isinstance(self._source, Embeddings):
            return self._source.table.select(list(columns))
        parts = [open_footer(part).read(list(columns)) for part in self._source]
        return pa.concat_tables([part.replace_schema_metadata(None) for part in parts])

    def take(self, rows: np.ndarray, columns: Sequence[str]) -> pa.Table:
        """Some columns of rows, given by their numbers and in that order; also the embedding.

        Raises:
            UserError: a damaged shard; names it.
        """
        if isinstance(self._source, Embeddings):
            return self._source.table.select(list(columns)).take(pa.array(rows))
        found, places = [], []
        start = 0
        for part in self._source:
            file = open_footer(part)
            here = np.flatnonzero((rows >= start) & (rows < start + file.n_rows))
            if len(here):
                table = file.read(list(columns)).replace_schema_metadata(None)
                found.append(table.take(pa.array(rows[here] - start)))
                places.append(here)
            start += file.n_rows
        order = np.argsort(np.concatenate(places)) if places else np.zeros(0, int)
        return pa.concat_tables(found).take(pa.array(order)) if found else self.table(columns)[:0]

    def vectors(self, rows: np.ndarray) -> np.ndarray:
        """The embeddings of rows by their numbers, float32 [len(rows), D].

        Raises:
            UserError: a damaged shard; names it.
        """
        if isinstance(self._source, Embeddings):
            return self._source.matrix[rows]
        return matrix_of(self.take(rows, [EMBEDDING]), self._source[0])

    def find(self, names: Sequence[str], column: str = "id") -> np.ndarray:
        """Number of the first row that has each name in a column, -1 if none; int64 [len(names)].

        Raises:
            UserError: a damaged shard; names it.
        """
        found, start = np.full(len(names), -1), 0
        parts = [None] if isinstance(self._source, Embeddings) else self._source
        for part in parts:
            table = self.table([column]) if part is None else open_footer(part).read([column])
            for i in np.flatnonzero(found < 0).tolist():
                at = table[column].index(names[i]).as_py()
                found[i] = -1 if at < 0 else start + at
            start += len(table)
        return found


def open_rows(path: str | Path) -> StoredRows:
    """Opens a store for reading in blocks; files of another origin are read whole.

    Raises:
        UserError: nothing to read, shards of different encoders or settings, no rows.
    """
    path = place_of(path)
    folder = path / "embeddings" if (path / "embeddings").is_dir() else path
    parts = part_files(folder) if folder.is_dir() else []
    files = [open_footer(part) for part in parts]
    metadata = [read_metadata(file.schema) for file in files]
    if not files or not metadata[0]:
        whole = read_embeddings(path)
        if not len(whole):
            raise UserError(f"{path} holds no rows")
        return rows_in_memory(whole)
    for part, found in zip(parts, metadata, strict=True):
        require_same(metadata[0], found, parts[0], part)
    n_rows = sum(file.n_rows for file in files)
    if n_rows == 0:
        raise UserError(f"{path} holds no rows")
    columns = tuple(name for name in files[0].schema.names if name not in (EMBEDDING, PROJECTION))
    return StoredRows(n_rows, int(metadata[0]["embedding_dim"]), columns, metadata[0], tuple(parts))


def rows_in_memory(whole: Embeddings) -> StoredRows:
    """Embeddings in memory as if they were stored; at least one row."""
    names = tuple(whole.table.column_names)
    return StoredRows(len(whole), whole.matrix.shape[1], names, whole.metadata, whole)


def _blocks_of(part: Path, start: int, columns: Sequence[str]) -> Iterator[Block]:
    for table in open_footer(part).blocks([*columns, EMBEDDING], BLOCK_ROWS):
        yield Block(start, matrix_of(table, part), table.drop_columns([EMBEDDING]))
        start += len(table)
