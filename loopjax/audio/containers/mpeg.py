"""MPEG audio (MP1, MP2, MP3): walks every frame, because nothing else knows how many there are.

libsndfile guesses the length of a stream without a length header from its first frame, and delivers
nothing beyond its guess. Frames are counted here (ISO 11172-3 and 13818-3 headers), tags and junk
between them are cut out, and the codec is shown the frames alone, with a true length.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from loopjax.audio.containers.content import Content
from loopjax.audio.containers.stream import Stream
from loopjax.audio.containers.tags import skip_tags
from loopjax.audio.loop import DecodeError

V1, V2, V25 = 3, 2, 0  # version field
LAYER_1, LAYER_2, LAYER_3 = 3, 2, 1  # layer field
KBPS = {  # by header field; Layer I and II differ from III in MPEG-1, Layer I in MPEG-2
    (True, LAYER_1): (0, *range(32, 449, 32)),
    (True, LAYER_2): (0, 32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (True, LAYER_3): (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (False, LAYER_1): (0, 32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (False, LAYER_2): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (False, LAYER_3): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
RATES_HZ = {V1: (44100, 48000, 32000), V2: (22050, 24000, 16000), V25: (11025, 12000, 8000)}
MAX_JUNK_BYTES = 1 << 16  # in front of the first frame
MAX_FRAME_BYTES = 1729  # 384 kbit/s at 32 kHz
FREE_FORMAT_BYTES = 4608  # longest frame of a bit rate that no header names
DECODER_DELAY = 529  # samples that the codec drops in front when a length header is there
HEAD_BYTES = 4 + 32 + 120 + 36  # a frame up to the end of the length header and LAME's part


@dataclass(frozen=True)
class Frame:
    """One frame header."""

    version: int
    layer: int
    rate_hz: int
    channels: int
    size: int  # bytes; 0 for free format, whose frames do not say
    padding: int  # bytes
    nominal_size: float  # mean frame at this bit rate

    @property
    def samples(self) -> int:
        """Samples per channel."""
        if self.layer == LAYER_1:
            return 384
        return 576 if self.layer == LAYER_3 and self.version != V1 else 1152

    @property
    def side_bytes(self) -> int:
        """Side information of a Layer III frame, behind which a length header stands."""
        if self.version == V1:
            return 17 if self.channels == 1 else 32
        return 9 if self.channels == 1 else 17

    def continues(self, other: "Frame") -> bool:
        """Whether a decoder can go on from `other` to this frame."""
        mine = (self.version, self.layer, self.rate_hz, self.channels)
        return mine == (other.version, other.layer, other.rate_hz, other.channels)


def parse_frame(raw: bytes) -> Frame | None:
    """The frame whose header these bytes begin with, if they do."""
    if len(raw) < 4 or raw[0] != 0xFF or raw[1] & 0xE0 != 0xE0:
        return None
    version, layer = (raw[1] >> 3) & 3, (raw[1] >> 1) & 3
    bitrate, rate = raw[2] >> 4, (raw[2] >> 2) & 3
    if version == 1 or layer == 0 or bitrate == 15 or rate == 3 or raw[3] & 3 == 2:
        return None
    rate_hz = RATES_HZ[version][rate]
    bits_per_s = 1000 * KBPS[version == V1, layer][bitrate]
    padding = raw[2] >> 1 & 1
    if layer == LAYER_1:
        size, nominal = 4 * (12 * bits_per_s // rate_hz + padding), 48 * bits_per_s / rate_hz
        padding *= 4
    else:
        slots = 72 if layer == LAYER_3 and version != V1 else 144
        size, nominal = slots * bits_per_s // rate_hz + padding, slots * bits_per_s / rate_hz
    channels = 1 if raw[3] >> 6 == 3 else 2
    return Frame(version, layer, rate_hz, channels, size if bitrate else 0, padding, nominal)


@dataclass(frozen=True)
class LengthHeader:
    """A Xing, Info or VBRI header, which takes the place of the first frame."""

    is_xing: bool
    frames: int | None
    stream_bytes: int | None
    delay: int = 0  # of the encoder, samples
    padding: int = 0
    lame: bytes = b""  # LAME's part as it stands in the file


def read_length_header(frame: Frame, raw: bytes) -> LengthHeader | None:
    """The length header in a frame that begins with `raw`, if it holds one."""
    if frame.layer != LAYER_3:
        return None
    if raw[36:40] == b"VBRI":
        count, frames = (int.from_bytes(raw[a : a + 4], "big") for a in (46, 50))
        return LengthHeader(False, frames, count)
    at = 4 + frame.side_bytes
    flags = int.from_bytes(raw[at + 4 : at + 8], "big")
    if raw[at : at + 4] not in (b"Xing", b"Info") or flags > 15:
        return None
    at += 8
    fields: list[int | None] = []
    for bit, width in ((1, 4), (2, 4), (4, 100), (8, 4)):
        fields.append(int.from_bytes(raw[at : at + 4], "big") if flags & bit else None)
        at += width if flags & bit else 0
    lame = raw[at : at + 36]
    has_lame = len(lame) == 36 and lame[0] != 0
    trims = int.from_bytes(lame[21:24], "big") if has_lame else 0
    return LengthHeader(
        True, fields[0] or None, fields[1], trims >> 12, trims & 0xFFF, lame if has_lame else b""
    )


def find_stream(content: Content, start: int) -> tuple[int, bool] | None:
    """Offset of the first of a chain of frames behind junk, and whether it is a stream's beginning.

    Where no length header tells the beginning, at most the rest of one frame may come before it:
    behind anything longer these may be the pieces of sound in a film.
    """
    offset, end = start, min(content.size, start + MAX_JUNK_BYTES)
    while (offset := content.find(b"\xff", offset, end)) >= 0:
        frame = parse_frame(content.at(offset, 4))
        if frame is not None and _is_confirmed(content, offset, content.size, None):
            is_first = read_length_header(frame, content.at(offset, HEAD_BYTES)) is not None
            if is_first or offset - start < MAX_FRAME_BYTES:
                return offset, is_first
        offset += 1
    return None


def read_mpeg(content: Content, start: int, end: int) -> Stream:
    """Walks the frames of one stream, up to a change of format or a new length header.

    Args:
        content: the file.
        start: where to look for the first frame.
        end: end of the file, or of the chunk that holds the stream.

    Raises:
        DecodeError: no frame at all.
    """
    stream = Stream("mp3", start, end)
    first: Frame | None = None
    sounding: Frame | None = None  # the first that is no length header
    length: LengthHeader | None = None
    n_frames, n_bytes, is_cut = 0, 0, False
    runs: list[tuple[int, int]] = []
    for offset, frame, size in _frames(content, start, end):
        header = read_length_header(frame, content.at(offset, HEAD_BYTES))
        if first is not None and (header is not None or not frame.continues(first)):
            stream.end = offset
            break
        if offset + size > end:
            is_cut = True
            break
        n_bytes += size
        if header is None:
            n_frames += 1
            sounding = sounding or frame
        if first is None:
            first, length = replace(frame, size=size), header
            if header is not None and not header.is_xing:
                continue  # the codec would take it for a frame of sound
        if runs and runs[-1][1] == offset:
            runs[-1] = (runs[-1][0], offset + size)
        else:
            runs.append((offset, offset + size))
    if first is None or sounding is None:
        raise DecodeError("bad_header", "no complete MPEG audio frame")
    stream.rate_hz, stream.channels = first.rate_hz, first.channels
    stream.frames = stream.held_frames = n_frames * first.samples
    stream.is_counted = True
    stream.pieces = [*runs]
    if length is not None and length.is_xing:
        _use_length(content, stream, first, length, n_frames, n_bytes)
    else:
        stream.pieces.append(_guard(sounding, n_frames, n_bytes))
    declared = length.frames if length is not None else None
    if declared == n_frames:
        is_cut = False  # what follows the last frame is no frame
    elif length is not None and _is_short(length, n_frames, n_bytes):
        stream.truncated = f"{n_frames} of {declared} MPEG frames are there"
    elif declared and declared != n_frames + 1:  # some writers count the header too
        stream.flags.append("size_mismatch")
    if is_cut:
        stream.flags.append("truncated")  # as for a page of Ogg: what is there is whole
    return stream


def _is_short(length: LengthHeader, n_frames: int, n_bytes: int) -> bool:
    """Whether frames are missing: not where all bytes are there, whatever their count says."""
    is_whole = length.stream_bytes is not None and 0 < length.stream_bytes <= n_bytes
    return length.frames is not None and length.frames > n_frames and not is_whole


def _use_length(
    content: Content,
    stream: Stream,
    first: Frame,
    length: LengthHeader,
    n_frames: int,
    n_bytes: int,
) -> None:
    """Replaces a Xing or Info header that is wrong about what is there."""
    trimmed = length.delay + length.padding + DECODER_DELAY
    stream.held_frames = max(0, n_frames * first.samples - trimmed)
    if length.frames == n_frames or _is_short(length, n_frames, n_bytes):
        return
    assert stream.pieces is not None and isinstance(stream.pieces[0], tuple)
    begin, stop = stream.pieces[0]
    padding = length.padding
    if length.frames is not None and length.frames < n_frames:
        padding = 0  # it stands in the middle now; nothing is cut off the end
    lame = bytearray(length.lame)
    if lame:
        lame[21:24] = (length.delay << 12 | padding).to_bytes(3, "big")
    fields = (1).to_bytes(4, "big") + n_frames.to_bytes(4, "big") + lame
    at = 4 + first.side_bytes + 4  # behind the name
    room = first.size - at - len(fields)
    if room < 0:
        raise DecodeError("bad_header", "the MP3 length header does not fit into its frame")
    head = content.at(begin, at) + fields + bytes(room)
    stream.pieces[:1] = [head, (begin + len(head), stop)]


def _guard(first: Frame, n_frames: int, n_bytes: int) -> bytes:
    """An empty ID3 tag behind the frames, so long that the codec's guess is never too short.

    The guess is the size of all there is over the mean size of a frame at the first one's bit rate.
    """
    size = max(0, int((n_frames + 2) * (first.nominal_size + 4)) - n_bytes) + 1024
    size = min(size, (1 << 28) - 1)
    digits = bytes(size >> shift & 0x7F for shift in (21, 14, 7, 0))
    return b"ID3\x03\0\0" + digits + bytes(size)


def _frames(content: Content, start: int, end: int) -> Iterator[tuple[int, Frame, int]]:
    """Yields (offset, frame, bytes) of every frame, whatever lies between them."""
    offset, last, free_size = start, None, 0
    while True:
        frame = parse_frame(content.at(offset, 4))
        trusted = frame is not None and last is not None and frame.continues(last)
        if frame is None or not (trusted or _is_confirmed(content, offset, end, last)):
            found = _resync(content, offset, end, last)
            if found is None:
                return
            offset, frame = found
        size = frame.size
        if not size:
            free_size = free_size or _free_size(content, offset, end, frame)
            if not free_size:
                return
            size = free_size + frame.padding
        yield offset, frame, size
        offset, last = offset + size, frame


def _resync(
    content: Content, offset: int, end: int, last: Frame | None
) -> tuple[int, Frame] | None:
    """The next frame behind tags and junk."""
    while offset < end:
        offset = skip_tags(content, offset, end)
        frame = parse_frame(content.at(offset, 4))
        if frame is not None and _is_confirmed(content, offset, end, last):
            return offset, frame
        found = content.find(b"\xff", offset + 1, end)
        tag = content.find(b"ID3", offset + 1, end if found < 0 else found)
        if found < 0 and tag < 0:
            return None
        offset = tag if tag >= 0 else found
    return None


def _is_confirmed(content: Content, offset: int, end: int, last: Frame | None) -> bool:
    """Whether a header out of the chain is a frame: others like it follow, or the end does."""
    frame = parse_frame(content.at(offset, 4))
    like = last if last is not None and frame is not None and frame.continues(last) else frame
    needed = 1 if like is last else 3
    for _ in range(needed):
        if frame is None or like is None or not frame.continues(like):
            return False
        size = frame.size or _free_size(content, offset, end, frame)
        if not size or offset + size > end:
            return False
        offset += size
        if skip_tags(content, offset, end) >= end:
            return True
        offset = skip_tags(content, offset, end)
        frame = parse_frame(content.at(offset, 4))
    return frame is not None and like is not None and frame.continues(like)


def _free_size(content: Content, offset: int, end: int, frame: Frame) -> int:
    """Bytes of a free-format frame without its padding: the distance to the next like it."""
    at = offset + 4
    while (at := content.find(b"\xff", at, min(end, offset + FREE_FORMAT_BYTES))) >= 0:
        other = parse_frame(content.at(at, 4))
        if other is not None and other.size == 0 and other.continues(frame):
            return at - offset - frame.padding
        at += 1
    return 0
