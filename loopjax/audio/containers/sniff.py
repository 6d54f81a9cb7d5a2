"""Container families by their first bytes: those that are read, and the names of others."""

from loopjax.audio.containers.mpeg import parse_frame

HEAD_BYTES = 64
ASF = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")
W64 = bytes.fromhex("726966662e91cf11a5d628db04c10000")
FOREIGN = (  # offset, magic bytes, name
    (4, b"ftyp", "MPEG-4 (AAC or ALAC)"),
    (0, ASF, "Windows Media"),
    (0, b"wvpk", "WavPack"),
    (0, b"MAC ", "Monkey's Audio"),
    (0, b"\x1aE\xdf\xa3", "Matroska or WebM"),
    (0, b"TTA1", "True Audio"),
    (0, b"MPCK", "Musepack"),
    (0, b"MP+", "Musepack"),
    (0, b"tBaK", "TAK"),
    (0, b"OFR ", "OptimFROG"),
    (0, b"DSD ", "DSD"),
    (0, b"FRM8", "DSD"),
    (0, b"#!AMR", "AMR"),
    (0, b".ra\xfd", "RealAudio"),
    (0, b"Creative Voice File", "Creative Voice"),
    (0, b"ajkg", "Shorten"),
    (0, b"\x0b\x77", "AC-3"),
    (0, b"\x7f\xfe\x80\x01", "DTS"),
    (0, b"\0\0\1\xba", "MPEG video"),
    (8, b"AVI ", "AVI video"),
    (0, b"FLV\1", "Flash video"),
)
SIMPLE = {b"fLaC": "flac", b"OggS": "ogg", b".snd": "au", b"dns.": "au", b"caff": "caf"}


def sniff(head: bytes) -> str | None:
    """Container family by magic bytes, or None for anything else.

    Args:
        head: the first `HEAD_BYTES` bytes of the file.
    """
    if head[:4] in (b"RIFF", b"RIFX", b"RF64", b"BW64") and head[8:12] == b"WAVE":
        return "wav"
    if head[:16] == W64:
        return "w64"
    if head[:4] == b"FORM" and head[8:12] in (b"AIFF", b"AIFC"):
        return "aiff"
    if head[:4] in SIMPLE:
        return SIMPLE[head[:4]]
    if head[:3] == b"ID3" or head[:8] == b"APETAGEX" or parse_frame(head) is not None:
        return "mp3"
    return None


def describe_foreign(head: bytes) -> str:
    """Name of a kind of audio that is not read here; an empty text for anything else."""
    if len(head) > 1 and head[0] == 0xFF and head[1] & 0xF6 == 0xF0:
        return "AAC"  # ADTS: the layer field that MPEG audio never holds
    if head[:4] == b"FORM" and head[8:12] in (b"8SVX", b"16SV"):
        return "IFF-8SVX"
    if head[:4] == b"CAT " and head[8:12] == b"REX2":
        return "ReCycle"
    return next((name for at, mark, name in FOREIGN if head[at:].startswith(mark)), "")
