"""The device side of embedding: batches in, one finished row per loop out.

Results are fetched one batch behind, so that host and device work at the same time. Batches always
have the compiled shape; what is left over (tails, long clips) waits as mel rows, which have the
same small size whatever the clip's length, until a full encoder batch is together.
"""

import contextlib
import queue
import signal
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from types import FrameType
from typing import Any

import numpy as np

from loopjax.audio.batching import Batch, Feeder, Row, make_buckets
from loopjax.audio.decoder import Decoder
from loopjax.audio.loop import Failure, Loop
from loopjax.config import EmbedConfig
from loopjax.embedding.ledger import Ledger
from loopjax.embedding.progress import Progress
from loopjax.errors import InterruptedRunError

BATCH_SIZE = {"cpu": 4, "gpu": 128, "tpu": 64}  # per device
IN_FLIGHT = 2  # batches dispatched before the oldest result is fetched
POLL_S = 0.005


@dataclass
class _Dispatched:
    """An encoder batch on the device: results (one per crop draw) and the loops of each row."""

    results: list[Any]
    rows: list[list[Row]]

    def is_ready(self) -> bool:
        return self.results[-1].is_ready()


@dataclass
class _Leftover:
    """Mel rows of a batch that is smaller than the encoder's."""

    draws: list[tuple[Any, Any]]  # (mel, longer), one per crop draw; may hold padding rows
    rows: list[list[Row]]

    def fetch(self, draw: int) -> tuple[np.ndarray, np.ndarray]:
        """Copies one draw's real rows to the host."""
        mel, longer = self.draws[draw]
        n = len(self.rows)
        return np.asarray(mel)[:n], np.asarray(longer)[:n]


class EmbeddingRun:
    """One pass over a manifest on this process's devices."""

    def __init__(self, encoder: Any, options: EmbedConfig, n_crops: int, ledger: Ledger):
        """Places the encoder on all local devices.

        Args:
            encoder: see `loopjax.encoders.encoder.Encoder`.
            options: batch size, buckets and policies.
            n_crops: random crop draws to average; 0 = fixed crops.
            ledger: knows which loops need the device and takes the results.
        """
        import jax

        from loopjax import parallel

        self._ledger, self.summary = ledger, ledger.summary
        mesh = parallel.data_mesh()
        n_devices = mesh.devices.size
        self._sharding = parallel.batch_sharding(mesh)
        self._encoder = encoder.replicate(mesh)
        size = options.batch_size or BATCH_SIZE.get(jax.default_backend(), 64) * n_devices
        self._batch_size = -(-size // n_devices) * n_devices
        self._buckets = make_buckets(
            options.buckets_s,
            options.max_duration_s,
            self._batch_size,
            n_devices,
            encoder.clip_samples / encoder.sample_rate_hz,
        )
        self._n_crops = n_crops
        self._compiled = False
        self._dispatched: deque[_Dispatched] = deque()
        self._leftovers: dict[int, list[_Leftover]] = {}  # by number of draws
        self._started_s = self._wait_s = 0.0

    def run(self, loops: Iterable[Loop | Failure], decoders: list[Decoder], bar: Progress) -> None:
        """Embeds everything; on SIGINT or SIGTERM it finishes what the device has and raises.

        Raises:
            InterruptedRunError: after a signal; all finished rows have gone to the sink.
            TooManyRejectedError: at the first rejected input, with `strict`.
        """
        feeder = Feeder(
            self._ledger.undone(loops),
            decoders,
            self._buckets,
            self._ledger.reject,
            self._ledger.attach,
        )
        self._started_s = time.monotonic()
        with _signals() as caught:
            try:
                feeder.start()
                while (batch := self._next(feeder, caught, bar)) is not None:
                    self._dispatch(batch)
                    while len(self._dispatched) > IN_FLIGHT:
                        self._deliver()
                if not caught:
                    self._encode_leftovers(0)
                while self._dispatched:
                    self._deliver()
                self._ledger.drain()
            finally:
                feeder.close()
                self._summarize()
        if caught:
            name = signal.Signals(caught[0]).name
            message = f"stopped by {name}; what was finished is saved, run it again to continue"
            raise InterruptedRunError(message, caught[0])

    def _compile_ahead(self) -> None:
        """Compiles the encoder while the first files decode; not if all are done already."""
        import jax

        self._compiled = True
        config = self._encoder.preprocessing
        frames = self._encoder.clip_samples // config["hop_samples"] + 1
        views = 4 if self._encoder.fusion else 1
        mel = np.zeros((self._batch_size, views, frames, config["mel_bins"]), np.float32)
        longer = np.zeros(self._batch_size, bool)
        jax.block_until_ready(self._encode(mel, longer))

    def _next(self, feeder: Feeder, caught: list[int], bar: Progress) -> Batch | None:
        """Waits for a batch and stores results meanwhile; None at the end or after a signal."""
        while not caught:
            if self._ledger.is_waiting and not self._compiled:
                self._compile_ahead()
            self._ledger.drain()
            bar.update(self._ledger.n_done(), self._note)
            idle = not self._dispatched or self._dispatched[-1].is_ready()
            asked_s = time.monotonic()
            try:
                return feeder.get(POLL_S)
            except queue.Empty:
                if idle:
                    self._wait_s += time.monotonic() - asked_s
                if self._dispatched and self._dispatched[0].is_ready():
                    self._deliver()
        return None

    def _dispatch(self, batch: Batch) -> None:
        """Sends a batch through the front end, and to the encoder if it fills one."""
        clip_s = self._encoder.clip_samples / self._encoder.sample_rate_hz
        has_long = bool((batch.length_samples > clip_s * batch.sample_rate_hz).any())
        draws = []
        for draw in range(self._n_crops if has_long and self._n_crops else 1):
            fractions = self._fractions(batch, draw) if self._n_crops else None
            draws.append(
                self._encoder.front_end(
                    batch.samples, batch.length_samples, batch.sample_rate_hz, fractions
                )
            )
        if len(batch.rows) == self._batch_size:
            results = [self._encode(*draw) for draw in draws]
            self._dispatched.append(_Dispatched(results, batch.rows))
        else:
            waiting = self._leftovers.setdefault(len(draws), [])
            waiting.append(_Leftover(draws, batch.rows))
            if sum(len(left.rows) for left in waiting) >= self._batch_size:
                self._encode_leftovers(self._batch_size)

    def _fractions(self, batch: Batch, draw: int) -> np.ndarray:
        from loopjax.htsat.fusion import seeded_fractions

        fractions = np.zeros((len(batch.samples), 3))
        hashes = [rows[0].info.sha256 for rows in batch.rows]
        fractions[: len(hashes)] = seeded_fractions(hashes, draw)
        return fractions

    def _encode_leftovers(self, at_least: int) -> None:
        """Sends waiting mel rows on in full batches, or all of them if `at_least` is 0."""
        size = self._batch_size
        for n_draws, waiting in self._leftovers.items():
            rows = [row for left in waiting for row in left.rows]
            if not rows or len(rows) < at_least:
                continue
            draws = [_join(left.fetch(draw) for left in waiting) for draw in range(n_draws)]
            first = 0
            while len(rows) - first >= max(1, at_least):
                part = slice(first, first + size)
                results = [
                    self._encode(_pad(mel[part], size), _pad(longer[part], size))
                    for mel, longer in draws
                ]
                self._dispatched.append(_Dispatched(results, rows[part]))
                first += size
            rest = rows[first:]
            kept = [(mel[first:], longer[first:]) for mel, longer in draws]
            self._leftovers[n_draws] = [_Leftover(kept, rest)] if rest else []

    def _encode(self, mel: Any, longer: Any) -> Any:
        """Runs the encoder; the same placement wherever the mel comes from keeps it one program."""
        import jax

        result = self._encoder.encode(*jax.device_put((mel, longer), self._sharding))
        result.copy_to_host_async()  # so that delivering it later does not wait for the transfer
        return result

    def _deliver(self) -> None:
        """Fetches the oldest result and hands its rows to the sink."""
        item = self._dispatched.popleft()
        draws = np.stack([np.asarray(result, np.float32) for result in item.results])
        draws = draws[:, : len(item.rows)]
        spread = draws.std(axis=0).mean(axis=1) if self._n_crops else None
        embeddings = draws.mean(axis=0) if len(draws) > 1 else draws[0]
        for i, rows in enumerate(item.rows):
            embedding = embeddings[i].copy()
            std = None if spread is None else float(spread[i])
            self._ledger.finish(rows[0].info.sha256, embedding, std)

    def _note(self) -> str:
        elapsed_s = max(1e-9, time.monotonic() - self._started_s)
        rate = self.summary.n_embedded / elapsed_s
        waits = 100.0 * self._wait_s / elapsed_s
        return f"{rate:.1f} files/s, {self.summary.n_failed} failed, device waits {waits:.0f} %"

    def _summarize(self) -> None:
        elapsed_s = max(1e-9, time.monotonic() - self._started_s)
        self.summary.duration_s = elapsed_s
        self.summary.wait_share = self._wait_s / elapsed_s
        self.summary.files_per_s = self.summary.n_embedded / elapsed_s


def _join(pieces: Iterable[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    mels, longer = zip(*pieces, strict=True)
    return np.concatenate(mels), np.concatenate(longer)


def _pad(array: np.ndarray, size: int) -> np.ndarray:
    padding = [(0, size - len(array))] + [(0, 0)] * (array.ndim - 1)
    return np.pad(array, padding)


@contextlib.contextmanager
def _signals() -> Iterator[list[int]]:
    """Collects SIGINT and SIGTERM; a second one raises KeyboardInterrupt at once.

    Outside the main thread signals cannot be caught, and the list stays empty.
    """
    caught: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        if caught:
            raise KeyboardInterrupt
        caught.append(number)

    if threading.current_thread() is not threading.main_thread():
        yield caught
        return
    old = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield caught
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
