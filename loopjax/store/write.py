"""Writing shards: a shard appears under its final name only when it is complete and synced."""

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from filelock import FileLock

from loopjax.store.failures import piece_of, table_of_failures, write_failures
from loopjax.store.parquet import read_parquet, write_parquet
from loopjax.store.schema import Rejected, StoreRow, shard_schema, table_of_rows

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

    def flush(self) -> None:
        """Writes everything taken so far.

        Raises:
            WriteError: the shard could not be written; earlier shards stay valid.
        """
        for part, keys in self._outdated.items():  # a kill from here on only undoes these rows
            with FileLock(self._folder / REWRITE_LOCK_NAME):  # other processes of this run wait
                drop_rows(part, keys)
        self._outdated.clear()
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
    table = read_parquet(part)
    keep = ~np.isin(np.asarray(table["key"]), list(keys))
    if keep.any():
        write_parquet(table.filter(pa.array(keep)), part)
    else:
        part.unlink()
