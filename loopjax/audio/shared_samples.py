"""The file through which a decoder process hands over samples; one writes, then the other reads."""

import os
import tempfile
from io import FileIO
from pathlib import Path


def open_samples(place: int | str) -> FileIO:
    """Opens the file in the child.

    Args:
        place: an inherited descriptor, or a path.
    """
    return FileIO(place, "r+")


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

    def read_into(self, view: memoryview) -> bool:
        """Fills the view from the beginning of the file; False if that holds less."""
        self._file.seek(0)
        done = 0
        while done < len(view):
            count = self._file.readinto(view[done:])
            if not count:
                return False
            done += count
        return True

    def write(self, content: bytes) -> None:
        """Puts something at the beginning of the file, for the child to read."""
        self._file.seek(0)
        view, done = memoryview(content), 0
        while done < len(view):
            done += self._file.write(view[done:])

    def release(self) -> None:
        """Gives the pages back."""
        self._file.truncate(0)

    def close(self) -> None:
        """Closes and removes the file; safe to call twice."""
        self._file.close()
        if self._path is not None:
            self._path.unlink(missing_ok=True)
