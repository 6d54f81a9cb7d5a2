"""Decoded loops to fixed-shape batches: one shape per (rate, bucket, sample format).

A loop's bucket depends on its own length and rate only, never on its neighbors, so its numbers do
not depend on the order of the corpus either. Each row is copied straight from the decoder into its
place; nothing is padded beyond the bucket.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import numpy as np

from loopjax.audio.loop import AudioInfo, Loop

LONG_BUCKET_GROWTH = 2.0
MAX_BATCH_SAMPLES = 16 << 20  # 64 MiB of float32

T = TypeVar("T")


@dataclass(frozen=True)
class Row:
    """One loop in a batch: the manifest row and what decoding found out."""

    loop: Loop
    info: AudioInfo


@dataclass
class Batch(Generic[T]):
    """Samples of several loops in one fixed-shape array.

    Attributes:
        samples: int16 or float32 [B, bucket_samples], mono, zero past each row's end. The rows form
            `n_parts` equal parts, one per device, which are filled in turn: so that every device
            has its share of a batch that is not full.
        length_samples: int32 [B]; 0 marks an empty row.
        mask: bool [B], True where a row holds a loop.
        rows: for each filled row, whose samples they are; what that means is the caller's business.
        sha256: for each filled row, the hash of its content.
        sample_rate_hz: rate of `samples`.
        bucket_samples: L.
        n_parts: number of parts.
        was_used: whether `samples` are of an earlier batch, and have to be cleared past each row.
        recycle: takes `samples` back once nobody reads them any more.
    """

    samples: np.ndarray
    length_samples: np.ndarray
    mask: np.ndarray
    rows: list[T]
    sha256: list[str]
    sample_rate_hz: int
    bucket_samples: int
    n_parts: int = 1
    was_used: bool = field(default=False, repr=False)  # `samples` may hold old ones
    recycle: Callable[[np.ndarray], None] = field(default=lambda samples: None, repr=False)
    _copying: int = field(default=0, repr=False)
    _closed: bool = field(default=False, repr=False)

    @property
    def used_bytes(self) -> int:
        """Memory of the rows that hold a loop."""
        return len(self.rows) * self.samples[0].nbytes

    def add(self, row: T, sha256: str) -> int:
        """Takes a row; returns the position of its samples."""
        self.rows.append(row)
        self.sha256.append(sha256)
        return self._position(len(self.rows) - 1)

    def clear_empty_rows(self) -> None:
        """Zeros what an earlier batch left in rows that hold no loop."""
        if self.was_used and len(self.rows) < len(self.samples):
            self.samples[~self.mask] = 0

    def positions(self) -> list[int]:
        """Where the samples of each filled row are."""
        return [self._position(i) for i in range(len(self.rows))]

    def rows_by_part(self) -> list[list[T]]:
        """Per part, whose its first rows are."""
        return [self.rows[part :: self.n_parts] for part in range(self.n_parts)]

    def _position(self, i: int) -> int:
        return i % self.n_parts * (len(self.samples) // self.n_parts) + i // self.n_parts


@dataclass(frozen=True)
class Buckets:
    """Lengths of the batches' arrays and how many rows each gets.

    Attributes:
        edges_s: bucket lengths in seconds, ascending; the last one is the longest admitted loop.
        max_rows: rows of a batch; long buckets get fewer, see `MAX_BATCH_SAMPLES`.
        n_parts: number of devices; rows are a multiple of it.
    """

    edges_s: tuple[float, ...]
    max_rows: int
    n_parts: int = 1

    def samples(self, n_samples: int, rate_hz: int) -> int:
        """Smallest bucket, in samples at `rate_hz`, that holds `n_samples`."""
        for edge in self.edges_s:
            size = math.ceil(edge * rate_hz)
            if n_samples <= size:
                return size
        return n_samples  # only through rounding at the very end of the last bucket

    def rows(self, bucket_samples: int) -> int:
        """Rows of a batch of this bucket."""
        fits = min(self.max_rows, MAX_BATCH_SAMPLES // bucket_samples)
        return max(self.n_parts, fits - fits % self.n_parts)

    def new_batch(
        self,
        bucket_samples: int,
        rate_hz: int,
        dtype: np.dtype | str,
        old_samples: np.ndarray | None = None,
    ) -> Batch[Any]:
        """An empty batch of this bucket, perhaps in the memory of an earlier one."""
        n_rows = self.rows(bucket_samples)
        samples = old_samples
        if samples is None:  # pages come into being where audio lands
            samples = np.zeros((n_rows, bucket_samples), dtype)
        return Batch(
            samples=samples,
            length_samples=np.zeros(n_rows, np.int32),
            mask=np.zeros(n_rows, bool),
            rows=[],
            sha256=[],
            sample_rate_hz=rate_hz,
            bucket_samples=bucket_samples,
            n_parts=self.n_parts,
            was_used=old_samples is not None,
        )

    def batches(
        self, arrays: Sequence[np.ndarray], rate_hz: int, sha256: Sequence[str]
    ) -> Iterator[Batch[int]]:
        """Batches of arrays in memory, shortest bucket first; `rows` are positions in `arrays`.

        Args:
            arrays: mono samples [n] of one dtype, int16 or float32.
            rate_hz: their sample rate.
            sha256: hash of each array's content.
        """
        by_bucket: dict[int, list[int]] = {}
        for i, array in enumerate(arrays):
            by_bucket.setdefault(self.samples(len(array), rate_hz), []).append(i)
        for bucket_samples, members in sorted(by_bucket.items()):
            n_rows = self.rows(bucket_samples)
            for start in range(0, len(members), n_rows):
                part = members[start : start + n_rows]
                batch = self.new_batch(bucket_samples, rate_hz, arrays[part[0]].dtype)
                for i in part:
                    row = batch.add(i, sha256[i])
                    batch.samples[row, : len(arrays[i])] = arrays[i]
                    batch.length_samples[row] = len(arrays[i])
                    batch.mask[row] = True
                yield batch


def make_buckets(
    edges_s: Sequence[float],
    max_duration_s: float,
    max_rows: int,
    n_parts: int = 1,
) -> Buckets:
    """Extends the given buckets geometrically up to the longest admitted loop."""
    edges = sorted(edge for edge in edges_s if edge <= max_duration_s)
    last = edges[-1] if edges else max_duration_s
    while last < max_duration_s:
        last = min(last * LONG_BUCKET_GROWTH, max_duration_s)
        edges.append(last)
    return Buckets(tuple(edges) or (max_duration_s,), max_rows, n_parts)
