"""Formats that libsndfile does not read, through PyAV (FFmpeg's libraries), if that is installed.

FFmpeg is told the container that the file's own first bytes show, so that it never guesses one of
its many formats, least of all a playlist that opens other files. It runs in the decoder process,
under the same limits as everything else.
"""

from collections.abc import Iterator
from contextlib import ExitStack
from typing import BinaryIO

import numpy as np

from loopjax.audio.containers.read import READABLE
from loopjax.audio.loop import DecodeError

# Name of the kind -> FFmpeg's demuxer; only those whose samples were compared with the originals.
DEMUXERS = {
    "MPEG-4 (AAC or ALAC)": "mov",
    "AAC": "aac",
    "Windows Media": "asf",
    "WavPack": "wv",
    "Matroska or WebM": "matroska",
    "True Audio": "tta",
    "Monkey's Audio": "ape",
    "AC-3": "ac3",
    "WAV of a rare codec": "wav",
    "AIFF-C of a rare codec": "aiff",
    "CAF of another codec": "caf",
    "Ogg FLAC": "ogg",
    "Ogg Speex": "ogg",
}
TRIMMED_FRAMES = 4096  # of a lossy codec's first and last packet, which durations may count


class ForeignAudio:
    """An open file of one of these formats."""

    def __init__(self, file: BinaryIO, kind: str):
        """Opens its first audio stream.

        Args:
            file: at its beginning.
            kind: as `describe_foreign` names it.

        Raises:
            DecodeError: `unsupported_format`, with what would help; `decode_error`.
        """
        if kind not in DEMUXERS:
            remedy = f"convert it to {READABLE}"
            raise DecodeError("unsupported_format", f"{kind or 'no known audio'}; {remedy}")
        try:
            import av  # an extra, and 0.2 s to import
            from av.error import FFmpegError
        except ImportError:
            remedy = "pip install 'loopjax[codecs]', or convert it to WAV or FLAC"
            raise DecodeError("unsupported_format", f"{kind}; {remedy}") from None
        self._errors = FFmpegError
        try:
            with ExitStack() as stack:
                container = av.open(file, "r", format=DEMUXERS[kind], metadata_errors="replace")
                stack.enter_context(container)
                if not container.streams.audio:
                    raise DecodeError("unsupported_format", f"{kind} without sound")
                self._container, stream = container, container.streams.audio[0]
                self._stream = stream
                context = stream.codec_context
                if context is None:
                    raise DecodeError("unsupported_format", f"{kind}: its codec is not known")
                context.thread_count = 1
                self.rate_hz, self.channels = context.sample_rate, context.channels
                self.subtype = context.codec.name.upper()
                length = stream.duration
                scale = stream.time_base
                self.frames = None
                if length is not None and scale is not None and length > 0:
                    self.frames = round(length * scale * self.rate_hz)
                self._resampler = av.AudioResampler("flt", context.layout, self.rate_hz)
                self._stack = stack.pop_all()
        except (self._errors, ValueError) as error:
            raise DecodeError("decode_error", _reason(error)) from None

    def blocks(self) -> Iterator[np.ndarray]:
        """Yields float32 [n, channels].

        Raises:
            DecodeError: the data are damaged.
        """
        try:
            for frame in self._container.decode(self._stream):
                if frame.sample_rate != self.rate_hz or len(frame.layout.channels) != self.channels:
                    raise DecodeError("decode_error", "rate or channels change within the file")
                frame.pts = None  # gaps between time stamps are no silence
                for part in self._resampler.resample(frame):
                    yield part.to_ndarray().reshape(-1, self.channels)
        except (self._errors, ValueError) as error:
            raise DecodeError("decode_error", _reason(error)) from None

    def is_short(self, n_frames: int) -> bool:
        """Whether fewer samples came than the container promises."""
        return self.frames is not None and n_frames < self.frames - TRIMMED_FRAMES

    def close(self) -> None:
        """Closes the container; not the file."""
        self._stack.close()


def _reason(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error)
