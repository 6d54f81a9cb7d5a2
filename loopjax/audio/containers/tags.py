"""Tags that stand before, between and behind streams of any format."""

from loopjax.audio.containers.content import Content

ID3V1_BYTES = 128
APE_BYTES = 32  # of a header or footer


def skip_tags(content: Content, offset: int, end: int) -> int:
    """Offset behind all ID3v2, ID3v1, APEv2 tags and zero bytes that begin at `offset`."""
    while offset < end:
        raw = content.at(offset, APE_BYTES)
        if raw[:3] == b"ID3" and len(raw) >= 10 and max(raw[6:10]) < 0x80:
            a, b, c, d = raw[6:10]
            footer = 10 if raw[5] & 0x10 else 0
            offset += 10 + (a << 21 | b << 14 | c << 7 | d) + footer
        elif raw[:3] == b"TAG" and offset + ID3V1_BYTES <= end:
            offset += ID3V1_BYTES
        elif raw[:8] == b"APETAGEX" and len(raw) == APE_BYTES:
            offset += APE_BYTES
            if raw[23] & 0x20:  # a header: its items and the footer follow
                offset += int.from_bytes(raw[12:16], "little")
        elif raw[:1] == b"\0":
            offset = content.skip_zeros(offset, end)
        else:
            return offset
    return min(offset, end)
