"""Files and folders that are there completely or not at all."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from loopjax.errors import WriteError


def write_atomically(path: Path, write: Callable[[Path], Any]) -> None:
    """Runs `write(temporary path)` beside `path`, then renames; file and name are synced to disk.

    Raises:
        WriteError: disk full, no permission and the like; nothing is left behind.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        _sync(temporary)
        temporary.replace(path)
        _sync(path.parent)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise WriteError(f"cannot write {path}: {error.strerror or error}") from None
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """Writes UTF-8 atomically.

    Raises:
        WriteError: see `write_atomically`.
    """
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_json(path: Path, value: Any, **options: Any) -> None:
    """Writes JSON atomically; `options` go to `json.dumps`.

    Raises:
        WriteError: see `write_atomically`.
    """
    write_text(path, json.dumps(value, indent=2, **options) + "\n")


def write_folder(folder: Path, write: Callable[[Path], Any]) -> None:
    """Runs `write(temporary folder)` beside `folder`, then renames; an older folder is replaced.

    Whether an older folder may be replaced is the caller's decision, before calling.

    Raises:
        WriteError: disk full, no permission and the like; nothing is left behind, and the older
            folder stays.
    """
    folder = folder.absolute()
    temporary, old = (folder.with_name(f".{folder.name}.{os.getpid()}.{x}") for x in ("tmp", "old"))
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        write(temporary)
        for file in temporary.rglob("*"):
            _sync(file)
        if folder.exists():
            folder.rename(old)
        temporary.rename(folder)
        _sync(folder.parent)
    except OSError as error:
        if old.exists() and not folder.exists():
            old.rename(folder)
        raise WriteError(f"cannot write {folder}: {error.strerror or error}") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def _sync(path: Path) -> None:
    """Makes a file's content, or the renames in a folder, durable."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
