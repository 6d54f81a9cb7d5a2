"""The second stage: which loops need the device at all, and which only share its results.

Decoder threads ask before they place samples in a batch; the thread of the chain brings the
results back. A loop that the store holds already, or whose bytes were seen before, costs nothing
more; each loop leaves this stage exactly once.
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
from loopjax.store.index import DoneIndex

RECENT_CONTENTS = 4096  # embeddings kept for files with equal bytes: 16 MiB of 1024 floats


@dataclass(frozen=True)
class Embedded:
    """A loop and its embedding.

    Attributes:
        row: the manifest row and what decoding found out.
        embedding: float32 [D].
        crop_std: spread over random crops; None with fixed crops.
        replaces: the shard with an outdated row of this loop.
    """

    row: Row
    embedding: np.ndarray
    crop_std: float | None
    replaces: Path | None = None


@dataclass(frozen=True)
class Failed:
    """A loop without an embedding; `replaces` is the shard with an outdated row of it."""

    failure: Failure
    replaces: Path | None = None


class Deduplicator:
    """Keeps loops with equal bytes together, and apart from what the store holds."""

    def __init__(self, done: DoneIndex | None = None):
        """Starts with what the store holds; None = nothing."""
        self.n_skipped = self.n_duplicates = 0
        self._done = done
        self._lock = threading.Lock()
        self._pending: dict[str, list[Row]] = {}  # content hash -> loops waiting for its result
        self._recent: OrderedDict[str, tuple[np.ndarray, float | None]] = OrderedDict()
        self._aside: deque[Embedded | Failed] = deque()  # finished without the device
        self._stale: dict[str, int] = {}  # keys that the store holds of files that look different

    @property
    def is_waiting(self) -> bool:
        """Whether any loop needs the device."""
        return bool(self._pending)

    def undone(self, loops: Iterable[Loop | Failure]) -> Iterator[Loop | Failure]:
        """Leaves out what the store already holds."""
        for item in loops:
            at = self._done.find(item.key) if self._done is not None else None
            if at is not None and self._done is not None and isinstance(item, Loop):
                if self._done.unchanged(at, item.size_bytes, item.mtime_ns):
                    with self._lock:
                        self.n_skipped += 1
                    continue
                self._stale[item.key] = at
            yield item

    def attach(self, row: Row) -> list[Row] | None:
        """Decides, from a decoder's thread, whether a decoded loop needs the device.

        Returns:
            The list of loops that share its samples, to which later ones are added; None where
            the samples are not needed.
        """
        sha256, key = row.info.sha256, row.loop.key
        with self._lock:
            at = self._stale.get(key)
            if at is not None and self._done is not None and self._done.same_content(at, sha256):
                self.n_skipped += 1  # only touched
                return None
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
        self._aside.append(Failed(failure, self._older_shard(failure.key)))

    def resolve(self, finished: Iterable[Encoded[list[Row]]]) -> Iterator[Embedded | Failed]:
        """Every loop that a finished content belongs to, then those that need no device."""
        for content in finished:
            rows, result = content.row, (content.embedding, content.crop_std)
            sha256 = rows[0].info.sha256
            with self._lock:
                del self._pending[sha256]  # from here on nobody adds to `rows`
                self._recent[sha256] = result
                if len(self._recent) > RECENT_CONTENTS:
                    self._recent.popitem(last=False)
            for row in rows:
                yield self._embedded(row, *result)
        while self._aside:
            yield self._aside.popleft()

    def _embedded(self, row: Row, embedding: np.ndarray, crop_std: float | None) -> Embedded:
        return Embedded(row, embedding, crop_std, self._older_shard(row.loop.key))

    def _older_shard(self, key: str) -> Path | None:
        at = self._stale.get(key)
        return None if at is None or self._done is None else self._done.part(at)
