"""Container families by their first bytes: those that are read, and the names of others."""

from loopjax.audio.containers.mpeg import parse_frame

HEAD_BYTES = 64
SIMPLE = {b"fLaC": "flac", b"OggS": "ogg", b".snd": "au", b"dns.": "au", b"caff": "caf"}


def sniff(head: bytes) -> str | None:
    """Container family by magic bytes, or None for anything else.

    Args:
        head: the first `HEAD_BYTES` bytes of the file.
    """
    if head[:4] in (b"RIFF", b"RIFX", b"RF64", b"BW64") and head[8:12] == b"WAVE":
        return "wav"
    if head[:4] == b"FORM" and head[8:12] in (b"AIFF", b"AIFC"):
        return "aiff"
    if head[:4] in SIMPLE:
        return SIMPLE[head[:4]]
    if head[:3] == b"ID3" or head[:8] == b"APETAGEX" or parse_frame(head) is not None:
        return "mp3"
    return None
