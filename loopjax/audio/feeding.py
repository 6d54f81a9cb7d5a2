"""Decoder threads that fill batches; see `batching` for what a batch is.

A thread takes a few loops at a time, as many as its decoder needs some hundredths of a second for,
and copies each one's samples straight into its place in a batch.
"""

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from queue import Empty, Queue

import numpy as np

from loopjax.audio.batching import Batch, Buckets, Row
from loopjax.audio.decoder import Decoder, Reply
from loopjax.audio.loop import DecodeError, Failure, Loop

MAX_REQUESTED = 32  # files that one message asks a decoder for
REQUESTED_S = 0.05  # about as long as it may be busy with them
FREE_BYTES = 256 << 20  # memory of sent batches that is kept for new ones
HOST_BYTES = 2 << 30  # when open batches hold more audio, the fullest is sent as it is


class Feeder:
    """Decodes a manifest in background threads and yields batches; memory stays bounded.

    Iterate over it once. Rejected inputs are handed to `on_failure`, from any thread.
    """

    def __init__(
        self,
        loops: Iterable[Loop | Failure | None],
        decoders: Sequence[Decoder],
        buckets: Buckets,
        on_failure: Callable[[Failure], None],
        attach: Callable[[Row], list[Row] | None] = lambda row: [row],
        queue_batches: int = 2,
        host_bytes: int = HOST_BYTES,
    ):
        """Prepares the feeder; threads start with the first `get`.

        Args:
            loops: manifest rows, consumed lazily; None where the next may be long in coming, and
                wait for the rows before it.
            decoders: one thread runs per decoder; they are closed at the end.
            buckets: shapes of the batches.
            on_failure: called once per rejected input.
            attach: called with each decoded row before its samples are placed; returns the list
                that stands for the row in the batch, or None when the samples are not needed.
            queue_batches: full batches that may wait for the device.
            host_bytes: bound on the audio in batches that are not full yet.
        """
        self._loops = _SharedIterator(iter(loops))
        self._decoders = list(decoders)
        self._buckets = buckets
        self._on_failure = on_failure
        self._attach = attach
        self._queue: Queue[Batch[list[Row]] | None] = Queue(queue_batches)
        self._host_bytes = host_bytes
        self._open: dict[tuple[int, int, str], Batch[list[Row]]] = {}
        self._free: dict[tuple[tuple[int, ...], str], list[np.ndarray]] = {}
        self._n_free_bytes = 0
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._error: BaseException | None = None
        self._threads = [
            threading.Thread(target=self._run, args=(d,), daemon=True) for d in self._decoders
        ]
        self._alive = len(self._threads)

    def start(self) -> None:
        """Starts decoding; returns at once."""
        for thread in self._threads:
            thread.start()

    def get(self, timeout_s: float | None = None) -> Batch[list[Row]] | None:
        """Next batch; None at the end.

        Raises:
            queue.Empty: nothing is ready within `timeout_s`.
        """
        batch = self._queue.get(timeout=timeout_s)
        if batch is None:
            self._queue.put(None)  # for the next caller
            if self._error is not None:
                raise self._error
        return batch

    def take_open(self) -> list[Batch[list[Row]]]:
        """Takes the batches that are not full, as they are; for when no more is to be expected."""
        with self._lock:
            batches = [self._open.pop(key) for key in sorted(self._open)]
            for batch in batches:
                batch._closed = True
            ready = [batch for batch in batches if not batch._copying]
        for batch in ready:
            batch.clear_empty_rows()
        return ready

    def __iter__(self) -> Iterator[Batch[list[Row]]]:
        self.start()
        while (batch := self.get()) is not None:
            yield batch

    def close(self) -> None:
        """Stops the threads and ends the decoders; safe to call at any time."""
        self._stopping.set()
        for decoder in self._decoders:  # one may hang in a file
            decoder.interrupt()
        while any(thread.is_alive() for thread in self._threads):
            try:
                self._queue.get(timeout=0.05)
            except Empty:
                continue
        for decoder in self._decoders:
            decoder.close()

    def _run(self, decoder: Decoder) -> None:
        try:
            count = 1
            while (items := self._loops.some(count)) is not None:
                loops = []
                for item in items:
                    if isinstance(item, Failure):
                        self._on_failure(item)
                    else:
                        loops.append(item)
                started_s = time.monotonic()
                for loop, reply in zip(loops, decoder.decode_each(loops), strict=True):
                    if self._stopping.is_set():
                        return
                    self._take(loop, reply)
                if loops:
                    mean_s = (time.monotonic() - started_s) / len(loops)
                    count = max(1, min(MAX_REQUESTED, int(REQUESTED_S / max(mean_s, 1e-6))))
        except BaseException as error:  # noqa: BLE001 - handed to the caller of get()
            self._error = error
            self._stopping.set()
        finally:
            with self._lock:
                self._alive -= 1
                last = self._alive == 0
            if last:
                self._finish()

    def _finish(self) -> None:
        if not self._stopping.is_set():
            for key in sorted(self._open):
                self._emit(self._open[key])
        self._open.clear()
        self._emit(None)

    def _take(self, loop: Loop, reply: Reply | DecodeError) -> None:
        if isinstance(reply, DecodeError):
            self._on_failure(Failure.of(loop, "decode", reply.reason, str(reply)))
            return
        place = self._attach(Row(reply.loop, reply.info))
        if place is not None:
            self._place(place, reply)

    def _place(self, place: list[Row], reply: Reply) -> None:
        """Reserves a row under the lock, copies the samples outside of it."""
        rate = reply.info.rate_hz
        key = (rate, self._buckets.samples(reply.n_samples, rate), reply.dtype.name)
        with self._lock:
            if key not in self._open:
                self._open[key] = self._new_batch(key)
            batch = self._open[key]
            row = batch.add(place, reply.info.sha256)
            batch._copying += 1
            if len(batch.rows) == len(batch.samples):
                self._open.pop(key)._closed = True
            ready = self._make_room()
        reply.copy_to(batch.samples[row])
        if batch.was_used:
            batch.samples[row, reply.n_samples :] = 0
        batch.length_samples[row] = reply.n_samples
        batch.mask[row] = True
        with self._lock:
            batch._copying -= 1
            if batch._closed and not batch._copying:
                ready.append(batch)
        for complete in ready:
            self._emit(complete)

    def _make_room(self) -> list[Batch[list[Row]]]:
        """Closes the fullest open batches while there is too much; returns those ready to go."""
        ready = []
        while sum(batch.used_bytes for batch in self._open.values()) > self._host_bytes:
            fullest = max(self._open, key=lambda key: self._open[key].used_bytes)
            batch = self._open.pop(fullest)
            batch._closed = True
            if not batch._copying:
                ready.append(batch)
        return ready

    def _new_batch(self, key: tuple[int, int, str]) -> Batch[list[Row]]:
        rate_hz, bucket_samples, dtype = key
        free = self._free.get(((self._buckets.rows(bucket_samples), bucket_samples), dtype))
        old = free.pop() if free else None
        if old is not None:
            self._n_free_bytes -= old.nbytes
        batch = self._buckets.new_batch(bucket_samples, rate_hz, dtype, old)
        batch.recycle = self._recycle
        return batch

    def _recycle(self, samples: np.ndarray) -> None:
        """Keeps the memory of a batch for later ones: new pages cost more than the copying."""
        with self._lock:
            if self._n_free_bytes + samples.nbytes <= FREE_BYTES:
                self._free.setdefault((samples.shape, samples.dtype.name), []).append(samples)
                self._n_free_bytes += samples.nbytes

    def _emit(self, batch: Batch[list[Row]] | None) -> None:
        if batch is not None:
            batch.clear_empty_rows()
        self._queue.put(batch)


class _SharedIterator:
    """Hands the items of one iterator to several threads."""

    def __init__(self, items: Iterator[Loop | Failure | None]):
        self._items = items
        self._lock = threading.Lock()

    def some(self, count: int) -> list[Loop | Failure] | None:
        """The next items, at most so many, perhaps none yet; None at the end.

        Whoever has items in hand does not wait for more: these may depend on those.
        """
        found: list[Loop | Failure] = []
        with self._lock:
            for item in self._items:
                if item is None:
                    return found
                found.append(item)
                # A loop that brings its bytes along is not to be hoarded.
                if len(found) == count or (isinstance(item, Loop) and item.fetch is not None):
                    return found
        return found or None
