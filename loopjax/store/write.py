"""Writing shards: a shard appears under its final name only when it is complete and synced.

A full shard is written by a thread of its own, so that the device does not wait for compression and
for the disk. One thread writes all shards in their order, and what it cannot write is told to the
thread that hands over the next one.
"""

import dataclasses
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path

import numpy as np
import pyarrow as pa

from loopjax.io.locks import locked_file
from loopjax.io.remote import listed
from loopjax.store.failures import piece_of, table_of_failures, write_failures
from loopjax.store.parquet import read_parquet, write_parquet
from loopjax.store.schema import (
    PLACE_FIELDS,
    Place,
    Project,
    Rejected,
    StoreRow,
    as_int64,
    shard_schema,
    table_of_rows,
    with_prefix,
)

REWRITE_LOCK_NAME = ".rewrite.lock"
FLUSH_S = 60.0  # a shard is closed at the latest this long after its first row
MAX_WAITING = 2  # full shards in memory that are not written yet


@dataclasses.dataclass
class _Batch:
    """What is written together.

    Attributes:
        rows: of a new shard.
        outdated: keys to drop from older shards.
        moved: new places by key there, in older shards.
        failures: all rejected inputs so far; None where the list is as it was.
    """

    rows: list[StoreRow] = dataclasses.field(default_factory=list)
    outdated: dict[Path, list[str]] = dataclasses.field(default_factory=dict)
    moved: dict[Path, dict[str, Place]] = dataclasses.field(default_factory=dict)
    failures: list[Rejected] | None = None


class ShardWriter:
    """Collects rows and writes them as shards, in a thread of its own; one per process."""

    def __init__(
        self,
        folder: Path,
        metadata: dict[str, str],
        shard_rows: int,
        process_index: int = 0,
        process_count: int = 1,
        notes: Callable[[], dict[str, str]] = dict,
        project: Project | None = None,
    ):
        """Continues the numbering of this process's earlier shards.

        Args:
            folder: the store.
            metadata: identity of the embeddings.
            shard_rows: rows of a full shard.
            process_index: which of the run's processes this is.
            process_count: how many there are.
            notes: asked at each shard for metadata that is only known by then.
            project: see `table_of_rows`.
        """
        self._folder = folder
        self._metadata = metadata
        self._schema = shard_schema(int(metadata["embedding_dim"]), metadata)
        self._shard_rows = shard_rows
        self._notes, self._project = notes, project
        own = f"p{process_index:03d}-" if process_count > 1 else ""
        self._prefix = f"part-{own}"
        self._failures_path = piece_of(folder, process_index)
        own_parts = listed(folder, f"{self._prefix}*.parquet")
        taken = [part.stem.removeprefix(self._prefix) for part in own_parts]
        self._next = 1 + max((int(t) for t in taken if t.isdigit()), default=-1)
        self._open = _Batch()
        self._first_row_s = 0.0
        self._failures: list[Rejected] = []
        self._n_moved = 0
        self._thread = ThreadPoolExecutor(1, "shard-writer")  # starts with the first shard
        self._waiting: deque[Future[None]] = deque()

    def add(self, row: StoreRow, replaces: Path | None = None) -> None:
        """Takes a row; writes a shard when enough are there or the oldest waited long enough.

        Args:
            row: the finished loop.
            replaces: shard with an older row of the same key, which is dropped first.

        Raises:
            WriteError: an earlier shard could not be written.
        """
        if not self._open.rows:
            self._first_row_s = time.monotonic()
        self._open.rows.append(row)
        if replaces is not None:
            self._open.outdated.setdefault(replaces, []).append(row.key)
        waited_s = time.monotonic() - self._first_row_s
        if len(self._open.rows) >= self._shard_rows or waited_s > FLUSH_S:
            self._hand_over()

    def add_failure(self, failure: Rejected, replaces: Path | None = None) -> None:
        """Takes a rejected input."""
        self._failures.append(failure)
        self._open.failures = self._failures
        if replaces is not None:
            self._open.outdated.setdefault(replaces, []).append(failure.key)

    def move(self, part: Path, key: str, place: Place, replaces: Path | None = None) -> None:
        """Takes a new place for a row of an older shard.

        Args:
            part: the shard.
            key: what the row is called there.
            place: its key and file from now on.
            replaces: shard with an outdated row of the new key, which is dropped first.
        """
        self._open.moved.setdefault(part, {})[key] = place
        self._n_moved += 1
        if replaces is not None:
            self._open.outdated.setdefault(replaces, []).append(place.key)
        if self._n_moved >= self._shard_rows:
            self._hand_over()

    def skip(self, key: str) -> None:
        """Older shards stay as they are."""

    def flush(self) -> None:
        """Writes everything taken so far, and waits until it is there.

        Raises:
            WriteError: a shard could not be written; the others stay valid.
        """
        try:
            self._hand_over()
        finally:
            wait(self._waiting)
            self._raise_from_written()

    def _hand_over(self) -> None:
        """Gives what was taken so far to the thread; waits while too much is there already."""
        batch, self._open, self._n_moved = self._open, _Batch(), 0
        if batch.failures is not None:
            batch.failures = list(batch.failures)
        self._waiting.append(self._thread.submit(self._write, batch))
        if len(self._waiting) > MAX_WAITING:
            wait([self._waiting[0]])
        self._raise_from_written()

    def _raise_from_written(self) -> None:
        """Takes finished batches off the list, and raises what went wrong with one."""
        while self._waiting and self._waiting[0].done():
            self._waiting.popleft().result()

    def _write(self, batch: _Batch) -> None:
        for part, keys in batch.outdated.items():  # a kill from here on only undoes these rows
            with locked_file(self._folder / REWRITE_LOCK_NAME):  # other processes of this run wait
                drop_rows(part, keys)
        for part, places in batch.moved.items():  # a kill leaves rows where they were
            with locked_file(self._folder / REWRITE_LOCK_NAME):
                move_rows(part, places)
        if batch.rows:
            table = table_of_rows(batch.rows, self._schema, self._project)
            table = table.replace_schema_metadata(
                {**(table.schema.metadata or {}), **with_prefix(self._notes())}
            )
            write_parquet(table, self._folder / f"{self._prefix}{self._next:05d}.parquet")
            self._next += 1
        if batch.failures is not None:
            failures = table_of_failures(batch.failures)
            write_failures(failures, self._failures_path, self._metadata)


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
