"""The bookkeeping of a run: which loops still need the device, and what becomes of each.

Decoder threads ask it before they place samples; the thread that talks to the device hands results
in. It alone knows the sink, so the same engine fills a store or memory.
"""

import threading
from collections import Counter, OrderedDict, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np

from loopjax.audio.batching import Row
from loopjax.audio.loop import Failure, Loop
from loopjax.errors import TooManyRejectedError
from loopjax.store.index import DoneIndex
from loopjax.store.schema import StoreRow

RECENT_CONTENTS = 4096  # embeddings kept for files with equal bytes: 16 MiB of 1024 floats


@dataclass
class EmbedSummary:
    """What a run did."""

    n_embedded: int = 0
    n_failed: int = 0
    n_skipped: int = 0  # already in the store
    n_duplicates: int = 0  # embedded without computing: same bytes as another file
    n_flagged: int = 0
    wait_share: float = 0.0  # share of the run in which the device had nothing to do
    duration_s: float = 0.0
    files_per_s: float = 0.0
    reasons: dict[str, int] = field(default_factory=dict)  # of the failures


class Sink(Protocol):
    """Where finished rows go."""

    def add(self, row: StoreRow, replaces: Path | None = None) -> None:
        """Takes an embedded loop."""
        ...

    def add_failure(self, failure: Failure, replaces: Path | None = None) -> None:
        """Takes a rejected input."""
        ...


class Ledger:
    """Every loop of the manifest passes through here exactly once."""

    def __init__(self, sink: Sink, done: DoneIndex | None, strict: bool):
        """Starts with nothing done in this run.

        Args:
            sink: receives rows and failures, only from the thread that calls `finish` and `drain`.
            done: what the store already holds.
            strict: raise at the first rejected input.
        """
        self._sink, self._done, self._strict = sink, done, strict
        self._lock = threading.Lock()
        self._pending: dict[str, list[Row]] = {}  # content hash -> loops waiting for its result
        self._recent: OrderedDict[str, tuple[np.ndarray, float | None]] = OrderedDict()
        self._known: deque[tuple[Row, np.ndarray, float | None]] = deque()
        self._rejected: deque[Failure] = deque()
        self._stale: dict[str, int] = {}  # done keys whose file looks different now
        self._reasons: Counter[str] = Counter()
        self.summary = EmbedSummary()

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
                        self.summary.n_skipped += 1
                    continue
                self._stale[item.key] = at
            yield item

    def attach(self, row: Row) -> list[Row] | None:
        """Decides, from a decoder's thread, whether a decoded loop needs the device."""
        sha256, key = row.info.sha256, row.loop.key
        with self._lock:
            at = self._stale.get(key)
            if at is not None and self._done is not None and self._done.same_content(at, sha256):
                self.summary.n_skipped += 1  # only touched
                return None
            if sha256 in self._recent:
                self._recent.move_to_end(sha256)
                self._known.append((row, *self._recent[sha256]))
                return None
            if sha256 in self._pending:
                self._pending[sha256].append(row)
                return None
            self._pending[sha256] = [row]
            return self._pending[sha256]

    def reject(self, failure: Failure) -> None:
        """Takes a rejected input, from any thread."""
        self._rejected.append(failure)

    def finish(self, sha256: str, embedding: np.ndarray, std: float | None) -> None:
        """Hands over all loops with this content."""
        with self._lock:
            rows = self._pending.pop(sha256)
            self._recent[sha256] = (embedding, std)
            if len(self._recent) > RECENT_CONTENTS:
                self._recent.popitem(last=False)
        self.summary.n_duplicates += len(rows) - 1
        for row in rows:
            self._store(row, embedding, std)

    def drain(self) -> None:
        """Hands over what the decoder threads left: rejected inputs and known contents."""
        while self._known:
            self.summary.n_duplicates += 1
            self._store(*self._known.popleft())
        while self._rejected:
            failure = self._rejected.popleft()
            self._fail(failure)

    def _store(self, row: Row, embedding: np.ndarray, std: float | None) -> None:
        loop, info = row.loop, row.info
        if not np.isfinite(embedding).all():
            message = "the encoder returned NaN or infinity"
            self._fail(Failure.of(loop, "encode", "non_finite", message))
            return
        stored = StoreRow(
            id=f"{info.sha256[:16]}-{loop.key[:8]}",
            key=loop.key,
            path=loop.path,
            path_bytes=loop.path_bytes,
            group=loop.group,
            sha256=info.sha256,
            size_bytes=loop.size_bytes,
            mtime_ns=loop.mtime_ns,
            sample_rate_hz=info.source_rate_hz,
            channels=info.channels,
            n_frames=info.n_frames,
            duration_s=info.duration_s,
            subtype=info.subtype,
            flags=list(info.flags),
            crop_std=std,
            embedding=embedding,
        )
        self._sink.add(stored, self._older(loop.key))
        self.summary.n_embedded += 1
        self.summary.n_flagged += bool(info.flags)

    def _fail(self, failure: Failure) -> None:
        self._sink.add_failure(failure, self._older(failure.key))
        self._reasons[failure.reason] += 1
        self.summary.reasons = dict(self._reasons)
        self.summary.n_failed += 1
        if self._strict:
            raise TooManyRejectedError(
                f"{failure.path}: {failure.reason} ({failure.message}); stopped because of --strict"
            )

    def _older(self, key: str) -> Path | None:
        """The shard with an outdated row of this key."""
        at = self._stale.get(key)
        return None if at is None or self._done is None else self._done.part(at)

    def n_done(self) -> int:
        """Loops that are embedded, rejected or were there before."""
        return self.summary.n_embedded + self.summary.n_skipped + self.summary.n_failed
