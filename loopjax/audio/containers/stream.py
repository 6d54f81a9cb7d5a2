"""One stream of a file: what its headers claim and what its bytes show."""

from dataclasses import dataclass, field

from loopjax.audio.containers.content import Piece


@dataclass
class Stream:
    """A stretch of a file that one codec decodes. None where the format does not say.

    Attributes:
        kind: container family.
        start: offset of its first byte.
        end: offset behind its last byte; what follows is looked at next.
        channels: as declared.
        rate_hz: as declared.
        frames: samples per channel as declared or counted; checked against the limits.
        held_frames: at least as many samples per channel lie in the bytes; a codec that delivers
            fewer has stopped too early.
        is_counted: `frames` was counted, so the codec's own guess is not asked for.
        truncated: why the stream looks cut, if it does.
        flags: peculiarities that do not reject it.
        pieces: what the codec is given; None for the bytes as they are.
    """

    kind: str
    start: int
    end: int
    channels: int | None = None
    rate_hz: float | None = None
    frames: int | None = None
    held_frames: int = 0
    is_counted: bool = False
    truncated: str = ""
    flags: list[str] = field(default_factory=list)
    pieces: list[Piece] | None = None
