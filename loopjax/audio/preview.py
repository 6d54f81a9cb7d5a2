"""What a page plays of one loop: a small copy and its outline.

NumPy and libsndfile only. Previews are mono at 32 kHz; MP3, because every browser plays it and its
header carries the exact length, so a loop closes without a gap (Ogg where MP3 is not built in); of
many loops FLAC, because it is made quickly.
"""

import io
import itertools
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import soundfile

from loopjax.audio.decode import Decoded, DecodeOptions, decode_file

PREVIEW_RATE_HZ = 32_000
MAX_PREVIEW_S = 15.0
Copied = Literal["small", "quick"]
WRITE_CHUNK_S = 1.0  # one big write to Ogg can crash libsndfile


@dataclass(frozen=True)
class Preview:
    """A loop as a page shows it."""

    samples: np.ndarray  # float32 [n], mono at PREVIEW_RATE_HZ, at most MAX_PREVIEW_S
    duration_s: float  # of the whole file
    is_cut: bool  # the preview holds the first MAX_PREVIEW_S only


@dataclass(frozen=True)
class Clip:
    """A compressed copy."""

    data: bytes  # of the file
    mime_type: str


def read_preview(path: bytes) -> Preview:
    """Decodes the start of a loop to mono at the preview rate.

    Raises:
        DecodeError: the file cannot be read any more; carries the reason.
    """
    return preview_of(decode_file(path, -1, 0, preview_options()))


def preview_options() -> DecodeOptions:
    """What decoding for a page delivers."""
    return DecodeOptions(
        accept_truncated=True,
        sanitize=True,
        target_rate_hz=PREVIEW_RATE_HZ,
        device_rates_hz=(PREVIEW_RATE_HZ,),
    )


def preview_of(decoded: Decoded) -> Preview:
    """What was decoded with `preview_options` as a page shows it."""
    samples = decoded.samples
    if samples.dtype == np.int16:
        samples = samples.astype(np.float32) / 32768.0
    limit = int(MAX_PREVIEW_S * PREVIEW_RATE_HZ)
    return Preview(samples[:limit], decoded.info.duration_s, len(samples) > limit)


def outline(samples: np.ndarray, columns: int) -> np.ndarray:
    """Lowest and highest sample per column, [columns, 2], clipped to [-1, 1]."""
    edges = np.linspace(0, len(samples), columns + 1).astype(int)
    pairs = np.zeros((columns, 2), np.float32)
    for i, (start, end) in enumerate(itertools.pairwise(edges)):
        part = samples[start : max(end, start + 1)]
        if len(part):
            pairs[i] = part.min(), part.max()
    return np.clip(pairs, -1.0, 1.0)


def encode_audio(samples: np.ndarray, kind: Copied = "small") -> Clip:
    """Compresses float32 [n] at the preview rate.

    Args:
        samples: of the loop.
        kind: "small", some 5 kB per second; "quick", four times that in a tenth of the time.
    """
    settings: dict[str, Any]
    if kind == "quick":
        name, settings, mime_type = "FLAC", {"subtype": "PCM_16"}, "audio/flac"
    elif "MP3" in soundfile.available_formats():
        name, mime_type = "MP3", "audio/mpeg"
        settings = {"subtype": "MPEG_LAYER_III", "bitrate_mode": "VARIABLE"}
        settings["compression_level"] = 0.6
    else:
        name, mime_type = "OGG", "audio/ogg"
        settings = {"subtype": "VORBIS", "compression_level": 0.7}
    chunk = int(WRITE_CHUNK_S * PREVIEW_RATE_HZ)
    buffer = io.BytesIO()
    with soundfile.SoundFile(buffer, "w", PREVIEW_RATE_HZ, 1, format=name, **settings) as file:
        for start in range(0, len(samples), chunk):
            file.write(np.clip(samples[start : start + chunk], -1.0, 1.0))
    return Clip(buffer.getvalue(), mime_type)
