"""What a store holds of the loops at hand: by place, and by content where a file was moved.

A loop is known by its key, which follows its place below the source. A file under a new key whose
content the store has is either moved or copied: it is moved if the file of such a row is gone, and
then the row follows it, id and embedding unchanged; else it is a copy and shares the embedding.
"""

import hashlib
import itertools
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from loopjax.audio.loop import Loop
from loopjax.store.gone import is_gone
from loopjax.store.index import DoneIndex, LaterContents, Result

MAX_CANDIDATES = 64  # rows of equal content among which the one with the most similar path is moved


@dataclass(frozen=True)
class Moved:
    """A loop whose row stays as it is but for place, size and time.

    Attributes:
        loop: the file as it is now.
        key: under which the shard has it.
        shard: the shard.
        is_elsewhere: whether the file is not where the row says.
        replaces: the shard with the row of another content under the loop's key.
    """

    loop: Loop
    key: str
    shard: Path
    is_elsewhere: bool
    replaces: Path | None = None


class StoredLoops:
    """The rows of a store, and which of them belong to a loop of this run; not thread-safe."""

    def __init__(
        self,
        done: DoneIndex,
        process_index: int = 0,
        process_count: int = 1,
        follows_files: bool = True,
    ):
        """Starts with all rows unmet.

        Args:
            done: the store's index.
            process_index: only rows of this slice are moved, so that no two processes do.
            process_count: number of slices.
            follows_files: whether rows move to files of equal content; of workers that come and go,
                two could move the same row.
        """
        self._done = done
        self._later = LaterContents(done.folder, done.parts)
        self._mine = done.keys % np.uint64(process_count) == process_index
        self._mine &= follows_files
        self._met = np.zeros(len(done), bool)
        self._there = np.zeros(len(done), bool)  # unmet, but the file exists
        self._outdated: dict[str, int] = {}  # keys of files that look different from their rows

    @property
    def n_unmet(self) -> int:
        """Rows of this slice that no loop of this run has turned out to be."""
        return int((self._mine & ~self._met).sum())

    def is_done(self, loop: Loop) -> bool:
        """Whether a loop need not be opened: its row is there and its file looks unchanged."""
        at = self._done.find(loop.key)
        if at is None or self._met[at]:
            return False
        self._met[at] = True
        unchanged = self._done.unchanged(at, loop.size_bytes, loop.mtime_ns)
        if not unchanged:
            self._outdated[loop.key] = at
        return unchanged

    def relocated(self, loop: Loop) -> Moved | None:
        """The row of a loop that is done, if it names another place: the source itself moved."""
        at = self._done.find(loop.key)
        if at is None or self._done.same_place(at, loop.path_bytes):
            return None
        return self._moved(at, loop)

    def recognize(self, loop: Loop, sha256: str) -> Moved | None:
        """The row of a loop whose content is known: its own, or that of a file which is gone."""
        at = self._outdated.get(loop.key)
        if at is not None and self._done.same_content(at, sha256):
            del self._outdated[loop.key]
            return self._moved(at, loop)
        at = self._orphan(loop, sha256)
        if at is None:
            return None
        self._met[at] = True
        return self._moved(at, loop)

    def result(self, sha256: str) -> Result | None:
        """The embedding and `crop_std` that the store has of a content, also of this run."""
        found = self._done.result(self._done.with_content(sha256).tolist(), sha256)
        return self._later.result(sha256) if found is None else found

    def older_shard(self, key: str) -> Path | None:
        """The shard with an outdated row of this key."""
        at = self._outdated.get(key)
        return None if at is None else self._done.part(at)

    def new_id(self, key: str, sha256: str) -> str:
        """An id for a new row: a row that was moved keeps the one of its first place.

        The whole key tells rows of one content apart, also those that other processes write at the
        same time; no two loops of a run share it.
        """
        suffix, n = key, 0
        while self._done.holds_id(sha256, suffix):
            n += 1
            suffix = hashlib.sha256(f"{key}-{n}".encode()).hexdigest()[: len(key)]
        return f"{sha256[:16]}-{suffix}"

    def _moved(self, at: int, loop: Loop) -> Moved:
        return Moved(
            loop,
            self._done.key(at),
            self._done.part(at),
            is_elsewhere=not self._done.same_place(at, loop.path_bytes),
            replaces=self.older_shard(loop.key),
        )

    def _orphan(self, loop: Loop, sha256: str) -> int | None:
        """Of the rows of a content whose files are gone, the one with the most similar path."""
        rows = self._done.with_content(sha256)
        rows = rows[self._mine[rows] & ~self._met[rows] & ~self._there[rows]]
        found: dict[int, int] = {}
        for at in rows.tolist():
            path = self._done.path_bytes(at)
            if path is None or not is_gone(path):
                self._there[at] = True
                continue
            found[at] = _equal_names(path, loop.path_bytes)
            if len(found) == MAX_CANDIDATES:
                break
        return max(found, key=lambda at: found[at], default=None)


def _equal_names(a: bytes, b: bytes) -> int:
    """How many names at the end of two paths are equal."""
    names, others = (reversed(Path(os.fsdecode(path)).parts) for path in (a, b))
    equal = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(names, others, strict=False))
    return sum(1 for _ in equal)
