"""A file's bytes: read anywhere by the header readers, or shown to the codec with repairs."""

import io
import struct
from bisect import bisect_right
from typing import BinaryIO

BLOCK_BYTES = 1 << 16

Piece = bytes | tuple[int, int]  # bytes that the file lacks, or a range (start, end) of the file


class Content:
    """Random access to an open file; the position of the file moves."""

    def __init__(self, file: BinaryIO, size_bytes: int):
        """Wraps an unbuffered file.

        Args:
            file: open for reading.
            size_bytes: its size; nothing is read beyond.
        """
        self._file = file
        self.size = size_bytes
        self._block, self._block_start = b"", 0

    def at(self, offset: int, count: int) -> bytes:
        """The bytes from an offset; fewer at the end of the file."""
        begin = self._cover(offset, count)
        return self._block[begin : begin + count]

    def _cover(self, offset: int, count: int) -> int:
        """Loads a block that holds the bytes; returns where they begin in it."""
        begin = offset - self._block_start
        if begin < 0 or begin + count > len(self._block):
            self._block = self.read(offset, max(count, BLOCK_BYTES))
            self._block_start, begin = offset, 0
        return begin

    def read(self, offset: int, count: int) -> bytes:
        """As `at`, without keeping a block; for the codec's own reads."""
        self._file.seek(offset)
        left = max(0, min(count, self.size - offset))
        parts = []
        while left and (part := self._file.read(left)):
            parts.append(part)
            left -= len(part)
        return b"".join(parts)

    def unpack(self, form: str, offset: int) -> tuple:
        """Numbers at an offset.

        Raises:
            struct.error: the file ends before.
        """
        return struct.unpack(form, self.at(offset, struct.calcsize(form)))

    def find(self, wanted: bytes, start: int, end: int) -> int:
        """First offset of some bytes within [start, end), or -1."""
        end = min(end, self.size)
        while start + len(wanted) <= end:
            begin = self._cover(start, len(wanted))
            found = self._block.find(wanted, begin, begin + end - start)
            if found >= 0:
                return self._block_start + found
            start = self._block_start + len(self._block) - len(wanted) + 1
        return -1

    def skip_zeros(self, start: int, end: int) -> int:
        """First offset from `start` that is not a zero byte, or `end`."""
        while start < end:
            block = self.at(start, min(BLOCK_BYTES, end - start))
            rest = block.lstrip(b"\0")
            if rest or not block:
                return start + len(block) - len(rest)
            start += len(block)
        return end


def patched(start: int, end: int, patches: dict[int, bytes]) -> list[Piece]:
    """A range of the file in which the bytes at some offsets are replaced."""
    pieces: list[Piece] = []
    for offset, new in sorted(patches.items()):
        pieces += [(start, offset), new]
        start = offset + len(new)
    return [*pieces, (start, end)]


class View(io.RawIOBase):
    """Pieces one behind the other, as a read-only file."""

    def __init__(self, content: Content, pieces: list[Piece]):
        """Adds up the pieces; reads nothing."""
        self._content, self._pieces = content, pieces
        self._ends: list[int] = []  # of each piece, in this file
        self._size = self._position = 0
        for piece in pieces:
            self._size += len(piece) if isinstance(piece, bytes) else piece[1] - piece[0]
            self._ends.append(self._size)

    def readable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """It is."""
        return True

    def tell(self) -> int:
        """The position."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Moves the position, as for any file."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = max(0, base + offset)
        return self._position

    def readinto(self, buffer) -> int:
        """Fills the buffer across pieces; returns the number of bytes."""
        view, done = memoryview(buffer).cast("B"), 0
        for i in range(bisect_right(self._ends, self._position), len(self._pieces)):
            piece, left = self._pieces[i], self._ends[i] - self._position
            count = min(left, len(view) - done)
            if isinstance(piece, bytes):
                first = len(piece) - left
                data = piece[first : first + count]
            else:
                data = self._content.read(piece[1] - left, count)
            view[done : done + len(data)] = data
            done += len(data)
            self._position += len(data)
            if done == len(view) or len(data) < count:
                break
        return done
