"""What a page needs of one loop: a small playable copy, its outline and a mel thumbnail.

NumPy and libsndfile only. Previews are mono at 32 kHz; MP3, because every browser plays it and its
header carries the exact length, so a loop closes without a gap (Ogg where MP3 is not built in).
"""

import io
import itertools
import struct
import zlib
from dataclasses import dataclass
from functools import cache

import numpy as np
import soundfile

from loopjax.audio.decode import DecodeOptions, decode_file

PREVIEW_RATE_HZ = 32_000
MAX_PREVIEW_S = 15.0
WRITE_CHUNK_S = 1.0  # one big write to Ogg can crash libsndfile
FFT_SAMPLES = 1024
MEL_RANGE_DB = 60.0
# Anchors of a dark-to-bright color map (r, g, b), matplotlib's "magma" at 9 points.
MAGMA = (
    (0, 0, 4), (29, 17, 71), (81, 18, 124), (131, 38, 129), (183, 55, 121),
    (231, 82, 99), (252, 137, 97), (254, 196, 136), (252, 253, 191),
)  # fmt: skip


@dataclass(frozen=True)
class Preview:
    """A loop as a page shows it."""

    samples: np.ndarray  # float32 [n], mono at PREVIEW_RATE_HZ, at most MAX_PREVIEW_S
    duration_s: float  # of the whole file
    is_cut: bool  # the preview holds the first MAX_PREVIEW_S only


def read_preview(path: bytes) -> Preview:
    """Decodes the start of a loop to mono at the preview rate.

    Raises:
        DecodeError: the file cannot be read any more; carries the reason.
    """
    options = DecodeOptions(
        accept_truncated=True,
        sanitize=True,
        target_rate_hz=PREVIEW_RATE_HZ,
        device_rates_hz=(PREVIEW_RATE_HZ,),
    )
    decoded = decode_file(path, -1, 0, options)
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


def mel_thumbnail(samples: np.ndarray, columns: int, bands: int) -> np.ndarray:
    """Log-mel picture of a loop: uint8 [bands, columns], 0 = 60 dB under the peak, low band last.

    A sparse short-time spectrum (one frame per column) for the eye, not the encoder's front end.
    """
    padded = np.pad(samples.astype(np.float32), (FFT_SAMPLES // 2, FFT_SAMPLES // 2))
    starts = np.linspace(0, len(samples), columns).astype(int)
    frames = np.lib.stride_tricks.sliding_window_view(padded, FFT_SAMPLES)[starts]
    power = np.abs(np.fft.rfft(frames * np.hanning(FFT_SAMPLES).astype(np.float32))) ** 2
    mel = power @ _mel_filters(bands).T
    level_db = 10 * np.log10(np.maximum(mel, 1e-10))
    level = (level_db - level_db.max()) / MEL_RANGE_DB + 1 if mel.max() > 1e-8 else mel * 0
    return (np.clip(level, 0, 1) * 255).astype(np.uint8).T[::-1]


@cache
def _mel_filters(bands: int) -> np.ndarray:
    """Triangular filters [bands, bins], equally spaced in mel between 40 Hz and 14 kHz."""
    frequency_hz = np.fft.rfftfreq(FFT_SAMPLES, 1 / PREVIEW_RATE_HZ)
    low, high = 2595 * np.log10(1 + np.array([40.0, 14_000.0]) / 700)
    corners_hz = 700 * (10 ** (np.linspace(low, high, bands + 2) / 2595) - 1)
    # No triangle narrower than one bin: low bands would be empty at this short transform.
    half_hz = PREVIEW_RATE_HZ / FFT_SAMPLES
    center = corners_hz[1:-1, None]
    rise = np.maximum(center - corners_hz[:-2, None], half_hz)
    fall = np.maximum(corners_hz[2:, None] - center, half_hz)
    offset = frequency_hz[None, :] - center
    triangle = np.where(offset < 0, 1 + offset / rise, 1 - offset / fall)
    return np.maximum(triangle, 0).astype(np.float32)


def encode_audio(samples: np.ndarray) -> tuple[bytes, str]:
    """Compresses float32 [n] at the preview rate; returns the file's bytes and its MIME type."""
    kind = "MP3" if "MP3" in soundfile.available_formats() else "OGG"
    settings = {
        "MP3": {"subtype": "MPEG_LAYER_III", "bitrate_mode": "VARIABLE", "compression_level": 0.6},
        "OGG": {"subtype": "VORBIS", "compression_level": 0.7},
    }[kind]
    chunk = int(WRITE_CHUNK_S * PREVIEW_RATE_HZ)
    buffer = io.BytesIO()
    with soundfile.SoundFile(buffer, "w", PREVIEW_RATE_HZ, 1, format=kind, **settings) as file:
        for start in range(0, len(samples), chunk):
            file.write(np.clip(samples[start : start + chunk], -1.0, 1.0))
    return buffer.getvalue(), {"MP3": "audio/mpeg", "OGG": "audio/ogg"}[kind]


def png(picture: np.ndarray, levels: int = 32) -> bytes:
    """Writes a uint8 [height, width] picture as a palette PNG in the magma colors."""
    height, width = picture.shape
    index = (picture.astype(np.uint16) * levels // 256).astype(np.uint8)
    positions = np.linspace(0, len(MAGMA) - 1, levels)
    anchors = np.array(MAGMA, float)
    palette = np.stack(
        [np.interp(positions, np.arange(len(MAGMA)), anchors[:, c]) for c in range(3)], axis=1
    )
    rows = np.hstack([np.zeros((height, 1), np.uint8), index])  # filter type 0 before every row
    header = struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in (
            (b"IHDR", header),
            (b"PLTE", palette.round().astype(np.uint8).tobytes()),
            (b"IDAT", zlib.compress(rows.tobytes(), 9)),
            (b"IEND", b""),
        )
    )
