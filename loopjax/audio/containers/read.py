"""All streams of a file, checked: what its headers claim against what its bytes show.

Only eight container families pass; libsndfile opens many more, some with a poor safety record. A
codec reads one stream; a file may hold several, one behind the other (chained Ogg, files joined by
`cat`), and none of them may be lost without a word.
"""

import struct

from loopjax.audio.containers.chunks import read_aiff, read_au, read_caf, read_w64, read_wav
from loopjax.audio.containers.content import Content
from loopjax.audio.containers.flac import read_flac
from loopjax.audio.containers.mpeg import find_stream, read_mpeg
from loopjax.audio.containers.ogg import read_ogg
from loopjax.audio.containers.sniff import HEAD_BYTES, describe_foreign, sniff
from loopjax.audio.containers.stream import Stream
from loopjax.audio.containers.tags import skip_tags
from loopjax.audio.loop import DecodeError, UnsupportedFormatError

READABLE = "WAV, Wave64, AIFF, FLAC, Ogg, MP3, AU or CAF"
MAX_CHANNELS = 1024  # libsndfile's own bound; more than this is a broken header
MAX_RATE_HZ = 10_000_000
MAX_STREAMS = 1000
READERS = {
    "wav": read_wav,
    "w64": read_w64,
    "aiff": read_aiff,
    "flac": read_flac,
    "ogg": read_ogg,
    "au": read_au,
    "caf": read_caf,
}


def read_streams(content: Content) -> list[Stream]:
    """Reads and checks the claims of every stream, in their order.

    Raises:
        DecodeError: `unsupported_format`, `bad_header`, or `limit_streams`.
    """
    start = skip_tags(content, 0, content.size)
    kind = sniff(content.at(start, HEAD_BYTES))
    # MPEG-4 begins with zeros, which are no padding there.
    heads = (content.at(offset, HEAD_BYTES) for offset in (0, start))
    foreign = next(filter(None, map(describe_foreign, heads)), "")
    has_tag = content.at(0, 3) == b"ID3"  # perhaps of another size than it says
    is_cut = False
    if foreign:
        kind = None
    elif kind is None:
        found = find_stream(content, start)
        kind = "mp3" if has_tag or found is not None else None
        is_cut = not has_tag and found is not None and not found[1]
    if kind is None:
        raise UnsupportedFormatError(foreign)
    streams = [_read(content, start, kind)]
    if is_cut:
        streams[0].flags.append("truncated")
    while (last := streams[-1]).end < content.size:
        start = skip_tags(content, last.end, content.size)
        kind = sniff(content.at(start, HEAD_BYTES))
        if kind is None or (kind == "mp3") != (last.kind == "mp3"):  # two bytes say MP3 by chance
            if start < content.size:
                last.flags.append("trailing_data")
            break
        if len(streams) == MAX_STREAMS:
            raise DecodeError("limit_streams", f"more than {MAX_STREAMS} streams in one file")
        try:
            streams.append(_read(content, start, kind))
        except UnsupportedFormatError as error:
            message = f"{error.kind} behind a stream of another kind"
            raise DecodeError("unsupported_format", message) from None
    return streams


def _read(content: Content, start: int, kind: str) -> Stream:
    try:
        if kind == "mp3":
            stream = read_mpeg(content, start, content.size)
        else:
            stream = READERS[kind](content, start)
    except struct.error:
        raise DecodeError("bad_header", f"the {kind} header ends early") from None
    channels, rate = stream.channels, stream.rate_hz
    if channels is not None and not 1 <= channels <= MAX_CHANNELS:
        raise DecodeError("bad_header", f"the header claims {channels} channels")
    if rate is not None and not 1 <= rate <= MAX_RATE_HZ:
        raise DecodeError("bad_header", f"the header claims a sample rate of {rate:g} Hz")
    if stream.pieces is None and (start, stream.end) != (0, content.size):
        stream.pieces = [(start, stream.end)]
    return stream
