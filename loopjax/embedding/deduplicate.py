"""The second stage: which loops need the device at all, and which only share its results.

Decoder threads ask before they place samples in a batch; the thread of the chain brings the
results back. A loop that the store holds already, or whose bytes were seen before, costs nothing
more; each other loop leaves this stage exactly once.
"""

import threading
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from loopjax.audio.batching import Row
from loopjax.audio.loop import Failure, Loop
from loopjax.embedding.encode import Encoded
from loopjax.embedding.stored import Moved, StoredLoops
from loopjax.store.index import Result

# Embeddings kept for files with equal bytes, 64 MiB of 1024 floats: as many as may not be written
# yet. Those of older contents are read back from their shards.
RECENT_CONTENTS = 16_384


@dataclass(frozen=True)
class Embedded:
    """A loop and its embedding.

    Attributes:
        id: of the row in a store.
        row: the manifest row and what decoding found out.
        embedding: float32 [D].
        crop_std: spread over random crops; None with fixed crops.
        replaces: the shard with an outdated row of this loop.
    """

    id: str
    row: Row
    embedding: np.ndarray
    crop_std: float | None
    replaces: Path | None = None


@dataclass(frozen=True)
class Failed:
    """A loop without an embedding; `replaces` is the shard with an outdated row of it."""

    failure: Failure
    replaces: Path | None = None


@dataclass(frozen=True)
class Kept:
    """A loop whose row the store holds as it is."""

    key: str


Finished = Embedded | Moved | Kept | Failed


class Deduplicator:
    """Keeps loops with equal bytes together, and apart from what the store holds."""

    def __init__(self, stored: StoredLoops):
        """Starts with what the store holds."""
        self.n_skipped = self.n_moved = self.n_duplicates = 0
        self._stored = stored
        self._lock = threading.Lock()
        self._pending: dict[str, list[Row]] = {}  # content hash -> loops waiting for its result
        self._recent: OrderedDict[str, Result] = OrderedDict()
        self._aside: deque[Finished] = deque()  # finished without the device

    @property
    def is_waiting(self) -> bool:
        """Whether any loop needs the device."""
        return bool(self._pending)

    def undone(self, loops: Iterable[Loop | Failure | None]) -> Iterator[Loop | Failure | None]:
        """Leaves out what the store already holds."""
        for item in loops:
            if not isinstance(item, Loop) or not self._is_done(item):
                yield item

    def attach(self, row: Row) -> list[Row] | None:
        """Decides, from a decoder's thread, whether a decoded loop needs the device.

        Returns:
            The list of loops that share its samples, to which later ones are added; None where
            the samples are not needed.
        """
        sha256 = row.info.sha256
        with self._lock:
            moved = self._stored.recognize(row.loop, sha256)
            if moved is not None:
                self._keep(row.loop, moved)
                return None
            if sha256 not in self._recent and sha256 not in self._pending:
                known = self._stored.result(sha256)
                if known is not None:
                    self._remember(sha256, known)
            if sha256 in self._recent:
                self._recent.move_to_end(sha256)
                self.n_duplicates += 1
                self._aside.append(self._embedded(row, *self._recent[sha256]))
                return None
            if sha256 in self._pending:
                self.n_duplicates += 1
                self._pending[sha256].append(row)
                return None
            self._pending[sha256] = [row]
            return self._pending[sha256]

    def reject(self, failure: Failure) -> None:
        """Takes a rejected input, from any thread."""
        self._aside.append(Failed(failure, self._stored.older_shard(failure.key)))

    def resolve(self, finished: Iterable[Encoded[list[Row]]]) -> Iterator[Finished]:
        """Every loop that a finished content belongs to, then those that need no device."""
        for content in finished:
            rows, result = content.row, (content.embedding, content.crop_std)
            sha256 = rows[0].info.sha256
            with self._lock:
                del self._pending[sha256]  # from here on nobody adds to `rows`
                self._remember(sha256, result)
            for row in rows:
                yield self._embedded(row, *result)
        while self._aside:
            yield self._aside.popleft()

    def _is_done(self, loop: Loop) -> bool:
        with self._lock:
            done = self._stored.is_done(loop)
            if done:
                self._keep(loop, self._stored.relocated(loop))
            return done

    def _keep(self, loop: Loop, moved: Moved | None) -> None:
        """Counts a loop whose row the store holds, and passes on what changes in it."""
        self.n_skipped += 1
        self.n_moved += moved is not None and moved.is_elsewhere
        self._aside.append(moved or Kept(loop.key))

    def _remember(self, sha256: str, result: Result) -> None:
        self._recent[sha256] = result
        if len(self._recent) > RECENT_CONTENTS:
            self._recent.popitem(last=False)

    def _embedded(self, row: Row, embedding: np.ndarray, crop_std: float | None) -> Embedded:
        key, sha256 = row.loop.key, row.info.sha256
        row_id = self._stored.new_id(key, sha256)
        return Embedded(row_id, row, embedding, crop_std, self._stored.older_shard(key))
