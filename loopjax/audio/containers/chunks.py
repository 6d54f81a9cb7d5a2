"""Containers made of sized chunks: WAV, AIFF, CAF, and AU with its one size.

Writers that are cut off, pipe or cannot seek leave sizes of 0 or far too large; both are repaired
from what is there and flagged `size_mismatch`. A size that was right once is a cut file.
"""

import struct
from collections.abc import Iterator

from loopjax.audio.containers.content import Content, patched
from loopjax.audio.containers.mpeg import read_mpeg
from loopjax.audio.containers.stream import Stream
from loopjax.audio.containers.tags import skip_tags
from loopjax.audio.loop import DecodeError

STREAMING_SIZE = 0x7FFF0000  # writers that cannot seek back leave sizes from here upwards
MAX_CHUNKS = 10_000  # a file of zero-size chunks would be walked for minutes
MPEG_TAGS = (0x50, 0x55)  # WAV format tags of MPEG audio: Layer I and II, Layer III
PLAIN_TAGS = (1, 3, 6, 7, 0xFFFE)  # PCM, float, A-law, u-law, extensible
FORMS = (b"RIFF", b"RIFX", b"RF64", b"BW64", b"FORM")  # begin another file, never a chunk
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
        pad = size & 1 if width == 4 else 0
        offset += 4 + width + max(size, 0) + pad


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


def read_wav(content: Content, start: int) -> Stream:
    """Reads RIFF, RIFX and RF64.

    Raises:
        DecodeError: no format or data chunk, or chunks in an order that no reader follows.
    """
    stream = Stream("wav", start, content.size)
    order = ">" if content.at(start, 4) == b"RIFX" else "<"
    (riff_size,) = content.unpack(order + "I", start + 4)
    tag = align = bits = wide_at = wide_size = 0
    for name, body, size in _chunks(content, start + 12, order + "I"):
        if name == b"ds64":
            wide_at = body
            riff_size, wide_size = content.unpack("<QQ", body)
        elif name == b"fmt ":
            fields = content.unpack(order + "HHIIH", body)
            tag, stream.channels, stream.rate_hz, _, align = fields
            bits = content.unpack(order + "H", body + 14)[0] if size >= 16 else 0
        elif name == b"data":
            if stream.channels is None:
                raise DecodeError("bad_header", "the data chunk comes before the format chunk")
            if size == 0xFFFFFFFF and wide_at:
                size = wide_size
            is_plain = tag in PLAIN_TAGS and align == stream.channels * -(-bits // 8)
            if size == 0 and not _is_chunk_list(content, body, order):
                size = content.size - body
                _repair_wav(content, stream, body, order, wide_at)
            was_right = start + riff_size + 8 > content.size
            end = _data_end(content, stream, body, size, align, was_right)
            if tag in MPEG_TAGS:
                _use_mpeg(content, stream, body, end)
            elif align:
                n_frames = (end - body) // align
                stream.frames, stream.held_frames = n_frames, n_frames if is_plain else 0
            stream.end = _skip_chunks(content, _skip_pad(content, end, size, order), order)
            return stream
    raise DecodeError("bad_header", "no format and data chunk in the WAV file")


def _repair_wav(content: Content, stream: Stream, body: int, order: str, wide_at: int) -> None:
    """Gives a file whose sizes were never filled in the sizes that it has."""
    stream.flags.append("size_mismatch")
    riff_size, data_size = content.size - stream.start - 8, content.size - body
    if wide_at:
        sizes = {wide_at: struct.pack("<QQ", riff_size, data_size)}
    else:
        sizes = {
            stream.start + 4: struct.pack(order + "I", min(riff_size, 0xFFFFFFFF)),
            body - 4: struct.pack(order + "I", min(data_size, 0xFFFFFFFF)),
        }
    stream.pieces = patched(stream.start, content.size, sizes)


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
            is_pcm = content.at(start + 8, 4) == b"AIFF" or content.at(body + 18, 4) in AIFF_PCM
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
        size = content.size - sound_at
        stream.flags.append("size_mismatch")
        if align:
            stream.frames = (content.size - first) // align
            sizes = {
                start + 4: struct.pack(">I", content.size - start - 8),
                comm_at + 2: struct.pack(">I", stream.frames),
                sound_at - 4: struct.pack(">I", size),
            }
            stream.pieces = patched(start, content.size, sizes)
    was_right = start + form_size + 8 > content.size
    end = _data_end(content, stream, first, size - 8 - offset, align, was_right)
    if align:
        stream.held_frames = min(stream.frames or 0, max(0, end - first) // align)
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
        stream.flags.append("size_mismatch")
        stream.pieces = patched(start, content.size, {start + 8: b"\xff\xff\xff\xff"})
    elif size != 0xFFFFFFFF:
        stream.end = _data_end(content, stream, first, size, 1, True)
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
            stream.rate_hz, _, _, _, _, stream.channels, _ = content.unpack(">d4sIIIII", body)
        elif name == b"data":
            is_zero = size in (0, 4) and not _is_caf_chunk(content, body + size)
            if is_zero or size < 0:  # streamed: the data chunk reaches to the end of the file
                stream.flags += ["size_mismatch"] if is_zero else []
                size = struct.pack(">q", content.size - body)  # libsndfile refuses -1
                stream.pieces = patched(start, content.size, {body - 8: size})
                break
            _data_end(content, stream, body, size, 1, True)
    if stream.channels is None:
        raise DecodeError("bad_header", "no desc chunk in the CAF file")
    return stream


def _is_caf_chunk(content: Content, offset: int) -> bool:
    if offset + 12 > content.size:
        return offset >= content.size
    name, size = content.unpack(">4sq", offset)
    return name.isalnum() and 0 <= size <= content.size - offset - 12
