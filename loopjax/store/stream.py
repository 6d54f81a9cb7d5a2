"""Embeddings that stay on disk: the row table column by column, the matrix block by block.

What does not fit into memory is read in the order of the shards, a few thousand rows at a time. A
shard is compared with its checksum when it is first opened.
"""

import copy
import dataclasses
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import pyarrow as pa

from loopjax.io.remote import place_of
from loopjax.store.columns import embedding_columns, matrix_of_columns, row_table
from loopjax.store.failures import read_failures
from loopjax.store.foreign import SUFFIXES, read_without
from loopjax.store.parquet import CheckedFile, open_footer, open_parquet, require_finite
from loopjax.store.read import (
    Embeddings,
    metadata_of_other_origin,
    part_files,
    read_embeddings,
    repeated_error,
    require_same,
)
from loopjax.store.schema import FAILURE_SCHEMA, ROW_FIELDS, read_metadata

_SMALLEST_PER_FLOAT32 = 16  # a compressed file may be this much smaller than its float32 matrix
RESIDENT_BYTES = 256 << 20  # embeddings up to this size are read whole
BLOCK_ROWS = 8192  # at most; row groups of our shards have 1,024


@dataclass(frozen=True)
class _Block:
    """Consecutive rows of one row group.

    Attributes:
        part: number of the file.
        row_group: in the file.
        skipped: rows of the row group before this block.
        first_row: number of the first row in the file.
        kept: bool [n], which of its rows are taken.
    """

    part: int
    row_group: int
    skipped: int
    first_row: int
    kept: np.ndarray

    @property
    def rows(self) -> slice:
        """Its rows in the file."""
        return slice(self.first_row, self.first_row + len(self.kept))


class StoredEmbeddings:
    """Embeddings in Parquet files, in the order of the files.

    Attributes:
        metadata: encoder, weights_sha256, preprocessing, ... as text.
        failures: inputs that were rejected (`FAILURE_SCHEMA`); may be empty.
        n_features: D.
        sizes: int [B], rows of each block.
    """

    def __init__(self, parts: Sequence[Path], failures: pa.Table):
        """Reads the footers and ids, and of files of other origin all columns but the embeddings.

        Raises:
            UserError: a damaged file, files of different encoders or settings, repeated ids.
        """
        self.failures = failures
        self._parts = list(parts)
        self._sound: set[Path] = set()  # compared with their checksums
        self._opened: tuple[Path, CheckedFile] | None = None
        self._blocks: list[_Block] = []
        self._part_rows: list[int] = []
        schema = open_footer(parts[0]).schema
        self.metadata = read_metadata(schema)
        for number, part in enumerate(parts):
            file = open_footer(part)
            require_same(self.metadata, read_metadata(file.schema), parts[0], part)
            groups = file.row_groups()
            self._blocks += _cut(number, groups)
            self._part_rows.append(sum(groups))
        self.sizes = np.array([len(block.kept) for block in self._blocks])
        self._names = embedding_columns(schema, str(parts[0]))
        self.n_features = self._matrix(next(self._batches(self._blocks[0], 1)), parts[0], 0).shape[
            1
        ]
        self._replaced: dict[str, pa.Array] = {}  # columns with a value for every stored row
        self._foreign: pa.Table | None = None
        if self.metadata:
            self._require_distinct()
        else:
            where = str(parts[0] if len(parts) == 1 else parts[0].parent)
            rest = read_without(parts, self._names, where)
            self._foreign = row_table(rest, where, len(rest))
            self.metadata = metadata_of_other_origin(Path(where), self.n_features)

    def __len__(self) -> int:
        return int(self.sizes.sum())

    def fingerprint(self) -> str:
        """Hash of the files' names, sizes and times, and of the rows that are taken."""
        digest = hashlib.sha256()
        for part in self._parts:
            stat = part.stat()
            digest.update(f"{part.name} {stat.st_size} {stat.st_mtime_ns}\n".encode())
        for block in self._blocks:
            digest.update(f"{block.part} {block.first_row} ".encode() + block.kept.tobytes())
        return digest.hexdigest()

    def only(self, keep: np.ndarray) -> "StoredEmbeddings":
        """The rows where `keep`, bool [N], is true; nothing is read."""
        chosen = copy.copy(self)
        chosen._blocks = []
        for block, own in zip(
            self._blocks, np.split(keep, np.cumsum(self.sizes)[:-1]), strict=True
        ):
            if own.any():
                kept = block.kept.copy()
                kept[kept] = own
                chosen._blocks.append(dataclasses.replace(block, kept=kept))
        chosen.sizes = np.array([np.count_nonzero(block.kept) for block in chosen._blocks])
        return chosen

    def replacing(self, name: str, values: pa.Array) -> Self:
        """The same with other values [N] in a column of the row table, in memory."""
        kept = self._kept()
        places = np.cumsum(kept) - 1
        chosen = copy.copy(self)
        own = values.take(pa.array(places, mask=~kept))
        chosen._replaced = {**self._replaced, name: own}
        return chosen

    def load(self) -> Embeddings:
        """All of it, in memory."""
        own = [name for name, _ in ROW_FIELDS]
        names = own if self._foreign is None else self._foreign.column_names
        matrix = np.concatenate(list(self.read(np.arange(len(self.sizes)))))
        return Embeddings(matrix, self.columns(names), self.metadata, self.failures)

    def columns(self, names: Sequence[str]) -> pa.Table:
        """Some columns of the row table, N rows; those that no file has are left out."""
        kept = self._kept()
        table = self._stored_columns(names, kept)
        for name in self._replaced.keys() & set(table.column_names):
            own = self._replaced[name].filter(pa.array(kept))
            table = table.set_column(table.column_names.index(name), name, own)
        return table

    def _stored_columns(self, names: Sequence[str], kept: np.ndarray) -> pa.Table:
        """`columns` as the files have them."""
        if self._foreign is not None:
            table = self._foreign.select([n for n in names if n in self._foreign.column_names])
            return table.filter(pa.array(kept))
        tables = []
        masks = np.split(kept, np.cumsum(self._part_rows)[:-1])
        for part, mask in zip(self._parts, masks, strict=True):
            if mask.any():
                file = self._open(part)
                table = file.read([n for n in names if n in file.schema.names])
                table = table.replace_schema_metadata(None)
                tables.append(table if mask.all() else table.filter(pa.array(mask)))
        return pa.concat_tables(tables, promote_options="default")

    def _kept(self) -> np.ndarray:
        """Which of all stored rows are taken, bool."""
        masks = [np.zeros(count, bool) for count in self._part_rows]
        for block in self._blocks:
            masks[block.part][block.rows] = block.kept
        return np.concatenate(masks)

    def read(self, numbers: np.ndarray) -> Iterator[np.ndarray]:
        """Blocks of the matrix by their numbers, float32 [sizes[number], D].

        Raises:
            UserError: a damaged file, NaN, rows of another width; names file and row.
        """
        following, batches = (-1, -1, -1), iter(())
        for number in numbers:
            block = self._blocks[number]
            if following != (block.part, block.row_group, block.skipped):
                batches = self._batches(block, BLOCK_ROWS)
                for _ in range(block.skipped // BLOCK_ROWS):
                    next(batches)
            rows = self._matrix(next(batches), self._parts[block.part], block.first_row)
            following = (block.part, block.row_group, block.skipped + len(block.kept))
            yield rows if block.kept.all() else rows[block.kept]

    def _batches(self, block: _Block, n_rows: int) -> Iterator[pa.Table]:
        """The embeddings of a block's row group."""
        file = self._open(self._parts[block.part])
        return file.blocks(self._names, n_rows, [block.row_group])

    def _matrix(self, table: pa.Table, part: Path, first_row: int) -> np.ndarray:
        rows = matrix_of_columns(table, str(part), first_row)
        require_finite(rows, str(part), first_row)
        return rows

    def _open(self, part: Path) -> CheckedFile:
        if self._opened is None or self._opened[0] != part:
            file = open_footer(part) if part in self._sound else open_parquet(part)
            self._sound.add(part)
            self._opened = (part, file)
        return self._opened[1]

    def _require_distinct(self) -> None:
        """Refuses a store in which a loop occurs twice; a hash stands for each id."""
        hashes = [
            np.fromiter((_hash(row_id) for row_id in ids["id"].to_pylist()), np.uint64, len(ids))
            for ids in (self._open(part).read(["id"]) for part in self._parts)
        ]
        known, counts = np.unique(np.concatenate(hashes), return_counts=True)
        if (counts > 1).any():
            repeated = known[counts > 1][0]
            holders = [p for p, own in zip(self._parts, hashes, strict=True) if repeated in own]
            ids = self._open(holders[0]).read(["id"])["id"].to_pylist()
            raise repeated_error(
                next(row_id for row_id in ids if _hash(row_id) == repeated),
                int((counts > 1).sum()),
                holders,
            )


def holds_embeddings(path: Path) -> bool:
    """Whether a path is a store, a run folder with one, or an embedding file."""
    if path.is_dir():
        return bool(part_files(path) or part_files(path / "embeddings"))
    return path.suffix in SUFFIXES


def open_embeddings(path: str | Path) -> Embeddings | StoredEmbeddings:
    """The embeddings of a store or a file: read whole, or left on disk where they are large.

    Left on disk are Parquet files with more than `RESIDENT_BYTES` of embeddings; see
    `read_embeddings` for what else can be read.

    Raises:
        UserError: see `read_embeddings`.
    """
    path = place_of(path)
    folder = path
    if path.is_dir() and not part_files(path):
        folder = path / "embeddings"
    parts = [path] if path.suffix == ".parquet" and path.is_file() else part_files(folder)
    if sum(part.stat().st_size for part in parts) < RESIDENT_BYTES // _SMALLEST_PER_FLOAT32:
        return read_embeddings(path)
    failures = read_failures(folder) if path.is_dir() else FAILURE_SCHEMA.empty_table()
    stored = StoredEmbeddings(parts, failures)
    too_large = len(stored) * stored.n_features * 4 > RESIDENT_BYTES
    return stored if too_large else read_embeddings(path)


def _cut(part: int, row_groups: Sequence[int]) -> Iterator[_Block]:
    """The blocks of a file."""
    first_row = 0
    for row_group, count in enumerate(row_groups):
        for skipped in range(0, count, BLOCK_ROWS):
            kept = np.ones(min(BLOCK_ROWS, count - skipped), bool)
            yield _Block(part, row_group, skipped, first_row + skipped, kept)
        first_row += count


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")
