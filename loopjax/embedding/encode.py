"""The third stage: batches in, embeddings out, one row each.

Results are fetched a few batches behind, so that host and device work at the same time. The front
end runs on small batches of the readers' shapes, the encoder on large ones of one shape; between
the two, features wait on the device (see `features`).
"""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import jax
import numpy as np

from loopjax import parallel
from loopjax.audio.batching import Batch, make_buckets
from loopjax.config import EmbedConfig
from loopjax.embedding.features import FeaturePool, Features
from loopjax.encoders.protocol import Encoder
from loopjax.encoders.space import Space

BATCH_SIZE = {"cpu": 4, "gpu": 128, "tpu": 64}  # per device
# Rows of a front-end batch, per device. Few, because the last batch of each length, rate and format
# is mostly empty; enough for a launch on an accelerator to pay.
FRONT_END_ROWS = {"cpu": 4, "gpu": 16, "tpu": 16}
IN_FLIGHT = 2  # batches dispatched before the oldest result is fetched

T = TypeVar("T")


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
    """An encoder batch on the device: one result per crop draw, and per device its rows."""

    results: list[jax.Array]
    rows: list[list[T]]

    def is_ready(self) -> bool:
        return _is_ready(self.results[-1])


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
        self._mesh = parallel.data_mesh()
        backend, n_devices = jax.default_backend(), self._mesh.devices.size
        size = batch_size or config.batch_size or BATCH_SIZE.get(backend, 64) * n_devices
        self._size = -(-size // n_devices) * n_devices
        self._front_end_rows = min(self._size, FRONT_END_ROWS.get(backend, 16) * n_devices)
        self.buckets = make_buckets(
            config.buckets_s, config.max_duration_s, self._front_end_rows, n_devices
        )
        self._clip_s = encoder.clip_samples / encoder.sample_rate_hz
        self._sharding = parallel.batch_sharding(self._mesh)
        self._encoder = encoder.replicate(self._mesh)
        self._n_crops = space.n_crops
        # A GPU that finds out itself whether a batch has clips to fuse makes the host wait for it.
        self._sorts_long = encoder.fusion and backend != "cpu"
        self._compiled = False
        self._dispatched: deque[_Dispatched[T]] = deque()
        self._read: deque[tuple[list[Features], Batch[T]]] = deque()  # and what they are made of
        # By number of draws, and whether clips may be longer than the encoder's.
        self._pools: dict[tuple[int, bool], FeaturePool[T]] = {}

    @property
    def is_idle(self) -> bool:
        """Whether the device has nothing to do."""
        return not self._dispatched or self._dispatched[-1].is_ready()

    def compile(self) -> None:
        """Compiles the encoder, once: while the first files decode."""
        if not self._compiled:
            self._compiled = True
            mel = np.zeros((self._size, *self._encoder.mel_shape), np.float32)
            longer = None if self._sorts_long else np.zeros(self._size, bool)
            jax.block_until_ready(self._encode(mel, longer))

    def encode(self, batch: Batch[T] | None) -> Iterator[Encoded[T]]:
        """Sends a batch to the device and yields the rows of earlier ones that are finished.

        Args:
            batch: None only asks for finished rows.
        """
        while self._read and all(_is_ready(mel) for mel, _ in self._read[0][0]):
            _, done = self._read.popleft()
            done.recycle(done.samples)
        if batch is not None:
            self._dispatch(batch)
        while self._dispatched and (
            len(self._dispatched) > IN_FLIGHT or (batch is None and self._dispatched[0].is_ready())
        ):
            yield from self._fetch()

    def finish(self, *, leftovers: bool = True) -> Iterator[Encoded[T]]:
        """Yields all rows that are on the device; without `leftovers`, only of full batches."""
        for (_, has_long), pool in self._pools.items() if leftovers else ():
            while len(pool):
                self._encode_rows(*pool.take(), has_long)
        while self._dispatched:
            yield from self._fetch()

    def _dispatch(self, batch: Batch[T]) -> None:
        """Sends a batch through the front end, and to the encoder once that has a full batch."""
        longest_s = float(batch.length_samples.max()) / batch.sample_rate_hz
        has_long = longest_s > self._clip_s or not self._sorts_long
        n_draws = self._n_crops if self._n_crops and longest_s > self._clip_s else 1
        draws = [self._front_end(batch, draw) for draw in range(n_draws)]
        self._read.append((draws, batch))
        rows = batch.rows_by_part()
        pool = self._pools.get((n_draws, has_long))
        if not pool and len(batch.rows) == self._size:
            self._encode_rows(draws, rows, has_long)  # nothing waits, nothing is missing
            return
        if pool is None:
            shape = self._encoder.mel_shape
            pool = FeaturePool(self._mesh, self._size, self._front_end_rows, shape, n_draws)
            self._pools[n_draws, has_long] = pool
        pool.add(draws, rows)
        while pool.is_full:
            self._encode_rows(*pool.take(), has_long)

    def _front_end(self, batch: Batch[T], draw: int) -> Features:
        fractions = None
        if self._n_crops:
            fractions = np.zeros((len(batch.samples), 3))
            fractions[batch.positions()] = crop_fractions(batch.sha256, draw)
        return self._encoder.front_end(
            batch.samples, batch.length_samples, batch.sample_rate_hz, fractions
        )

    def _encode_rows(self, draws: Sequence[Features], rows: list[list[T]], has_long: bool) -> None:
        results = [self._encode(mel, longer if has_long else None) for mel, longer in draws]
        self._dispatched.append(_Dispatched(results, rows))

    def _encode(
        self, mel: jax.Array | np.ndarray, longer: jax.Array | np.ndarray | None
    ) -> jax.Array:
        """Runs the encoder; the same placement wherever the mel comes from keeps it one program."""
        result = self._encoder.encode(*jax.device_put((mel, longer), self._sharding))
        result.copy_to_host_async()  # so that fetching it later does not wait for the transfer
        return result

    def _fetch(self) -> Iterator[Encoded[T]]:
        """The rows of the oldest dispatched batch."""
        item = self._dispatched.popleft()
        draws = np.stack([np.asarray(result, np.float32) for result in item.results])
        spread = draws.std(axis=0).mean(axis=1) if self._n_crops else None
        embeddings = draws.mean(axis=0) if len(draws) > 1 else draws[0]
        per_device = len(embeddings) // len(item.rows)
        for device, rows in enumerate(item.rows):
            for at, row in enumerate(rows, start=device * per_device):
                std = None if spread is None else float(spread[at])
                yield Encoded(row, embeddings[at].copy(), std)


def _is_ready(array: jax.Array | np.ndarray) -> bool:
    """Whether it is computed; other encoders than ours may give NumPy's arrays, which are."""
    return not isinstance(array, jax.Array) or array.is_ready()  # pyright: ignore[reportAttributeAccessIssue]


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
