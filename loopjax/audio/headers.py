"""What a file's own headers claim, checked before any codec sees it.

Only seven container families pass; libsndfile opens many more, some with a poor safety record.
Declared channels, rates and sizes are compared with limits and with the bytes that are there.
"""

import os
import struct
from dataclasses import dataclass, field

from loopjax.audio.loop import DecodeError

HEAD_BYTES = 64
MAX_HEADER_CHANNELS = 1024  # libsndfile's own bound; more than this is a broken header
MAX_HEADER_RATE_HZ = 10_000_000
STREAMING_SIZE = 0x7FFF0000  # writers that cannot seek back leave sizes from here upwards
TAIL_BYTES = 1 << 16  # an Ogg page is at most 65,307 bytes
MP3_KBPS = {  # Layer III bit rates by header field, for MPEG-1 and for MPEG-2 and 2.5
    True: (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    False: (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
MP3_RATES_HZ = {3: (44100, 48000, 32000), 2: (22050, 24000, 16000), 0: (11025, 12000, 8000)}
MAX_CHUNKS = 10_000  # a file of zero-size chunks would be walked for minutes


@dataclass
class Header:
    """Claims of a container: None where the format does not say."""

    kind: str
    channels: int | None = None
    rate_hz: float | None = None
    frames: int | None = None
    truncated: str = ""  # why the file looks cut, if it does
    flags: list[str] = field(default_factory=list)


def sniff(head: bytes) -> str | None:
    """Container family by magic bytes, or None for anything else.

    Args:
        head: the first `HEAD_BYTES` bytes of the file.
    """
    if head[:4] in (b"RIFF", b"RIFX", b"RF64", b"BW64") and head[8:12] == b"WAVE":
        return "wav"
    if head[:4] == b"FORM" and head[8:12] in (b"AIFF", b"AIFC"):
        return "aiff"
    simple = {b"fLaC": "flac", b"OggS": "ogg", b".snd": "au", b"dns.": "au", b"caff": "caf"}
    if head[:4] in simple:
        return simple[head[:4]]
    if head[:3] == b"ID3" or _is_mpeg_frame(head):
        return "mp3"
    return None


def _is_mpeg_frame(head: bytes) -> bool:
    if len(head) < 4 or head[0] != 0xFF or head[1] & 0xE0 != 0xE0:
        return False
    version, layer = (head[1] >> 3) & 3, (head[1] >> 1) & 3
    bitrate, rate = head[2] >> 4, (head[2] >> 2) & 3
    return version != 1 and layer != 0 and bitrate != 15 and rate != 3


def read_header(fd: int, size_bytes: int) -> Header:
    """Reads and checks a container's claims.

    Args:
        fd: open file; the position is not used or changed.
        size_bytes: its size.

    Raises:
        DecodeError: `unsupported_format` or `bad_header`.
    """
    head = os.pread(fd, HEAD_BYTES, 0)
    kind = sniff(head)
    if kind is None:
        raise DecodeError("unsupported_format", "neither WAV, AIFF, FLAC, Ogg, MP3, AU nor CAF")
    readers = {
        "wav": _read_wav,
        "aiff": _read_aiff,
        "flac": _read_flac,
        "ogg": _read_ogg,
        "mp3": _read_mp3,
        "au": _read_au,
        "caf": _read_caf,
    }
    header = Header(kind)
    if kind in readers:
        try:
            readers[kind](fd, size_bytes, head, header)
        except struct.error:
            raise DecodeError("bad_header", f"the {kind} header ends early") from None
    channels, rate = header.channels, header.rate_hz
    if channels is not None and not 1 <= channels <= MAX_HEADER_CHANNELS:
        raise DecodeError("bad_header", f"the header claims {channels} channels")
    if rate is not None and not 1 <= rate <= MAX_HEADER_RATE_HZ:
        raise DecodeError("bad_header", f"the header claims a sample rate of {rate:g} Hz")
    return header


def _chunks(fd: int, start: int, size_bytes: int, form: str):
    """Yields (id, body offset, declared body size) of IFF-style chunks."""
    offset, width = start, struct.calcsize(form)
    for _ in range(MAX_CHUNKS):
        if offset + 4 + width > size_bytes:
            return
        raw = os.pread(fd, 4 + width, offset)
        (size,) = struct.unpack(form, raw[4:])
        yield raw[:4], offset + 4 + width, size
        pad = size & 1 if width == 4 else 0
        offset += 4 + width + max(size, 0) + pad


def _read_wav(fd: int, size_bytes: int, head: bytes, header: Header) -> None:
    order = ">" if head[:4] == b"RIFX" else "<"
    (riff_size,) = struct.unpack(order + "I", head[4:8])
    block_align = 0
    wide_data_size = None
    for name, body, size in _chunks(fd, 12, size_bytes, order + "I"):
        if name == b"ds64":
            riff_size, wide_data_size = struct.unpack("<QQ", os.pread(fd, 16, body))
        elif name == b"fmt ":
            fields = struct.unpack(order + "HHIIH", os.pread(fd, 14, body))
            _, header.channels, header.rate_hz, _, block_align = fields
        elif name == b"data":
            if header.channels is None:
                raise DecodeError("bad_header", "the data chunk comes before the format chunk")
            if size == 0xFFFFFFFF and wide_data_size is not None:
                size = wide_data_size
            available = size_bytes - body
            if size > available:
                # A cut file still claims the same end in both places; an end that only the data
                # chunk claims, or a streaming placeholder, is a header that was never right.
                if size >= STREAMING_SIZE or riff_size + 8 <= size_bytes:
                    header.flags.append("size_mismatch")
                else:
                    header.truncated = f"{available} of {size} declared data bytes are there"
            if block_align:
                header.frames = min(size, available) // block_align
            return
    raise DecodeError("bad_header", "no format and data chunk in the WAV file")


def _read_aiff(fd: int, size_bytes: int, head: bytes, header: Header) -> None:
    (form_size,) = struct.unpack(">I", head[4:8])
    for name, body, size in _chunks(fd, 12, size_bytes, ">I"):
        if name == b"COMM":
            channels, frames, _ = struct.unpack(">hIh", os.pread(fd, 8, body))
            header.channels, header.frames = channels, frames
            header.rate_hz = _extended(os.pread(fd, 10, body + 8))
        elif name == b"SSND" and body + size > size_bytes:
            if size >= STREAMING_SIZE or form_size + 8 <= size_bytes:
                header.flags.append("size_mismatch")
            else:
                header.truncated = f"{size_bytes - body} of {size} declared data bytes are there"
    if header.channels is None:
        raise DecodeError("bad_header", "no COMM chunk in the AIFF file")


def _extended(raw: bytes) -> float:
    """An 80-bit IEEE extended float, as AIFF stores its sample rate."""
    exponent, mantissa = struct.unpack(">hQ", raw)
    if exponent < 0 or exponent == 0x7FFF:
        return 0.0
    return float(mantissa) * 2.0 ** (exponent - 16383 - 63) if exponent < 16383 + 64 else 2.0**64


def _read_flac(fd: int, size_bytes: int, head: bytes, header: Header) -> None:
    if head[4] & 0x7F != 0:
        raise DecodeError("bad_header", "the FLAC file does not begin with STREAMINFO")
    (packed,) = struct.unpack(">Q", head[18:26])
    header.rate_hz = packed >> 44
    header.channels = ((packed >> 41) & 7) + 1
    header.frames = (packed & ((1 << 36) - 1)) or None


def _read_ogg(fd: int, size_bytes: int, head: bytes, header: Header) -> None:
    start = max(0, size_bytes - TAIL_BYTES)
    tail = os.pread(fd, TAIL_BYTES, start)
    last = tail.rfind(b"OggS")
    ends = last >= 0 and last + 6 <= len(tail) and tail[last + 5] & 4
    if not ends:
        header.flags.append("truncated")  # Ogg is made to be cut: what is there is whole


def _read_mp3(fd: int, size_bytes: int, head: bytes, header: Header) -> None:
    """Counts Layer III frames: without a length header libsndfile only guesses how many there are.

    The count includes the encoder's delay and padding, up to three frames of them.
    """
    offset = 0
    if head[:3] == b"ID3":
        a, b, c, d = head[6:10]
        offset = 10 + (a << 21 | b << 14 | c << 7 | d)
    frames = 0
    while len(raw := os.pread(fd, 4, offset)) == 4:
        version, layer = (raw[1] >> 3) & 3, (raw[1] >> 1) & 3
        if not _is_mpeg_frame(raw) or layer != 1 or raw[2] >> 4 == 0:
            break
        rate = MP3_RATES_HZ[version][(raw[2] >> 2) & 3]
        if header.rate_hz is None:
            header.rate_hz, header.channels = rate, 1 if raw[3] >> 6 == 3 else 2
        is_v1 = version == 3
        bits_per_s = 1000 * MP3_KBPS[is_v1][raw[2] >> 4]
        offset += (144 if is_v1 else 72) * bits_per_s // rate + (raw[2] >> 1 & 1)
        frames += 1152 if is_v1 else 576
    header.frames = frames or None


def _read_au(fd: int, size_bytes: int, head: bytes, header: Header) -> None:
    order = ">" if head[:4] == b".snd" else "<"
    offset, size, _, rate, channels = struct.unpack(order + "5I", head[4:24])
    header.rate_hz, header.channels = rate, channels
    if size != 0xFFFFFFFF and offset + size > size_bytes:
        if size >= STREAMING_SIZE:
            header.flags.append("size_mismatch")
        else:
            header.truncated = f"{size_bytes - offset} of {size} declared data bytes are there"


def _read_caf(fd: int, size_bytes: int, head: bytes, header: Header) -> None:
    for name, body, size in _chunks(fd, 8, size_bytes, ">q"):
        if name == b"desc":
            rate, _, _, _, _, channels, _ = struct.unpack(">d4sIIIII", os.pread(fd, 32, body))
            header.rate_hz, header.channels = rate, channels
        elif name == b"data":
            if size >= 0 and body + size > size_bytes:
                header.truncated = f"{size_bytes - body} of {size} declared data bytes are there"
            if size < 0:
                break  # streamed: the data chunk reaches to the end of the file
    if header.channels is None:
        raise DecodeError("bad_header", "no desc chunk in the CAF file")
