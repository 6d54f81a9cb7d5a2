"""A process that dies at its k-th change of the file system, without leaving this process.

From that change on every other one fails as well, so nothing is cleaned up: what a killed process
leaves is what is there. A file that was being written is cut in half, as its second half may never
have reached the disk.
"""

import contextlib
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

# What may not be there once a later run has ended.
LEFT_OVER = re.compile(r"\..*\.(tmp|old)|\.loopjax\.held-by-.*|\..*\.lock")
KEPT = {".loopjax.lock"}


class Crash(BaseException):
    """The process is gone."""


class CrashPoint:
    """Counts changes below a folder and dies at the one with the given number."""

    def __init__(self, folder: Path, at: int | None):
        self.folder, self.at = str(folder), at
        self.n_events = 0

    @property
    def is_dead(self) -> bool:
        return self.at is not None and self.n_events > self.at

    def event(self, path: object) -> None:
        if not str(path).startswith(self.folder):
            return
        if self.is_dead or self.n_events == self.at:
            self.n_events = (self.at or 0) + 1
            raise Crash(str(path))
        self.n_events += 1


@contextlib.contextmanager
def dying(folder: Path, at: int | None = None) -> Iterator[CrashPoint]:
    """Counts the changes below a folder, and crashes at one of them."""
    point = CrashPoint(folder, at)
    fsync, rmtree = os.fsync, shutil.rmtree
    with pytest.MonkeyPatch.context() as patch:

        def wrap(owner: object, name: str) -> None:
            plain = getattr(owner, name)

            def hooked(path, *args, **kwargs):
                point.event(path)
                return plain(path, *args, **kwargs)

            patch.setattr(owner, name, hooked)

        def torn_write(path, text, *args, **kwargs):
            try:
                point.event(path)
            except Crash:
                if not point.is_dead or not path.exists():
                    plain_write(path, text[: len(text) // 2], *args, **kwargs)
                raise
            return plain_write(path, text, *args, **kwargs)

        def torn_sync(fd):
            path = Path(f"/proc/self/fd/{fd}").resolve()
            was_dead = point.is_dead
            try:
                point.event(path)
            except Crash:
                if not was_dead and path.is_file():
                    os.truncate(path, path.stat().st_size // 2)
                raise
            fsync(fd)

        plain_write = Path.write_text
        for name in ("replace", "rename", "mkdir", "touch", "unlink", "rmdir"):
            wrap(Path, name)
        wrap(os, "utime")
        patch.setattr(Path, "write_text", torn_write)
        patch.setattr(os, "fsync", torn_sync)
        patch.setattr(
            shutil,
            "rmtree",
            lambda path, *args, **kwargs: (point.event(path), rmtree(path, *args, **kwargs))[1],
        )
        yield point


def left_over(folder: Path) -> list[str]:
    """Temporary names below a folder."""
    return sorted(
        path.name
        for path in folder.rglob("*")
        if LEFT_OVER.fullmatch(path.name) and path.name not in KEPT
    )
