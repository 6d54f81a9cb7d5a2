"""The third stage: batches in, embeddings out, one row each.

Results are fetched a few batches behind, so that host and device work at the same time. Encoder
batches always have the one compiled shape; what is left over (last batches, long clips) waits as
features, which have the same small size whatever the clip's length, until a full batch is together.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import jax
import numpy as np

from loopjax import parallel
from loopjax.audio.batching import Batch, make_buckets
from loopjax.config import EmbedConfig
from loopjax.encoders.protocol import Encoder
from loopjax.encoders.space import Space

BATCH_SIZE = {"cpu": 4, "gpu": 128, "tpu": 64}  # per device
IN_FLIGHT = 2  # batches dispatched before the oldest result is fetched

T = TypeVar("T")
Features = tuple[jax.Array, jax.Array]  # (mel, longer) of a batch, see `Encoder.front_end`
HostFeatures = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Encoded(Generic[T]):
    """One finished row.

    Attributes:
        row: whose it is, from `Batch.rows`.
        embedding: float32 [D], the mean over crop draws.
        crop_std: spread over random crops; None with fixed crops.
    """

    row: T
    embedding: np.ndarray
    crop_std: float | None


@dataclass(frozen=True)
class _Dispatched(Generic[T]):
    """An encoder batch on the device: one result per crop draw."""

    results: list[jax.Array]
    rows: list[T]

    def is_ready(self) -> bool:
        return self.results[-1].is_ready()  # pyright: ignore[reportAttributeAccessIssue]


@dataclass(frozen=True)
class _Leftover(Generic[T]):
    """Features of a batch that is smaller than the encoder's, one per crop draw."""

    draws: Sequence[Features | HostFeatures]  # may hold padding rows
    rows: list[T]

    def fetch(self, draw: int) -> HostFeatures:
        """Copies one draw's real rows to the host."""
        mel, longer = self.draws[draw]
        n = len(self.rows)
        return np.asarray(mel)[:n], np.asarray(longer)[:n]


class BatchEncoder(Generic[T]):
    """An encoder on all devices of this process."""

    def __init__(self, encoder: Encoder, space: Space, config: EmbedConfig, batch_size: int = 0):
        """Places the encoder on all local devices.

        Args:
            encoder: computes the embeddings.
            space: where they lie; says how long clips are cropped.
            config: batch size and buckets.
            batch_size: rows of an encoder batch; 0 = as the options say, or by device.
        """
        mesh = parallel.data_mesh()
        n_devices = mesh.devices.size
        size = batch_size or config.batch_size
        size = size or BATCH_SIZE.get(jax.default_backend(), 64) * n_devices
        self._size = -(-size // n_devices) * n_devices
        clip_s = encoder.clip_samples / encoder.sample_rate_hz
        self.buckets = make_buckets(
            config.buckets_s, config.max_duration_s, self._size, n_devices, clip_s
        )
        self._clip_s = clip_s
        self._sharding = parallel.batch_sharding(mesh)
        self._encoder = encoder.replicate(mesh)
        self._n_crops = space.n_crops
        self._compiled = False
        self._dispatched: deque[_Dispatched[T]] = deque()
        self._leftovers: dict[int, list[_Leftover[T]]] = {}  # by number of draws

    @property
    def is_idle(self) -> bool:
        """Whether the device has nothing to do."""
        return not self._dispatched or self._dispatched[-1].is_ready()

    def compile(self) -> None:
        """Compiles the encoder, once: while the first files decode."""
        if not self._compiled:
            self._compiled = True
            mel = np.zeros((self._size, *self._encoder.mel_shape), np.float32)
            jax.block_until_ready(self._encode(mel, np.zeros(self._size, bool)))

    def encode(self, batch: Batch[T] | None) -> Iterator[Encoded[T]]:
        """Sends a batch to the device and yields the rows of earlier ones that are finished.

        Args:
            batch: None only asks for finished rows.
        """
        if batch is not None:
            self._dispatch(batch)
        while self._dispatched and (
            len(self._dispatched) > IN_FLIGHT or (batch is None and self._dispatched[0].is_ready())
        ):
            yield from self._fetch()

    def finish(self, *, leftovers: bool = True) -> Iterator[Encoded[T]]:
        """Yields all rows that are on the device; without `leftovers`, only of full batches."""
        if leftovers:
            self._encode_leftovers(0)
        while self._dispatched:
            yield from self._fetch()

    def _dispatch(self, batch: Batch[T]) -> None:
        """Sends a batch through the front end, and to the encoder if it fills one."""
        longest_s = float(batch.length_samples.max()) / batch.sample_rate_hz
        n_draws = self._n_crops if self._n_crops and longest_s > self._clip_s else 1
        draws = [self._front_end(batch, draw) for draw in range(n_draws)]
        if len(batch.rows) == self._size:
            results = [self._encode(*draw) for draw in draws]
            self._dispatched.append(_Dispatched(results, batch.rows))
            return
        waiting = self._leftovers.setdefault(n_draws, [])
        waiting.append(_Leftover(draws, batch.rows))
        if sum(len(left.rows) for left in waiting) >= self._size:
            self._encode_leftovers(self._size)

    def _front_end(self, batch: Batch[T], draw: int) -> Features:
        fractions = None
        if self._n_crops:
            fractions = np.zeros((len(batch.samples), 3))
            fractions[: len(batch.sha256)] = crop_fractions(batch.sha256, draw)
        return self._encoder.front_end(
            batch.samples, batch.length_samples, batch.sample_rate_hz, fractions
        )

    def _encode_leftovers(self, at_least: int) -> None:
        """Sends waiting features on in full batches, or all of them if `at_least` is 0."""
        size = self._size
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

    def _encode(self, mel: jax.Array | np.ndarray, longer: jax.Array | np.ndarray) -> jax.Array:
        """Runs the encoder; the same placement wherever the mel comes from keeps it one program."""
        result = self._encoder.encode(*jax.device_put((mel, longer), self._sharding))
        result.copy_to_host_async()  # so that fetching it later does not wait for the transfer
        return result

    def _fetch(self) -> Iterator[Encoded[T]]:
        """The rows of the oldest dispatched batch."""
        item = self._dispatched.popleft()
        draws = np.stack([np.asarray(result, np.float32) for result in item.results])
        draws = draws[:, : len(item.rows)]
        spread = draws.std(axis=0).mean(axis=1) if self._n_crops else None
        embeddings = draws.mean(axis=0) if len(draws) > 1 else draws[0]
        for i, row in enumerate(item.rows):
            yield Encoded(row, embeddings[i].copy(), None if spread is None else float(spread[i]))


def crop_fractions(sha256: Sequence[str], draw: int) -> np.ndarray:
    """Crop positions that depend on the audio alone, float64 [B, 3] in [0, 1).

    Independent of order, batch and process: the same loop gets the same crops everywhere.

    Args:
        sha256: hash of each row's content.
        draw: number of the draw, from 0.
    """
    keys = [np.frombuffer(bytes.fromhex(digest), np.uint32) for digest in sha256]
    rows = [np.random.default_rng([draw, *key]).random(3) for key in keys]
    return np.stack(rows) if rows else np.zeros((0, 3))


def _join(pieces: Iterable[HostFeatures]) -> HostFeatures:
    mels, longer = zip(*pieces, strict=True)
    return np.concatenate(mels), np.concatenate(longer)


def _pad(array: np.ndarray, size: int) -> np.ndarray:
    padding = [(0, size - len(array))] + [(0, 0)] * (array.ndim - 1)
    return np.pad(array, padding)
