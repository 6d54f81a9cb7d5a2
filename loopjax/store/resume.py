"""Continuing a store: whatever killed the last run, every loop ends up in it exactly once.

What is done is read back from the shards themselves, so there is no second record that could
disagree. Damaged files are set aside and their loops embedded again.

A start reads the footers and the columns of the index. The whole of a shard is compared with its
checksum only when its modification time is not the one it was written with: after a copy, a
restored backup, or once a reader or `loopjax store verify` has found it damaged.
"""

import logging
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from loopjax.errors import UserError, WriteError
from loopjax.json_files import parse_json
from loopjax.store.failures import (
    FAILURES_NAME,
    failure_files,
    merge_failures,
    read_failure_file,
    write_failures,
)
from loopjax.store.gone import drop_gone, is_gone
from loopjax.store.index import INDEX_COLUMNS, DoneIndex
from loopjax.store.parquet import open_footer, open_parquet, write_parquet
from loopjax.store.read import matrix_of, part_files
from loopjax.store.schema import IDENTITY_KEYS, read_metadata

MISSING = ("not_found", "bad_path")  # reasons that are no fault of a file that exists
OLD_LAYOUT = ("store.json", ".embed.lock", ".rewrite.lock")  # of version 0.1

log = logging.getLogger(__name__)


def prepare(folder: Path, metadata: dict[str, str], restart: bool = False) -> None:
    """Makes a folder ready for writing; only one process does it, under the lock.

    Sets damaged files aside, and checks that what is there was made with the same encoder and
    settings.

    Args:
        folder: the store.
        metadata: identity of the embeddings (`IDENTITY_KEYS`, and `preprocessing`: the settings as
            JSON, for a readable difference).
        restart: deletes what is there first.

    Raises:
        UserError: the store was made with other settings; lists the differences.
        WriteError: the folder cannot be written.
    """
    try:
        if restart:
            for file in (*part_files(folder), *failure_files(folder)):
                file.unlink()
        with ThreadPoolExecutor() as threads:  # reading and checksums run outside the GIL
            examined = list(threads.map(_examine, part_files(folder)))
        for part in examined:
            changed = _changes(part.metadata, metadata) if part.fault is None else {}
            if changed:
                raise UserError(_difference(folder, changed))
        for part in examined:
            if part.fault is not None:
                _set_aside(part.path, part.fault)
        _merge_failures(folder, metadata, are_old=True)
        for name in OLD_LAYOUT:
            (folder / name).unlink(missing_ok=True)
    except OSError as error:
        raise WriteError(f"cannot write to {folder}: {error.strerror or error}") from None


def finish(folder: Path, metadata: dict[str, str], *, prune: bool = False) -> int:
    """Merges the processes' lists of rejected inputs; one process does it.

    Args:
        folder: the store.
        metadata: see `prepare`.
        prune: drops the rows of files that are gone.

    Returns:
        How many rows were dropped.

    Raises:
        WriteError: the folder cannot be written.
    """
    n_dropped = drop_gone(folder) if prune else 0
    _merge_failures(folder, metadata)
    return n_dropped


@dataclass(frozen=True)
class _Examined:
    path: Path
    metadata: dict[str, str]
    fault: UserError | None


def _examine(part: Path) -> _Examined:
    """Reads as much of a shard as is needed to trust it."""
    try:
        file = open_footer(part)
        if not file.is_sealed:  # written by version 0.1
            _seal_old(part)
        elif not file.is_untouched:
            open_parquet(part).trust()
        file.read(INDEX_COLUMNS)
        return _Examined(part, read_metadata(file.schema), None)
    except UserError as error:
        return _Examined(part, {}, error)


def _seal_old(part: Path) -> None:
    table = open_parquet(part).read()
    matrix_of(table, part)
    write_parquet(table, part)


def _set_aside(file: Path, fault: UserError) -> None:
    """Moves a damaged file out of the folder, where other tools would stumble over it too."""
    aside = file.parent.with_name(f"{file.parent.name}.damaged")
    aside.mkdir(exist_ok=True)
    file.rename(aside / f"{file.name}.{time.time_ns()}")
    log.warning("%s; set aside in %s, its loops are embedded again", fault, aside)


def _changes(old: dict[str, str], new: dict[str, str]) -> dict[str, tuple[object, object]]:
    """What differs between two identities, settings by name."""
    if all(old.get(key) == new.get(key) for key in IDENTITY_KEYS):
        return {}
    before, now = _settings(old), _settings(new)
    names = sorted({*before, *now})
    return {k: (before.get(k), now.get(k)) for k in names if before.get(k) != now.get(k)}


def _settings(metadata: dict[str, str]) -> dict[str, object]:
    identity: dict[str, object] = {key: metadata.get(key) for key in IDENTITY_KEYS}
    try:
        return {**parse_json(metadata.get("preprocessing", "{}")), **identity}
    except ValueError:
        return identity


def _difference(folder: Path, changed: dict[str, tuple[object, object]]) -> str:
    shown = {k: v for k, v in changed.items() if k != "preprocessing_sha256"} or changed
    lines = "; ".join(f"{k}: {old!r} there, {new!r} now" for k, (old, new) in shown.items())
    return (
        f"{folder} holds embeddings made with other settings ({lines}); "
        "choose another output folder, or start over with --restart"
    )


def _merge_failures(folder: Path, metadata: dict[str, str], *, are_old: bool = False) -> None:
    """One list, without the inputs that have been embedded since.

    Of an earlier run (`are_old`), inputs that were moved or deleted since are left out as well.
    """
    files = failure_files(folder)
    tables = []
    for path in files:
        try:
            tables.append(read_failure_file(open_parquet(path)))
        except UserError as fault:
            _set_aside(path, fault)
    merged = merge_failures(tables)
    if len(merged):
        done = DoneIndex(folder)
        keep = [
            done.find(row["key"]) is None and not (are_old and _is_over(row))
            for row in merged.select(["key", "path_bytes", "reason"]).to_pylist()
        ]
        merged = merged.filter(pa.array(keep, pa.bool_()))
        write_failures(merged, folder / FAILURES_NAME, metadata)
    for path in files:
        if not len(merged) or path.name != FAILURES_NAME:
            path.unlink(missing_ok=True)


def _is_over(failure: dict[str, Any]) -> bool:
    """Whether a rejected file was there and is gone; one that never was is still missing."""
    return failure["reason"] not in MISSING and is_gone(failure["path_bytes"])
