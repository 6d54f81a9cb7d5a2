"""Continuing a store: whatever killed the last run, every loop ends up in it exactly once.

What is done is read back from the shards themselves, so there is no second record that could
disagree. Damaged shards are set aside and their loops embedded again.
"""

import json
import logging
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa

from loopjax.errors import UserError
from loopjax.io import write_json
from loopjax.store.index import INDEX_COLUMNS, DoneIndex
from loopjax.store.parquet import open_part, read_matrix, write_parquet
from loopjax.store.read import part_files, read_failures
from loopjax.store.schema import IDENTITY_KEYS, read_metadata

SETTINGS_NAME = "store.json"
QUARANTINE = "quarantine"

log = logging.getLogger(__name__)


def prepare(
    folder: Path, metadata: dict[str, str], settings: dict[str, Any], restart: bool = False
) -> None:
    """Makes a folder ready for writing; only one process does it, under the lock.

    Sets damaged shards aside, and checks that what is there was made
    with the same encoder and settings.

    Args:
        folder: the store.
        metadata: identity of the embeddings (`IDENTITY_KEYS`).
        settings: the settings behind `preprocessing_sha256`, for a readable difference.
        restart: deletes what is there first.

    Raises:
        UserError: the store was made with other settings; lists the differences.
        WriteError: the folder cannot be written.
    """
    if restart:
        for old in [*part_files(folder), *folder.glob("failures*.parquet")]:
            old.unlink()
        (folder / SETTINGS_NAME).unlink(missing_ok=True)
    _require_same_settings(folder, metadata, settings)
    with ThreadPoolExecutor() as threads:  # reading and checksums run outside the GIL
        for found in threads.map(_verified_metadata, part_files(folder)):
            changed = {
                key: (found.get(key), metadata[key])
                for key in IDENTITY_KEYS
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
        file = open_part(part)
        read_matrix(part, file)
        file.read(columns=INDEX_COLUMNS)
    except (UserError, OSError, pa.ArrowInvalid) as error:
        aside = part.parent / QUARANTINE
        aside.mkdir(exist_ok=True)
        part.rename(aside / f"{part.name}.{time.time_ns()}")
        log.warning("%s; set aside in %s, its loops are embedded again", error, aside)
        return None
    return read_metadata(file.schema_arrow)


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
    return {**settings, **{key: metadata.get(key) for key in IDENTITY_KEYS}}


def _difference(folder: Path, changed: dict[str, tuple[Any, Any]]) -> str:
    shown = {k: v for k, v in changed.items() if k != "preprocessing_sha256"} or changed
    lines = "; ".join(f"{k}: {old!r} there, {new!r} now" for k, (old, new) in shown.items())
    return (
        f"{folder} holds embeddings made with other settings ({lines}); "
        "choose another output folder, or start over with --restart"
    )


def finish(folder: Path) -> None:
    """Merges the processes' failure lists into failures.parquet; one process does it."""
    _merge_failures(folder)


def _merge_failures(folder: Path) -> None:
    """One list, without the inputs that have been embedded since."""
    pieces = sorted(folder.glob("failures-p*.parquet"))
    merged = read_failures(folder)
    if not pieces and not len(merged):
        return
    done = DoneIndex(folder)
    keep = [done.find(key) is None for key in merged["key"].to_pylist()]
    write_parquet(merged.filter(pa.array(keep, pa.bool_())), folder / "failures.parquet")
    for piece in pieces:
        piece.unlink()
