"""What every source offers to get at samples: a decoder, and its reply to a manifest row."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from loopjax.audio.loop import AudioInfo, DecodeError, Loop


class Decoder(Protocol):
    """Turns a manifest row into samples; one caller at a time."""

    @property
    def missing_limits(self) -> tuple[str, ...]:
        """Limits of memory and the like that the system could not set."""
        ...

    def decode(self, loop: Loop) -> "Reply":
        """Decodes one loop or raises DecodeError."""
        ...

    def decode_each(self, loops: Sequence[Loop]) -> Iterator["Reply | DecodeError"]:
        """Decodes loops in order; a reply's samples are there until the next one is asked for."""
        ...

    def copy_samples(self, out: np.ndarray) -> None:
        """Copies the samples of the latest reply."""
        ...

    def interrupt(self) -> None:
        """Makes a `decode` in another thread fail soon."""
        ...

    def close(self) -> None:
        """Releases what the decoder holds."""
        ...


def one_by_one(
    decode: Callable[[Loop], "Reply"], loops: Sequence[Loop]
) -> Iterator["Reply | DecodeError"]:
    """`Decoder.decode_each` where several loops at once are no quicker."""
    for loop in loops:
        try:
            yield decode(loop)
        except DecodeError as error:
            yield error


@dataclass(frozen=True)
class Reply:
    """A decoded loop whose samples still lie with the decoder.

    Attributes:
        loop: the row asked for; a record's name and group come with its content.
        info: what decoding found out.
        dtype: int16 or float32.
        n_samples: mono samples at `info.rate_hz`.
        decoder: holds the samples until it is asked again.
    """

    loop: Loop
    info: AudioInfo
    dtype: np.dtype
    n_samples: int
    decoder: Decoder

    def copy_to(self, out: np.ndarray) -> None:
        """Writes the samples to the front of `out` (same dtype, contiguous)."""
        self.decoder.copy_samples(out[: self.n_samples])
