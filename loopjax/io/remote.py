"""Places on other file systems: object stores such as `s3://bucket/emb`, and whatever fsspec knows.

A remote place is a `UPath`, which has those methods of a `Path` that a store of embeddings needs;
it travels as a `Path`. An object is there as a whole once its upload is complete, so nothing has to
be written beside its place and renamed.
"""

import contextlib
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

from loopjax.errors import UserError
from loopjax.io.hub_names import is_hub_name, pulled

_ADDRESS = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]+://")
_TAKEN = ("PreconditionFailed", "ConditionalRequestConflict")  # words of S3 for "there is one"

T = TypeVar("T")


def is_address(text: str) -> bool:
    """Whether this is an address such as `s3://bucket/emb`."""
    return _ADDRESS.match(text) is not None


def place_of(place: str | os.PathLike[str]) -> Path:
    """A local path, what an address stands for, or where something pulled from the Hub lies.

    Raises:
        UserError: a package for this kind of address is missing, or the name was not pulled.
    """
    if is_hub_name(place):
        return pulled(place).folder
    if not isinstance(place, str) or not is_address(place):
        return cast(Path, place) if is_remote(place) else Path(place)
    try:
        from upath import UPath

        # Others write there too: every listing is asked for anew.
        found: Any = UPath(place, use_listings_cache=False)
        found.fs  # noqa: B018 - imports what the address needs
    except ImportError as error:
        named = "" if "upath" in str(error) else f" ({error})"
        raise UserError(f"{place}: pip install 'loopjax[remote]'{named}") from None
    except ValueError as error:
        raise UserError(f"{place}: {_first_line(error)}") from None
    return cast(Path, found)


def is_remote(place: object) -> bool:
    """Whether a place is no local one."""
    return hasattr(place, "fs")


def upload(local: Path, place: Path) -> None:
    """Puts a file at a remote place, as a whole or not at all.

    Raises:
        OSError: it could not be written.
    """
    system: Any = cast(Any, place).fs
    _told(lambda: system.put_file(str(local), cast(Any, place).path))


def create(place: Path, content: bytes) -> bool:
    """Makes a small remote object unless there is one; of several processes, one succeeds.

    Raises:
        OSError: it could not be written.
    """
    system: Any = cast(Any, place).fs
    try:
        _told(lambda: system.pipe_file(cast(Any, place).path, content, mode="create"))
    except FileExistsError:
        return False
    except OSError as error:
        if any(word in str(error) for word in _TAKEN):
            return False
        raise
    return True


def remove_folder(folder: Path) -> None:
    """Removes a folder and what lies below it, local or remote, as far as that is allowed."""
    if not is_remote(folder):
        shutil.rmtree(folder, ignore_errors=True)
        return
    system: Any = cast(Any, folder).fs
    with contextlib.suppress(OSError):
        _told(lambda: system.rm(cast(Any, folder).path, recursive=True))


def listed(folder: Path, pattern: str) -> list[Path]:
    """What matches a pattern in a folder, local or remote, sorted by name.

    Raises:
        UserError: a remote folder cannot be listed.
    """
    if not is_remote(folder):
        return sorted(folder.glob(pattern))
    try:
        return sorted(_told(lambda: list(folder.glob(pattern))), key=lambda place: place.name)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UserError(f"cannot list {folder}: {error}") from None


def _told(act: Callable[[], T]) -> T:
    """What a file system does, with errors of its own kind as `OSError`."""
    try:
        return act()
    except OSError:
        raise
    except Exception as error:  # noqa: BLE001 - every file system raises its own
        raise OSError(_first_line(error)) from None


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
