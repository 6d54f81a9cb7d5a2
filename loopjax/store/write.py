"""Writing shards: a shard appears under its final name only when it is complete and synced."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from filelock import FileLock

from loopjax.store.failures import piece_of, table_of_failures, write_failures
from loopjax.store.parquet import read_parquet, write_parquet
from loopjax.store.schema import (
    PLACE_FIELDS,
    Place,
    Rejected,
    StoreRow,
    as_int64,
    shard_schema,
    table_of_rows,
)

REWRITE_LOCK_NAME = ".rewrite.lock"
FLUSH_S = 60.0  # a shard is closed at the latest this long after its first row


class ShardWriter:
    """Collects rows and writes them as shards; one per process."""

    def __init__(
        self,
        folder: Path,
        metadata: dict[str, str],
        shard_rows: int,
        process_index: int = 0,
        process_count: int = 1,
    ):
        """Continues the numbering of this process's earlier shards."""
        self._folder = folder
        self._metadata = metadata
        self._schema = shard_schema(int(metadata["embedding_dim"]), metadata)
        self._shard_rows = shard_rows
        own = f"p{process_index:03d}-" if process_count > 1 else ""
        self._prefix = f"part-{own}"
        self._failures_path = piece_of(folder, process_index)
        taken = [p.stem.removeprefix(self._prefix) for p in folder.glob(f"{self._prefix}*.parquet")]
        self._next = 1 + max((int(t) for t in taken if t.isdigit()), default=-1)
        self._rows: list[StoreRow] = []
        self._first_row_s = 0.0
        self._failures: list[Rejected] = []
        self._unsaved_failures = False
        self._outdated: dict[Path, list[str]] = {}  # keys to drop from older shards
        self._moved: dict[Path, dict[str, Place]] = {}  # by key there, in older shards
        self._n_moved = 0

    def add(self, row: StoreRow, replaces: Path | None = None) -> None:
        """Takes a row; writes a shard when enough are there or the oldest waited long enough.

        Args:
            row: the finished loop.
            replaces: shard with an older row of the same key, which is dropped first.
        """
        if not self._rows:
            self._first_row_s = time.monotonic()
        self._rows.append(row)
        if replaces is not None:
            self._outdated.setdefault(replaces, []).append(row.key)
        waited_s = time.monotonic() - self._first_row_s
        if len(self._rows) >= self._shard_rows or waited_s > FLUSH_S:
            self.flush()

    def add_failure(self, failure: Rejected, replaces: Path | None = None) -> None:
        """Takes a rejected input."""
        self._failures.append(failure)
        self._unsaved_failures = True
        if replaces is not None:
            self._outdated.setdefault(replaces, []).append(failure.key)

    def move(self, part: Path, key: str, place: Place, replaces: Path | None = None) -> None:
        """Takes a new place for a row of an older shard.

        Args:
            part: the shard.
            key: what the row is called there.
            place: its key and file from now on.
            replaces: shard with an outdated row of the new key, which is dropped first.
        """
        self._moved.setdefault(part, {})[key] = place
        self._n_moved += 1
        if replaces is not None:
            self._outdated.setdefault(replaces, []).append(place.key)
        if self._n_moved >= self._shard_rows:
            self.flush()

    def skip(self, key: str) -> None:
        """Older shards stay as they are."""

    def flush(self) -> None:
        """Writes everything taken so far.

        Raises:
            WriteError: the shard could not be written; earlier shards stay valid.
        """
        for part, keys in self._outdated.items():  # a kill from here on only undoes these rows
            with FileLock(self._folder / REWRITE_LOCK_NAME):  # other processes of this run wait
                drop_rows(part, keys)
        self._outdated.clear()
        for part, places in self._moved.items():  # a kill leaves rows where they were
            with FileLock(self._folder / REWRITE_LOCK_NAME):
                move_rows(part, places)
        self._moved.clear()
        self._n_moved = 0
        if self._rows:
            table = table_of_rows(self._rows, self._schema)
            write_parquet(table, self._folder / f"{self._prefix}{self._next:05d}.parquet")
            self._next += 1
            self._rows.clear()
        if self._unsaved_failures:
            failures = table_of_failures(self._failures)
            write_failures(failures, self._failures_path, self._metadata)
            self._unsaved_failures = False


def drop_rows(part: Path, keys: Sequence[str]) -> None:
    """Rewrites a shard without some rows, atomically; an empty one disappears."""
    if not part.exists():
        return  # nothing was left of it
    table = read_parquet(part)
    keep = ~np.isin(np.asarray(table["key"]), list(keys))
    if keep.any():
        write_parquet(table.filter(pa.array(keep)), part)
    else:
        part.unlink()


def move_rows(part: Path, places: Mapping[str, Place]) -> None:
    """Rewrites a shard with other places for some of its rows, by their keys, atomically."""
    if not part.exists():
        return
    table = read_parquet(part)
    rows = [places.get(key) for key in table["key"].to_pylist()]
    for field in PLACE_FIELDS:
        values = table[field].to_pylist()
        for row, place in enumerate(rows):
            if place is not None:
                value = getattr(place, field)
                values[row] = as_int64(value) if field == "mtime_ns" else value
        at = table.schema.get_field_index(field)
        table = table.set_column(at, table.schema.field(at), pa.array(values, table[field].type))
    write_parquet(table, part)
