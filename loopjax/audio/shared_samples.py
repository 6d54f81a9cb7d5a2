"""The file through which a decoder process hands over samples.

The child writes the samples of some loops one behind the other while the parent reads those that
are announced. Both may hold the same open file, with one position; so every access names its own.
"""

import os
import tempfile
from io import FileIO
from pathlib import Path

KEEP_BYTES = 4 << 20  # kept between messages, and about what a cache holds


def open_samples(place: int | str) -> FileIO:
    """Opens the file in the child.

    Args:
        place: an inherited descriptor, or a path.
    """
    return FileIO(place, "r+")


def read_into(file: FileIO, view: memoryview, offset: int) -> bool:
    """Fills the view from a place of the file on; False if that holds less."""
    done = 0
    while done < len(view):
        if hasattr(os, "preadv"):
            count = os.preadv(file.fileno(), [view[done:]], offset + done)
        else:  # where nothing is inherited, each side has a position of its own
            file.seek(offset + done)
            count = file.readinto(view[done:])
        if not count:
            return False
        done += count
    return True


def write_at(file: FileIO, content: bytes | memoryview, offset: int) -> None:
    """Writes at a place of the file."""
    view, done = memoryview(content), 0
    while done < len(view):
        if hasattr(os, "pwrite"):
            done += os.pwrite(file.fileno(), view[done:], offset + done)
        else:
            file.seek(offset + done)
            done += file.write(view[done:]) or 0


class SharedSamples:
    """The parent's side: memory without a name where the system has it, else a temporary file."""

    def __init__(self):
        """Makes the file."""
        self._path: Path | None = None
        if hasattr(os, "memfd_create"):
            descriptor = os.memfd_create("loopjax-samples")
        else:
            descriptor, name = tempfile.mkstemp(prefix="loopjax-samples-")
            self._path = Path(name)
        self._file = FileIO(descriptor, "r+")

    @property
    def place(self) -> int | str:
        """What the child is to open."""
        return self._file.fileno() if self._path is None else str(self._path)

    @property
    def inherited(self) -> tuple[int, ...]:
        """Descriptors that the child must inherit; Windows could not hand on any."""
        return (self._file.fileno(),) if self._path is None else ()

    @property
    def size_bytes(self) -> int:
        """What the file holds now."""
        return os.fstat(self._file.fileno()).st_size

    def read_into(self, view: memoryview, offset: int = 0) -> bool:
        """Fills the view from a place of the file on; False if that holds less."""
        return read_into(self._file, view, offset)

    def write(self, content: bytes) -> None:
        """Puts something at the beginning of the file, for the child to read."""
        write_at(self._file, content, 0)

    def release(self) -> None:
        """Gives the pages back."""
        self._file.truncate(0)

    def close(self) -> None:
        """Closes and removes the file; safe to call twice."""
        self._file.close()
        if self._path is not None:
            self._path.unlink(missing_ok=True)
