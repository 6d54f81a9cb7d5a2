"""Folders and files on any file system that fsspec knows: `s3://`, `gs://`, `memory://`, ..."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import PurePosixPath
from typing import Any

from loopjax.audio.sources.places import file_system
from loopjax.audio.sources.records import Record
from loopjax.audio.sources.walk import AUDIO_EXTENSIONS, FOREIGN_EXTENSIONS
from loopjax.errors import UserError


@dataclass(frozen=True)
class RemoteFolder:
    """All audio below an address, or one file there; each is fetched when it is decoded."""

    address: str

    kind = "remote"

    @property
    def name(self) -> str:
        """The last part of the address: a folder keeps its identities when it moves."""
        return PurePosixPath(self.address.rstrip("/")).name

    @cached_property
    def files(self) -> dict[str, dict[str, Any]]:
        """Paths of its audio files and what the file system says about them, in order.

        Raises:
            UserError: it cannot be listed, or there is nothing.
        """
        system, root = file_system(self.address)
        try:
            found = system.find(root, detail=True)
        except Exception as error:  # noqa: BLE001 - every file system raises its own
            raise UserError(f"cannot list {self.address}: {_first_line(error)}") from None
        if not found:
            raise UserError(f"{self.address}: no such file or folder")
        return {path: found[path] for path in sorted(found) if _is_audio(path)}

    def records(self) -> Iterator[Record]:
        """Its files in order."""
        system, root = file_system(self.address)
        root = root.rstrip("/")
        for path, info in self.files.items():
            relative = path.removeprefix(root).lstrip("/") or PurePosixPath(path).name
            group = str(PurePosixPath(relative).parent)
            yield Record(
                relative,
                lambda path=path: _fetch(system, path),
                int(info.get("size") or 0),
                _version(info),
                self.name if group == "." else group,
            )


def _version(info: dict[str, Any]) -> int:
    """A number that changes with the content, in place of a modification time."""
    marks = [str(info[name]) for name in ("ETag", "etag", "mtime", "LastModified") if name in info]
    digest = hashlib.sha256("".join(marks[:1]).encode()).digest()
    return int.from_bytes(digest[:7], "big") if marks else 0


def _fetch(system: Any, path: str) -> bytes:
    try:
        return system.cat_file(path)
    except OSError:
        raise
    except Exception as error:  # noqa: BLE001 - every file system raises its own
        raise OSError(_first_line(error)) from None


def _is_audio(path: str) -> bool:
    name = PurePosixPath(path)
    suffix = name.suffix.lower().encode()
    return suffix in AUDIO_EXTENSIONS | FOREIGN_EXTENSIONS and not name.name.startswith("._")


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
