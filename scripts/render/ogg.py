"""Ogg Vorbis files that come out the same every time.

libsndfile gives each Ogg stream a random serial number; here it is replaced by a fixed one, which
also means computing every page's checksum again (RFC 3533, section 6).
"""

import io
from pathlib import Path

import numpy as np
import soundfile as sf

from .effects import Samples

_POLYNOMIAL = 0x04C11DB7


def _checksum_table() -> list[int]:
    table = []
    for byte in range(256):
        value = byte << 24
        for _ in range(8):
            value = (value << 1) ^ (_POLYNOMIAL if value & 0x80000000 else 0)
        table.append(value & 0xFFFFFFFF)
    return table


_TABLE = _checksum_table()


def page_checksum(page: bytes) -> int:
    """Return the Ogg checksum of a page whose checksum field is zero."""
    value = 0
    for byte in page:
        value = ((value << 8) & 0xFFFFFFFF) ^ _TABLE[(value >> 24) ^ byte]
    return value


def with_serial(stream: bytes, serial: int) -> bytes:
    """Return the same single Ogg stream under another serial number.

    Raises:
        ValueError: the bytes are not a sequence of whole Ogg pages.
    """
    out, start = bytearray(), 0
    while start < len(stream):
        n_segments = stream[start + 26] if stream[start : start + 4] == b"OggS" else -1
        end = start + 27 + n_segments + sum(stream[start + 27 : start + 27 + n_segments])
        if n_segments < 0 or end > len(stream):
            raise ValueError(f"no whole Ogg page at byte {start}")
        page = bytearray(stream[start:end])
        page[14:18] = serial.to_bytes(4, "little")
        page[22:26] = bytes(4)
        page[22:26] = page_checksum(bytes(page)).to_bytes(4, "little")
        out += page
        start = end
    return bytes(out)


def write_ogg(path: Path, samples: Samples, rate_hz: int, serial: int, quality: float) -> None:
    """Write mono samples in [-1, 1] as Ogg Vorbis; quality in 0 (small) to 1 (best)."""
    buffer = io.BytesIO()
    sf.write(
        buffer,
        np.asarray(samples, dtype=np.float32),
        rate_hz,
        format="OGG",
        subtype="VORBIS",
        compression_level=1.0 - quality,
    )
    path.write_bytes(with_serial(buffer.getvalue(), serial))
