"""Ogg: walks the pages of one link (RFC 3533); a file may hold several, one behind the other."""

from collections.abc import Iterator
from dataclasses import dataclass

from loopjax.audio.containers.content import Content, Piece
from loopjax.audio.containers.stream import Stream
from loopjax.audio.loop import DecodeError, UnsupportedFormatError

HEADER_BYTES = 27  # of a page, without its table of segments
BEGINS, ENDS = 2, 4  # flags of a page
MAX_GRANULE = 1 << 62  # larger ones, -1 among them, say that no packet ends on the page
OPUS_RATE_HZ = 48_000  # of Opus granules, whatever the input was
OTHER_CODECS = {
    b"\x7fFLAC": "Ogg FLAC",
    b"Speex   ": "Ogg Speex",
    b"\x80theora": "Ogg Theora (video)",
}


@dataclass(frozen=True)
class _Page:
    start: int
    body: int
    end: int
    is_whole: bool
    flags: int
    granule: int
    serial: bytes
    number: int


def read_ogg(content: Content, start: int) -> Stream:
    """Walks one link: up to the next page that begins a logical stream after sound has come.

    Granule positions say how many samples it holds at least: those behind the first page with
    sound (a link that was cut from a broadcast does not begin at 0).

    Raises:
        DecodeError: no audio stream that can be read, or several at a time.
    """
    stream = Stream("ogg", start, content.size)
    serial, others = b"", []
    granules: list[int] = []
    number, has_ended, has_body = 0, False, False
    kept: list[Piece] = []
    keep_from = start
    for page in _pages(content, start):
        if page.flags & BEGINS and has_body:
            stream.end = page.start
            break
        if not page.is_whole:  # the codec would take its granule position for the length
            kept.append((keep_from, page.start))
            keep_from = page.end
            continue
        if page.flags & BEGINS:
            if not _describe(content.at(page.body, 32), stream):
                others.append(content.at(page.body, 8))
            elif serial:
                raise DecodeError("unsupported_format", "several audio streams play at a time")
            else:
                serial, number = page.serial, page.number
            continue
        has_body = True
        if page.serial == serial:
            if granules and page.number != number + 1:
                stream.flags.append("gaps")
            number, has_ended = page.number, bool(page.flags & ENDS)
            if 0 < page.granule < MAX_GRANULE:
                granules = [*granules[:1], page.granule]
    if not serial:
        names = [name for mark, name in OTHER_CODECS.items() for head in others if mark in head]
        raise UnsupportedFormatError((names or ["Ogg without sound"])[0])
    if not has_ended:
        stream.flags.append("truncated")  # Ogg is made to be cut: what is there is whole
    if kept:
        stream.pieces = [*kept, (keep_from, stream.end)]
    if granules:
        stream.held_frames = max(0, granules[-1] - granules[0])
    return stream


def _pages(content: Content, start: int) -> Iterator[_Page]:
    """Yields the pages; one that ends in the middle of the next, or of nothing, is not whole."""
    offset = start
    while (offset := content.find(b"OggS", offset, content.size)) >= 0:
        header = content.at(offset, HEADER_BYTES + 255)
        n_segments = header[26] if len(header) >= HEADER_BYTES else 255
        body = offset + HEADER_BYTES + n_segments
        end = body + sum(header[HEADER_BYTES : HEADER_BYTES + n_segments])
        is_whole, end = end <= content.size, min(end, content.size)
        if end == content.size or content.at(end, 4) != b"OggS":
            inside = content.find(b"OggS", offset + 4, end)
            if inside >= 0:
                is_whole, end = False, inside
        header = header.ljust(HEADER_BYTES, b"\0")
        granule, number = (int.from_bytes(header[a:b], "little") for a, b in ((6, 14), (18, 22)))
        yield _Page(offset, body, end, is_whole, header[5], granule, header[14:18], number)
        offset = max(end, offset + 4)


def _describe(packet: bytes, stream: Stream) -> bool:
    """Notes rate and channels if this is the first packet of sound that can be read."""
    if packet[:7] == b"\x01vorbis" and len(packet) >= 16:
        stream.channels = packet[11]
        stream.rate_hz = int.from_bytes(packet[12:16], "little")
        return True
    if packet[:8] == b"OpusHead" and len(packet) >= 10:
        stream.channels, stream.rate_hz = packet[9], OPUS_RATE_HZ
        return True
    return False
