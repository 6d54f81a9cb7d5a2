"""Writing a store so that every loop ends up in it exactly once, whatever kills the run.

A shard appears under its final name only when it is complete and synced; what is done is read back
from the shards themselves, so there is no second record that could disagree. Damaged shards are set
aside and their loops embedded again.
"""

import contextlib
import fcntl
import json
import logging
import os
import socket
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from loopjax.errors import UserError, WriteError
from loopjax.io import write_json
from loopjax.store import read as store

LOCK_NAME = ".embed.lock"
REWRITE_LOCK_NAME = ".rewrite.lock"
SETTINGS_NAME = "store.json"
QUARANTINE = "quarantine"
INDEX_COLUMNS = ["key", "size_bytes", "mtime_ns", "sha256"]
FLUSH_S = 60.0  # a shard is closed at the latest this long after its first row

log = logging.getLogger(__name__)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds the folder's writer lock; the system frees it when the holder dies.

    Raises:
        UserError: another run holds it; names the holder.
        WriteError: the folder cannot be written.
    """
    path = folder / LOCK_NAME
    try:
        folder.mkdir(parents=True, exist_ok=True)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise WriteError(f"cannot write to {folder}: {error.strerror}") from None
    try:
        left_behind = os.pread(fd, 4096, 0).decode("utf-8", "replace").strip()
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"{folder} is being written by another run ({left_behind}); "
                "wait for it, stop it, or choose another output folder"
            ) from None
        if left_behind:
            log.warning("taking over %s from a run that died (%s)", folder, left_behind)
        holder = f"process {os.getpid()} on {socket.gethostname()}, since {time.ctime()}"
        os.ftruncate(fd, 0)
        os.pwrite(fd, holder.encode(), 0)
        try:
            yield
        finally:
            os.ftruncate(fd, 0)  # empty = released in order
    finally:
        os.close(fd)


def prepare(
    folder: Path, metadata: dict[str, str], settings: dict[str, Any], restart: bool = False
) -> None:
    """Makes a folder ready for writing; only one process does it, under the lock.

    Removes half-written files, sets damaged shards aside, and checks that what is there was made
    with the same encoder and settings.

    Args:
        folder: the store.
        metadata: identity of the embeddings (`store.IDENTITY_KEYS`).
        settings: the settings behind `preprocessing_sha256`, for a readable difference.
        restart: deletes what is there first.

    Raises:
        UserError: the store was made with other settings; lists the differences.
        WriteError: the folder cannot be written.
    """
    for leftover in folder.glob(".*.tmp"):
        leftover.unlink()
    if restart:
        for old in [*store.part_files(folder), *folder.glob("failures*.parquet")]:
            old.unlink()
        (folder / SETTINGS_NAME).unlink(missing_ok=True)
    _require_same_settings(folder, metadata, settings)
    with ThreadPoolExecutor() as threads:  # reading and checksums run outside the GIL
        for found in threads.map(_verified_metadata, store.part_files(folder)):
            changed = {
                key: (found.get(key), metadata[key])
                for key in store.IDENTITY_KEYS
                if found is not None and found.get(key) != metadata[key]
            }
            if changed:
                raise UserError(_difference(folder, changed))
    _merge_failures(folder)
    record = {"identity": metadata, "settings": settings}
    write_json(folder / SETTINGS_NAME, record, sort_keys=True)


def _verified_metadata(part: Path) -> dict[str, str] | None:
    """Reads a whole shard and returns its metadata; a damaged one is set aside, None."""
    try:
        file = store.open_part(part)
        store.read_matrix(part, file)
        file.read(columns=INDEX_COLUMNS)
    except (UserError, OSError, pa.ArrowInvalid) as error:
        aside = part.parent / QUARANTINE
        aside.mkdir(exist_ok=True)
        part.rename(aside / f"{part.name}.{time.time_ns()}")
        log.warning("%s; set aside in %s, its loops are embedded again", error, aside)
        return None
    return store.read_metadata(file.schema_arrow)


def _require_same_settings(
    folder: Path, metadata: dict[str, str], settings: dict[str, Any]
) -> None:
    path = folder / SETTINGS_NAME
    if not path.exists():
        return
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        old = _comparable(record["identity"], record["settings"])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error}); delete it and run again") from None
    new = _comparable(metadata, json.loads(json.dumps(settings)))
    changed = {
        k: (old.get(k), new.get(k)) for k in sorted({*old, *new}) if old.get(k) != new.get(k)
    }
    if changed:
        raise UserError(_difference(folder, changed))


def _comparable(metadata: dict[str, str], settings: dict[str, Any]) -> dict[str, Any]:
    return {**settings, **{key: metadata.get(key) for key in store.IDENTITY_KEYS}}


def _difference(folder: Path, changed: dict[str, tuple[Any, Any]]) -> str:
    shown = {k: v for k, v in changed.items() if k != "preprocessing_sha256"} or changed
    lines = "; ".join(f"{k}: {old!r} there, {new!r} now" for k, (old, new) in shown.items())
    return (
        f"{folder} holds embeddings made with other settings ({lines}); "
        "choose another output folder, or start over with --restart"
    )


class DoneIndex:
    """Which loops a store already holds: sorted keys, so that millions stay small."""

    def __init__(self, folder: Path):
        """Reads the key columns of all finished shards."""
        self.parts = store.part_files(folder)
        with ThreadPoolExecutor() as threads:
            columns = list(threads.map(_index_columns, self.parts))
        counts = [len(part[0]) for part in columns]
        keys, sizes, times, hashes = (
            np.concatenate(column) if columns else np.zeros(0, np.uint64)
            for column in (zip(*columns, strict=True) if columns else [()] * 4)
        )
        order = np.argsort(keys, kind="stable")
        self._keys, self._hashes = keys[order], hashes[order]
        self._sizes, self._mtimes = sizes[order], times[order]
        self._part_numbers = np.repeat(np.arange(len(counts)), counts)[order]

    def __len__(self) -> int:
        return len(self._keys)

    def find(self, key: str) -> int | None:
        """Position of a key, or None."""
        value = np.uint64(int(key, 16))
        at = int(np.searchsorted(self._keys, value))
        return at if at < len(self._keys) and self._keys[at] == value else None

    def unchanged(self, at: int, size_bytes: int, mtime_ns: int) -> bool:
        """Whether the file still has the size and time it had when it was embedded."""
        return bool(self._sizes[at] == size_bytes and self._mtimes[at] == mtime_ns)

    def same_content(self, at: int, sha256: str) -> bool:
        """Whether the file still has the content that was embedded."""
        return int(self._hashes[at]) == int(sha256[:16], 16)

    def part(self, at: int) -> Path:
        """The shard that holds the row."""
        return self.parts[self._part_numbers[at]]


def _index_columns(part: Path) -> tuple[np.ndarray, ...]:
    table = pq.read_table(part, columns=INDEX_COLUMNS, use_threads=False)
    numbers = (np.asarray(table[name]) for name in ("size_bytes", "mtime_ns"))
    return _as_uint64(table["key"]), *numbers, _as_uint64(table["sha256"])


def _as_uint64(hex_digits: pa.ChunkedArray) -> np.ndarray:
    """The first 16 hex digits of each text as a number."""
    digits = "".join(text[:16] for text in hex_digits.to_pylist())
    return np.frombuffer(bytes.fromhex(digits), ">u8").astype(np.uint64)


@dataclass(frozen=True)
class StoreRow:
    """One finished loop."""

    columns: dict[str, Any]  # values of store.ROW_FIELDS
    embedding: np.ndarray  # float32 [D]


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
        self._schema = store.shard_schema(int(metadata["embedding_dim"]), metadata)
        self._shard_rows = shard_rows
        own = f"p{process_index:03d}-" if process_count > 1 else ""
        self._prefix = f"part-{own}"
        self._failures_path = folder / f"failures-p{process_index:03d}.parquet"
        taken = [p.stem.removeprefix(self._prefix) for p in folder.glob(f"{self._prefix}*.parquet")]
        self._next = 1 + max((int(t) for t in taken if t.isdigit()), default=-1)
        self._rows: list[StoreRow] = []
        self._first_row_s = 0.0
        self._failures: list[dict[str, Any]] = []
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
            self._outdated.setdefault(replaces, []).append(row.columns["key"])
        waited_s = time.monotonic() - self._first_row_s
        if len(self._rows) >= self._shard_rows or waited_s > FLUSH_S:
            self.flush()

    def add_failure(self, failure: Any, replaces: Path | None = None) -> None:
        """Takes a rejected input (a dataclass with the fields of `store.FAILURE_SCHEMA`)."""
        self._failures.append(asdict(failure))
        self._unsaved_failures = True
        if replaces is not None:
            self._outdated.setdefault(replaces, []).append(failure.key)

    def flush(self) -> None:
        """Writes everything taken so far.

        Raises:
            WriteError: the shard could not be written; earlier shards stay valid.
        """
        for part, keys in self._outdated.items():  # a kill from here on only undoes these rows
            with _rewriting(self._folder):
                drop_rows(part, keys)
        self._outdated.clear()
        if self._rows:
            names = [field.name for field in self._schema if field.name != store.EMBEDDING]
            columns = {name: [row.columns.get(name) for row in self._rows] for name in names}
            values = np.concatenate([row.embedding for row in self._rows])
            width = self._schema.field(store.EMBEDDING).type.list_size
            columns[store.EMBEDDING] = pa.FixedSizeListArray.from_arrays(pa.array(values), width)
            table = pa.table(columns, schema=self._schema)
            store.write_parquet(table, self._folder / f"{self._prefix}{self._next:05d}.parquet")
            self._next += 1
            self._rows.clear()
        if self._unsaved_failures:
            table = pa.Table.from_pylist(self._failures, schema=store.FAILURE_SCHEMA)
            store.write_parquet(table, self._failures_path)
            self._unsaved_failures = False


@contextlib.contextmanager
def _rewriting(folder: Path) -> Iterator[None]:
    """Serializes rewrites of old shards between processes of one run."""
    fd = os.open(folder / REWRITE_LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def drop_rows(part: Path, keys: Sequence[str]) -> None:
    """Rewrites a shard without some rows, atomically; an empty one disappears."""
    table = pq.read_table(part)
    keep = ~np.isin(np.asarray(table["key"]), list(keys))
    if keep.any():
        store.write_parquet(table.filter(pa.array(keep)), part)
    else:
        part.unlink()


def finish(folder: Path) -> None:
    """Merges the processes' failure lists into failures.parquet; one process does it."""
    _merge_failures(folder)


def _merge_failures(folder: Path) -> None:
    """One list, without the inputs that have been embedded since."""
    pieces = sorted(folder.glob("failures-p*.parquet"))
    merged = store.read_failures(folder)
    if not pieces and not len(merged):
        return
    done = DoneIndex(folder)
    keep = [done.find(key) is None for key in merged["key"].to_pylist()]
    store.write_parquet(merged.filter(pa.array(keep, pa.bool_())), folder / "failures.parquet")
    for piece in pieces:
        piece.unlink()
