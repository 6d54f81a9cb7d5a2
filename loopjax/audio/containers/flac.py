"""FLAC: the length in STREAMINFO against the number that the last frame carries (RFC 9639)."""

from functools import cache

from loopjax.audio.containers.content import Content, patched
from loopjax.audio.containers.stream import Stream
from loopjax.audio.containers.tags import ID3V1_BYTES
from loopjax.audio.loop import DecodeError

MARK = b"fLaC"
STREAMINFO_BYTES = b"\0\0\x22"  # length of the first metadata block, behind its type
HEAD_BYTES = 42  # mark, block header, STREAMINFO
TAIL_BYTES = 1 << 16  # where the last frame is looked for
TOTAL_BITS = 36
MAX_BLOCKS = 1000  # of metadata
LONGEST_HEADER_BYTES = 16  # of a frame


def read_flac(content: Content, start: int) -> Stream:
    """Reads STREAMINFO, looks for a next FLAC stream and for the last frame of this one.

    Raises:
        DecodeError: no STREAMINFO, or one of frames of another size than there are.
    """
    head = content.at(start, HEAD_BYTES)
    if not _begins_stream(head):
        raise DecodeError("bad_header", "the FLAC file does not begin with STREAMINFO")
    packed = int.from_bytes(head[18:26], "big")
    end = start + HEAD_BYTES
    while (end := content.find(MARK, end, content.size)) >= 0:
        if _begins_stream(content.at(end, HEAD_BYTES)):
            break
        end += 1
    end = content.size if end < 0 else end
    stream = Stream("flac", start, end, ((packed >> 41) & 7) + 1, packed >> 44)
    total = packed & ((1 << TOTAL_BITS) - 1)
    block_frames = int.from_bytes(head[10:12], "big")
    _check_first_frame(content, start, end, block_frames, total)
    held, frames_end = _count(content, start, end, block_frames, total)
    stream.frames, stream.held_frames = held or total or None, held
    if held not in (0, total):  # libsndfile fails at the end if it is not where it was told
        right = packed >> TOTAL_BITS << TOTAL_BITS | held
        stream.pieces = patched(start, frames_end, {start + 18: right.to_bytes(8, "big")})
        if total > held:
            stream.truncated = f"{held} of {total} frames are there"
        elif total:
            stream.flags.append("size_mismatch")
    return stream


def _begins_stream(head: bytes) -> bool:
    is_complete = len(head) == HEAD_BYTES and head[:4] == MARK
    return is_complete and head[4] & 0x7F == 0 and head[5:8] == STREAMINFO_BYTES


def _check_first_frame(
    content: Content, start: int, end: int, block_frames: int, total: int
) -> None:
    """Refuses a wrong block size: frames are numbered by it, and one that is lost went unseen."""
    offset = start + len(MARK)
    for _ in range(MAX_BLOCKS):
        kind, size = content.at(offset, 1), int.from_bytes(content.at(offset + 1, 3), "big")
        offset += 4 + size
        if kind >= b"\x80" or offset >= end:  # the last
            break
    raw = content.at(offset, LONGEST_HEADER_BYTES)
    _, n_frames = _frame_samples(raw, block_frames)
    if n_frames and not raw[1] & 1 and n_frames != block_frames and total > n_frames:
        message = f"frames of {n_frames} samples, where STREAMINFO says {block_frames}"
        raise DecodeError("bad_header", message)


def _count(
    content: Content, start: int, end: int, block_frames: int, total: int
) -> tuple[int, int]:
    """Samples per channel in whole frames, and the offset behind them; (0, end) if unknown."""
    if end - start > ID3V1_BYTES and content.at(end - ID3V1_BYTES, 3) == b"TAG":
        end -= ID3V1_BYTES
    begin = max(start + HEAD_BYTES, end - TAIL_BYTES)
    tail = content.at(begin, end - begin)
    cut = (0, end)
    at = len(tail)
    while (at := tail.rfind(b"\xff", 0, at)) >= 0:
        first, n_frames = _frame_samples(tail[at : at + LONGEST_HEADER_BYTES], block_frames)
        if n_frames == 0:
            continue
        if first + n_frames == total and len(tail) - at >= LONGEST_HEADER_BYTES:
            return total, end
        if _crc(tail[at:], 16, 0x8005) == 0:
            return first + n_frames, end
        if cut[0] == 0 and 0 < first < total:
            cut = (first, begin + at)
    return cut


def _frame_samples(raw: bytes, block_frames: int) -> tuple[int, int]:
    """Number of the first sample of the frame that begins here, and how many; (0, 0) if none."""
    raw = raw.ljust(LONGEST_HEADER_BYTES, b"\0")  # a last frame of silence may be shorter
    if raw[1] & 0xFE != 0xF8 or raw[3] & 1 or raw[3] >> 4 > 10:
        return 0, 0
    size_code, rate_code = raw[2] >> 4, raw[2] & 15
    ones = 8 - (raw[4] ^ 0xFF).bit_length()  # as in UTF-8, up to seven bytes
    if size_code == 0 or rate_code == 15 or ones == 1 or ones > 7:
        return 0, 0
    number = raw[4] & (0x7F >> ones)
    at = 4 + max(1, ones)
    for byte in raw[5:at]:
        if byte & 0xC0 != 0x80:
            return 0, 0
        number = number << 6 | byte & 0x3F
    if size_code in (6, 7):
        width = size_code - 5
        frames = int.from_bytes(raw[at : at + width], "big") + 1
        at += width
    else:
        frames = 192 if size_code == 1 else 144 << size_code if size_code < 6 else 1 << size_code
    at += {12: 1, 13: 2, 14: 2}.get(rate_code, 0)
    if _crc(raw[: at + 1], 8, 0x07) != 0:
        return 0, 0
    is_sample_number = raw[1] & 1
    return (number if is_sample_number else number * block_frames), frames


def _crc(data: bytes, bits: int, polynomial: int) -> int:
    """Remainder of data with its checksum behind it: 0 if they agree."""
    table, value, shift = _crc_table(bits, polynomial), 0, bits - 8
    mask = (1 << bits) - 1
    for byte in data:
        value = (value << 8 & mask) ^ table[(value >> shift) ^ byte]
    return value


@cache
def _crc_table(bits: int, polynomial: int) -> tuple[int, ...]:
    table = []
    for value in range(256):
        value <<= bits - 8
        for _ in range(8):
            value = value << 1 ^ (polynomial if value >> (bits - 1) else 0)
            value &= (1 << bits) - 1
        table.append(value)
    return tuple(table)
