"""Containers made of sized chunks: WAV, Wave64, AIFF, CAF, and AU with its one size.

Writers that are cut off, pipe or cannot seek leave sizes of 0 or far too large; both are repaired
from what is there and flagged `size_mismatch`. A size that was right once is a cut file. The codec
is shown the sizes that are right.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from loopjax.audio.containers.content import Content, Piece, patched
from loopjax.audio.containers.mpeg import read_mpeg
from loopjax.audio.containers.stream import Stream
from loopjax.audio.containers.tags import skip_tags
from loopjax.audio.loop import DecodeError, UnsupportedFormatError

STREAMING_SIZE = 0x7FFF0000  # writers that cannot seek back leave sizes from here upwards
UNKNOWN = 1 << 64  # a size that was never filled in
MAX_CHUNKS = 10_000  # a file of zero-size chunks would be walked for minutes
MPEG_TAGS = (0x50, 0x55)  # WAV format tags of MPEG audio: Layer I and II, Layer III
MAX_FORMAT_BYTES = 1024
W64_CHUNK = bytes.fromhex("f3acd3118cd100c04f8edb8a")  # behind the four letters of a name
W64_LIST = bytes.fromhex("2f91cf11a5d628db04c10000")  # behind `list`
EXTENSIBLE_TAG = 0xFFFE  # the tag proper stands further behind
PLAIN_TAGS = (1, 3, 6, 7)  # PCM, float, A-law, u-law
ADPCM_TAGS = (2, 0x11, 0x14, 0x31, 0x38, 0x40)  # what else libsndfile reads, with GSM
ALAC_VARIANTS = (1, 2, 3, 4)  # 16, 20, 24 and 32 bits; some writers do not say
CAF_PLAIN = (b"lpcm", b"ulaw", b"alaw")
FORMS = (b"RIFF", b"RIFX", b"RF64", b"BW64", b"FORM")  # begin another file, never a chunk
AIFF_CODED = (b"ulaw", b"ULAW", b"alaw", b"ALAW", b"ima4", b"GSM ", b"DWVW", b"42ni", b"23ni")
AIFF_PCM = (
    b"NONE",
    b"twos",
    b"sowt",
    b"raw ",
    b"in24",
    b"in32",
    b"fl32",
    b"FL32",
    b"fl64",
    b"FL64",
)


def _chunks(content: Content, start: int, form: str) -> Iterator[tuple[bytes, int, int]]:
    """Yields (id, body offset, declared body size)."""
    offset, width = start, struct.calcsize(form)
    for _ in range(MAX_CHUNKS):
        if offset + 4 + width > content.size:
            return
        raw = content.at(offset, 4 + width)
        (size,) = struct.unpack(form, raw[4:])
        yield raw[:4], offset + 4 + width, size
        offset += 4 + width + max(size, 0)
        if width == 4:
            offset = _skip_pad(content, offset, size, form[0])


def _is_chunk(content: Content, offset: int, order: str) -> bool:
    """Whether a whole chunk with a readable name begins here."""
    if offset + 8 > content.size:
        return False
    name, size = content.unpack(order + "4sI", offset)
    is_name = name.isascii() and name.decode().isprintable() and name not in FORMS
    return is_name and offset + 8 + size <= content.size


def _skip_chunks(content: Content, offset: int, order: str) -> int:
    """Offset behind all whole chunks from here; odd ones may lack their pad byte."""
    for _ in range(MAX_CHUNKS):
        if not _is_chunk(content, offset, order):
            break
        (size,) = content.unpack(order + "I", offset + 4)
        offset = _skip_pad(content, offset + 8 + size, size, order)
    return offset


def _skip_pad(content: Content, offset: int, size: int, order: str) -> int:
    """Offset behind the pad byte of an odd chunk that ends here, if it is there."""
    begins_next = content.at(offset, 4) in FORMS or _is_chunk(content, offset, order)
    return offset + (size & 1 and offset < content.size and not begins_next)


def _is_chunk_list(content: Content, offset: int, order: str) -> bool:
    """Whether nothing but chunks follows, up to the end, a next file or padding."""
    behind = _skip_chunks(content, offset, order)
    if behind == offset:
        return offset >= content.size or content.at(offset, 4) in FORMS
    return skip_tags(content, behind, content.size) == content.size or (
        content.at(behind, 4) in FORMS
    )


def _data_end(
    content: Content, stream: Stream, body: int, size: int, align: int, was_right: bool
) -> int:
    """Where the audio really ends; notes the flag or the reason why that is not the claim."""
    available = content.size - body
    if size <= available:
        return body + size
    if size // max(1, align) == available // max(1, align):
        pass  # a pad byte or a part of a frame is missing, no sound
    elif size >= STREAMING_SIZE or not was_right:
        stream.flags.append("size_mismatch")
    else:
        stream.truncated = f"{available} of {size} declared data bytes are there"
    return content.size


@dataclass(frozen=True)
class _Format:
    """A `fmt ` chunk, as WAV and Wave64 have it."""

    raw: bytes
    tag: int
    channels: int
    rate_hz: int
    frame_bytes: int
    is_plain: bool  # as many samples as the bytes say

    @classmethod
    def read(cls, content: Content, body: int, size: int, order: str) -> "_Format":
        tag, channels, rate_hz, _, align = content.unpack(order + "HHIIH", body)
        if tag == EXTENSIBLE_TAG and size >= 26:
            (tag,) = content.unpack(order + "H", body + 24)
        if tag not in (*PLAIN_TAGS, *ADPCM_TAGS, *MPEG_TAGS, EXTENSIBLE_TAG):
            raise UnsupportedFormatError("WAV of a rare codec")
        bits = content.unpack(order + "H", body + 14)[0] if size >= 16 else 0
        is_plain = tag in PLAIN_TAGS and align == channels * -(-bits // 8)
        raw = content.at(body, min(max(size, 0), MAX_FORMAT_BYTES) & ~1)
        return cls(raw, tag, channels, rate_hz, align, is_plain)


def read_wav(content: Content, start: int) -> Stream:
    """Reads RIFF, RIFX, RF64 and BW64.

    Raises:
        DecodeError: no format or data chunk, or chunks in an order that no reader follows.
    """
    stream = Stream("wav", start, content.size)
    kind = content.at(start, 4)
    order = ">" if kind == b"RIFX" else "<"
    (riff_size,) = content.unpack(order + "I", start + 4)
    wide_size, form = None, None
    is_odd = kind == b"BW64"  # in a way that the codec does not follow
    for name, body, size in _chunks(content, start + 12, order + "I"):
        if name == b"ds64":
            riff_size, wide_size = content.unpack("<QQ", body)
        elif name == b"fmt ":
            form = _Format.read(content, body, size, order)
        elif name == b"data":
            if form is None:
                raise DecodeError("bad_header", "the data chunk comes before the format chunk")
            if size == 0xFFFFFFFF and wide_size is not None:
                size = wide_size
            if size == 0 and not _is_chunk_list(content, body, order):
                size = UNKNOWN
            was_right = start + riff_size + 8 > content.size
            end = _data_end(content, stream, body, size, form.frame_bytes, was_right)
            behind = _skip_pad(content, end, size, order)
            stream.end = _skip_chunks(content, behind, order)
            chunks = _chunks(content, behind, order + "I")
            if any(name == b"data" and at <= stream.end for name, at, _ in chunks):
                stream.flags.append("trailing_data")
            if is_odd or stream.flags:
                stream.pieces = _as_wav(form, body, end, order)
            _use_sound(content, stream, form, body, end)
            return stream
        is_odd |= bool(size & 1)  # with or without a pad byte
    raise DecodeError("bad_header", "no format and data chunk in the WAV file")


def _as_wav(form: _Format, body: int, end: int, order: str) -> list[Piece]:
    """The shortest WAV file around some sound."""
    size = struct.pack(order + "I", len(form.raw))
    head = b"WAVEfmt " + size + form.raw + b"data"
    head += struct.pack(order + "I", min(end - body, 0xFFFFFFFF))
    size = struct.pack(order + "I", min(len(head) + end - body, 0xFFFFFFFF))
    return [(b"RIFF" if order == "<" else b"RIFX") + size + head, (body, end)]


def _use_sound(content: Content, stream: Stream, form: _Format, body: int, end: int) -> None:
    """Notes what a data chunk holds."""
    stream.channels, stream.rate_hz = form.channels, form.rate_hz
    if form.tag in MPEG_TAGS:
        _use_mpeg(content, stream, body, end)
    elif form.frame_bytes:
        stream.frames = (end - body) // form.frame_bytes
        stream.held_frames = stream.frames if form.is_plain else 0


def read_w64(content: Content, start: int) -> Stream:
    """Reads Sony's Wave64, a WAV file with wide names and sizes; the codec is shown that WAV file.

    Raises:
        DecodeError: no format or data chunk, or chunks in an order that no reader follows.
    """
    stream = Stream("w64", start, content.size)
    (riff_size,) = content.unpack("<Q", start + 16)
    form = None
    for name, body, size in _w64_chunks(content, start + 40):
        if name == b"fmt ":
            form = _Format.read(content, body, size, "<")
        elif name == b"data":
            if form is None:
                raise DecodeError("bad_header", "the data chunk comes before the format chunk")
            if size <= 0:
                is_empty = body >= content.size or any(_w64_chunks(content, body))
                size = 0 if is_empty else UNKNOWN
            was_right = start + riff_size > content.size
            end = _data_end(content, stream, body, size, form.frame_bytes, was_right)
            stream.pieces = _as_wav(form, body, end, "<")
            _use_sound(content, stream, form, body, end)
            stream.end = end
            for _, behind, more in _w64_chunks(content, end + (start - end) % 8):
                stream.end = min(behind + more, content.size)
            return stream
    raise DecodeError("bad_header", "no format and data chunk in the Wave64 file")


def _w64_chunks(content: Content, start: int) -> Iterator[tuple[bytes, int, int]]:
    """Yields (first four bytes of the id, body offset, declared body size)."""
    offset = start
    for _ in range(MAX_CHUNKS):
        if offset + 24 > content.size:
            return
        name, rest, size = content.unpack("<4s12sq", offset)
        if rest not in (W64_CHUNK, W64_LIST):
            return
        yield name, offset + 24, size - 24
        offset += max(24, size + -size % 8)


def _use_mpeg(content: Content, stream: Stream, body: int, end: int) -> None:
    """MPEG audio in a WAV file: the chunk is a stream of its own, and its frames count."""
    inner = read_mpeg(content, body, end)
    stream.pieces, stream.frames = inner.pieces, inner.frames
    stream.held_frames, stream.is_counted = inner.held_frames, True
    stream.channels, stream.rate_hz = inner.channels, inner.rate_hz
    stream.flags += inner.flags
    stream.truncated = stream.truncated or inner.truncated


def read_aiff(content: Content, start: int) -> Stream:
    """Reads AIFF and AIFF-C.

    Raises:
        DecodeError: no COMM chunk.
    """
    stream = Stream("aiff", start, content.size)
    (form_size,) = content.unpack(">I", start + 4)
    align = comm_at = sound_at = sound_size = 0
    for name, body, size in _chunks(content, start + 12, ">I"):
        if name in FORMS:
            break
        if name == b"COMM":
            comm_at = body
            stream.channels, stream.frames, bits = content.unpack(">hIh", body)
            stream.rate_hz = _extended(content.at(body + 8, 10))
            codec = b"NONE" if content.at(start + 8, 4) == b"AIFF" else content.at(body + 18, 4)
            is_pcm = codec in AIFF_PCM
            if not is_pcm and codec not in AIFF_CODED:
                raise UnsupportedFormatError("AIFF-C of a rare codec")
            align = max(0, stream.channels * -(-bits // 8)) if is_pcm else 0
        elif name == b"SSND":
            sound_at, sound_size = body, size
    if stream.channels is None:
        raise DecodeError("bad_header", "no COMM chunk in the AIFF file")
    if not sound_at:
        return stream
    (offset,) = content.unpack(">I", sound_at)
    first, size = sound_at + 8 + offset, sound_size
    if size <= 8 and not _is_chunk_list(content, sound_at + size, ">"):
        size = UNKNOWN
    was_right = start + form_size + 8 > content.size
    end = _data_end(content, stream, first, size - 8 - offset, align, was_right)
    held = max(0, end - first) // align if align else 0
    declared = stream.frames or 0
    if held and (declared == 0 or declared * align >= STREAMING_SIZE):
        stream.flags = ["size_mismatch"]
    if align and "size_mismatch" in stream.flags:
        stream.frames = held
        sizes = {
            start + 4: struct.pack(">I", min(content.size - start - 8, 0xFFFFFFFF)),
            comm_at + 2: struct.pack(">I", held),
            sound_at - 4: struct.pack(">I", min(end - sound_at, 0xFFFFFFFF)),
        }
        stream.pieces = patched(start, content.size, sizes)
    stream.held_frames = min(stream.frames or 0, held)
    stream.end = _skip_chunks(content, _skip_pad(content, end, size, ">"), ">")
    return stream


def _extended(raw: bytes) -> float:
    """An 80-bit IEEE extended float, as AIFF stores its sample rate."""
    exponent, mantissa = struct.unpack(">hQ", raw)
    if exponent < 0 or exponent == 0x7FFF:
        return 0.0
    return float(mantissa) * 2.0 ** (exponent - 16383 - 63) if exponent < 16383 + 64 else 2.0**64


def read_au(content: Content, start: int) -> Stream:
    """Reads AU in either byte order."""
    stream = Stream("au", start, content.size)
    order = ">" if content.at(start, 4) == b".snd" else "<"
    offset, size, _, stream.rate_hz, stream.channels = content.unpack(order + "5I", start + 4)
    first = start + offset
    if size == 0 and first < content.size:
        size = UNKNOWN
    if size != 0xFFFFFFFF:  # which is allowed, and means the end of the file
        stream.end = _data_end(content, stream, first, size, 1, True)
    if stream.flags:
        stream.pieces = patched(start, content.size, {start + 8: b"\xff\xff\xff\xff"})
    return stream


def read_caf(content: Content, start: int) -> Stream:
    """Reads Apple's Core Audio Format.

    Raises:
        DecodeError: no desc chunk.
    """
    stream = Stream("caf", start, content.size)
    for name, body, size in _chunks(content, start + 8, ">q"):
        if name == b"caff":
            stream.end = body - 12
            break
        if name == b"desc":
            fields = content.unpack(">d4sIIIII", body)
            stream.rate_hz, codec, variant, _, _, stream.channels, _ = fields
            if codec not in CAF_PLAIN and (codec != b"alac" or variant not in ALAC_VARIANTS):
                raise UnsupportedFormatError("CAF of another codec")
        elif name == b"data":
            if size in (0, 4) and not _is_caf_chunk(content, body + size):
                size = UNKNOWN
            if size >= 0:
                _data_end(content, stream, body, size, 1, True)
            if size < 0 or stream.flags:  # the data chunk reaches to the end of the file
                true_size = struct.pack(">q", content.size - body)  # libsndfile refuses -1
                stream.pieces = patched(start, content.size, {body - 8: true_size})
                break
    if stream.channels is None:
        raise DecodeError("bad_header", "no desc chunk in the CAF file")
    return stream


def _is_caf_chunk(content: Content, offset: int) -> bool:
    if offset + 12 > content.size:
        return offset >= content.size
    name, size = content.unpack(">4sq", offset)
    return name.isalnum() and 0 <= size <= content.size - offset - 12
