"""Loops to features one by one and in the order asked for, which training needs.

Readers finish loops in any order and the front end works on batches of equal length, so features
wait here for their turn. What a loop's features are depends on the loop alone, so the order in
which batches happen to fill changes nothing.
"""

import contextlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import jax
import numpy as np

from loopjax import parallel
from loopjax.audio.batching import Batch, Row, make_buckets
from loopjax.audio.decoder import Decoder
from loopjax.audio.feeding import Feeder
from loopjax.audio.loop import AudioInfo, Failure, Loop
from loopjax.config import EmbedConfig
from loopjax.embedding.encode import FRONT_END_ROWS
from loopjax.embedding.read import batches
from loopjax.encoders.protocol import Encoder

AHEAD = 16  # front-end batches of loops that may be under way beyond the one whose turn it is

# The number of a loop and its samples [n] at a rate in Hz -> other samples, at most as many.
Change = Callable[[int, np.ndarray, int], np.ndarray]
Place = Callable[[int], np.ndarray]  # number -> crop fractions [3], see `Encoder.front_end`


@dataclass(frozen=True)
class LoopFeatures:
    """What an encoder sees of one loop.

    Attributes:
        loop: whose they are.
        info: what decoding found out.
        mel: float32 [V, frames, bins]; V = 1 where all views of the clip would be the same.
        longer: whether the loop exceeds the encoder's clip.
        seconds: duration of the samples.
    """

    loop: Loop
    info: AudioInfo
    mel: np.ndarray
    longer: bool
    seconds: float


class OrderedReader:
    """Reads loops through decoders and the front end on all devices of this process."""

    def __init__(
        self,
        encoder: Encoder,
        config: EmbedConfig,
        *,
        change: Change | None = None,
        crop_fractions: Place | None = None,
    ):
        """Places the front end.

        Args:
            encoder: whose front end.
            config: buckets.
            change: what happens to samples before the front end; None = nothing.
            crop_fractions: where long clips are cropped; None = the fixed places.
        """
        mesh = parallel.data_mesh()
        rows = FRONT_END_ROWS.get(jax.default_backend(), 16) * mesh.devices.size
        self._buckets = make_buckets(
            config.buckets_s, config.max_duration_s, rows, mesh.devices.size
        )
        self._ahead = AHEAD * rows
        self._encoder = encoder.replicate(mesh)
        self._change, self._crop_fractions = change, crop_fractions

    def read(
        self, loops: Iterable[Loop | Failure], decoders: Sequence[Decoder]
    ) -> Iterator[LoopFeatures | Failure]:
        """Features of every loop, or why there are none, in the order of `loops`.

        Args:
            loops: may repeat and need not end; consumed ahead of what is yielded, boundedly.
            decoders: closed at the end.
        """
        numbers: dict[str, deque[int]] = {}  # key -> its places among the loops on their way
        issued = 0

        def numbered() -> Iterator[Loop | Failure]:
            nonlocal issued
            for item in loops:
                numbers.setdefault(item.key, deque()).append(issued)
                issued += 1
                yield item

        rejected: deque[Failure] = deque()
        feeder = Feeder(numbered(), decoders, self._buckets, rejected.append)
        done: dict[int, LoopFeatures | Failure] = {}
        turn = 0

        def take(batch: Batch[list[Row]]) -> None:
            of_rows = [numbers[row.loop.key].popleft() for (row,) in batch.rows]
            done.update(zip(of_rows, self._features(batch, of_rows), strict=True))

        with contextlib.closing(feeder):
            for batch in batches(feeder):
                if batch is not None:
                    take(batch)
                if issued - turn > self._ahead:  # rare lengths would keep the others waiting
                    for open_batch in feeder.take_open():
                        take(open_batch)
                while rejected:
                    failure = rejected.popleft()
                    done[numbers[failure.key].popleft()] = failure
                while turn in done:
                    yield done.pop(turn)
                    turn += 1
        for failure in rejected:
            done[numbers[failure.key].popleft()] = failure
        while turn in done:
            yield done.pop(turn)
            turn += 1

    def _features(self, batch: Batch[list[Row]], numbers: list[int]) -> Iterator[LoopFeatures]:
        places, fractions = batch.positions(), None
        if self._change is not None:
            for place, number in zip(places, numbers, strict=True):
                self._change_row(batch, place, number)
        if self._crop_fractions is not None:
            fractions = np.zeros((len(batch.samples), 3))
            for place, number in zip(places, numbers, strict=True):
                fractions[place] = self._crop_fractions(number)
        mel, longer = self._encoder.front_end(
            batch.samples, batch.length_samples, batch.sample_rate_hz, fractions
        )
        views, is_long = np.asarray(mel), np.asarray(longer)
        for place, (row,) in zip(places, batch.rows, strict=True):
            n_views = views.shape[1] if is_long[place] else 1
            yield LoopFeatures(
                loop=row.loop,
                info=row.info,
                mel=views[place, :n_views].copy(),  # the batch is mostly other rows
                longer=bool(is_long[place]),
                seconds=float(batch.length_samples[place]) / batch.sample_rate_hz,
            )

    def _change_row(self, batch: Batch[list[Row]], place: int, number: int) -> None:
        assert self._change is not None
        row, length = batch.samples[place], batch.length_samples[place]
        changed = self._change(number, row[:length], batch.sample_rate_hz)
        row[: len(changed)] = changed
        row[len(changed) :] = 0
        batch.length_samples[place] = len(changed)
