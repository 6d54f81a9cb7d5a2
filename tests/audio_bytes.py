"""Encoded audio as bytes: real streams, and every way we know to join, tag and cut them."""

import io
import os
import struct
from pathlib import Path

import numpy as np
import soundfile

from loopjax.audio.decode import Decoded, DecodeOptions, decode_file

ANY_RATE = DecodeOptions(device_rates_hz=tuple(range(1, 768_001)))


def noise(n: int, channels: int = 1, seed: int = 0) -> np.ndarray:
    """White noise, float32 [n, channels]."""
    return np.random.default_rng(seed).normal(0, 0.1, (n, channels)).astype(np.float32)


def encoded(
    samples: np.ndarray, rate_hz: int, kind: str, subtype: str | None = None, **kw
) -> bytes:
    """One file written by libsndfile."""
    buffer = io.BytesIO()
    channels = 1 if samples.ndim == 1 else samples.shape[1]
    with soundfile.SoundFile(
        buffer, "w", rate_hz, channels, format=kind, subtype=subtype, **kw
    ) as file:
        for start in range(0, len(samples), 48_000):  # one big write to Ogg can crash libsndfile
            file.write(samples[start : start + 48_000])
    return buffer.getvalue()


def mp3(samples: np.ndarray, rate_hz: int = 44_100, mode: str = "VARIABLE") -> bytes:
    """An MP3 with a length header, as LAME writes it."""
    return encoded(samples, rate_hz, "MP3", "MPEG_LAYER_III", bitrate_mode=mode)


def without_length(raw: bytes) -> bytes:
    """The same MP3 without its first frame, which holds the length."""
    mark = raw.find(b"Info") if b"Info" in raw[:200] else raw.find(b"Xing")
    assert 0 < mark < 200
    return raw[raw.find(raw[:2], 4) :]


def id3(content: bytes) -> bytes:
    """An ID3v2 tag around any bytes."""
    n = len(content)
    return b"ID3\x03\0\0" + bytes(n >> shift & 0x7F for shift in (21, 14, 7, 0)) + content


def ape(content: bytes) -> bytes:
    """An APEv2 tag with header and footer around any bytes."""
    size = 32 + len(content)
    head, foot = (
        b"APETAGEX" + struct.pack("<IIII", 2000, size, 1, flags) + bytes(8)
        for flags in (0xA0000000, 0x80000000)
    )
    return head + content + foot


ID3V1 = b"TAG" + b"title".ljust(125, b"\0")


def decode_bytes(folder: Path, raw: bytes, **options) -> Decoded:
    """Decodes bytes as a file, at the file's own rate."""
    path = folder / "bytes"
    path.write_bytes(raw)
    settings = DecodeOptions(**(vars(ANY_RATE) | options))
    return decode_file(os.fsencode(path), -1, 0, settings)
