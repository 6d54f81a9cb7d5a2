"""A stretch of a corpus that one worker embeds by itself."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from loopjax.audio.loop import Failure, Loop


@dataclass(frozen=True)
class Unit:
    """Some thousand loops that lie side by side in the manifest.

    Attributes:
        number: its place, from 0.
        digest: of what it lists; two workers with equal digests mean the same loops.
        loops: lists them; files are looked at only now.
    """

    number: int
    digest: str
    loops: Callable[[], Iterator[Loop | Failure]]
