"""WAV, AIFF, AU and CAF: sizes that were never right are repaired, and no sound is left behind."""

import struct

import numpy as np
import pytest

from loopjax.audio.loop import DecodeError
from tests.audio_bytes import ID3V1, decode_bytes, encoded, id3, noise

pytestmark = pytest.mark.cases

N = 10_001
KINDS = ("WAV", "RF64", "BW64", "W64", "AIFF", "AU", "CAF")
INT32_MAX, INT64_MAX = 2**31 - 1, 2**63 - 1


def plain(kind: str, subtype: str = "PCM_16", n: int = N, channels: int = 1) -> bytes:
    if kind == "BW64":
        return b"BW64" + plain("RF64", subtype, n, channels)[4:]
    return encoded(noise(n, channels), 44_100, kind, subtype)


def replaced(raw: bytes, at: int, new: bytes) -> bytes:
    return raw[:at] + new + raw[at + len(new) :]


def with_sizes(raw: bytes, size: int) -> bytes:
    """The header as a writer leaves it that cannot go back: one number wherever a size belongs."""
    wide = struct.pack("<q", size)
    narrow = wide[:4] if size in (0, -1) else struct.pack("<i", INT32_MAX)
    if raw[:4] == b".snd":
        return replaced(raw, 8, narrow[::-1])
    if raw[:4] == b"caff":
        return replaced(raw, raw.find(b"data") + 4, wide[::-1])
    if raw[:4] in (b"RF64", b"BW64"):
        return replaced(raw, raw.find(b"ds64") + 8, 3 * wide)
    if raw[:4] == b"riff":
        return replaced(replaced(raw, 16, wide), raw.find(b"data") + 16, wide)
    if raw[:4] == b"FORM":
        raw = replaced(raw, raw.find(b"COMM") + 10, narrow[::-1])
        return replaced(replaced(raw, 4, narrow[::-1]), raw.find(b"SSND") + 4, narrow[::-1])
    return replaced(replaced(raw, 4, narrow), raw.find(b"data") + 4, narrow)


def without_sizes(raw: bytes) -> bytes:
    return with_sizes(raw, 0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24"])
@pytest.mark.parametrize("size", [0, -1, INT64_MAX])
def test_sizes_that_were_never_written(tmp_path, kind, subtype, size):
    raw = plain(kind, subtype)
    decoded = decode_bytes(tmp_path, with_sizes(raw, size))
    assert decoded.info.n_frames == N
    np.testing.assert_array_equal(decoded.samples, decode_bytes(tmp_path, raw).samples)
    is_allowed = size == -1 and kind in ("AU", "CAF")  # their word for "up to the end"
    assert decoded.info.flags == (() if is_allowed else ("size_mismatch",))


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_that_ends_within_its_sound_is_cut(tmp_path, kind):
    with pytest.raises(DecodeError) as caught:
        decode_bytes(tmp_path, plain(kind, n=10_000)[:-5000])
    assert caught.value.reason == "truncated"


@pytest.mark.parametrize("count", [0, INT32_MAX, 2**32 - 1])
def test_only_the_number_of_frames_of_an_aiff_was_never_written(tmp_path, count):
    raw = plain("AIFF")
    wrong = replaced(raw, raw.find(b"COMM") + 10, struct.pack(">I", count))
    decoded = decode_bytes(tmp_path, wrong)
    np.testing.assert_array_equal(decoded.samples, decode_bytes(tmp_path, raw).samples)
    assert decoded.info.flags == ("size_mismatch",)


def test_wave64_may_hold_chunks_behind_its_sound(tmp_path):
    raw = plain("W64", n=10_000)
    note = b"junk" + raw[44:56] + struct.pack("<Q", 24 + 8) + bytes(8)
    decoded = decode_bytes(tmp_path, raw + note)
    assert (decoded.info.n_frames, decoded.info.flags) == (10_000, ())
    empty = replaced(raw, raw.find(b"data") + 16, struct.pack("<Q", 24))
    empty = empty[: raw.find(b"data") + 24]
    with pytest.raises(DecodeError) as caught:
        decode_bytes(tmp_path, empty + note)
    assert caught.value.reason == "no_samples"


def test_only_the_data_size_is_missing(tmp_path):
    raw = plain("WAV")
    decoded = decode_bytes(tmp_path, replaced(raw, raw.find(b"data") + 4, bytes(4)))
    assert (decoded.info.n_frames, decoded.info.flags) == (N, ("size_mismatch",))


def test_silence_behind_a_size_of_zero_is_sound(tmp_path):
    raw = plain("WAV")
    start = raw.find(b"data") + 8
    silent = without_sizes(raw[:start] + bytes(20_000))
    assert decode_bytes(tmp_path, silent).info.n_frames == 10_000


@pytest.mark.parametrize("behind", [b"", b"LIST\4\0\0\0INFO", bytes(4)])
def test_a_file_without_sound_stays_without(tmp_path, behind):
    raw = plain("WAV")
    empty = without_sizes(raw[: raw.find(b"data") + 8])
    if behind == bytes(4):
        assert decode_bytes(tmp_path, empty + behind).info.n_frames == 2
        return
    with pytest.raises(DecodeError) as caught:
        decode_bytes(tmp_path, empty + behind)
    assert caught.value.reason == "no_samples"


def test_streamed_caf_reaches_to_the_end(tmp_path):
    raw = plain("CAF")
    streamed = replaced(raw, raw.find(b"data") + 4, struct.pack(">q", -1))
    decoded = decode_bytes(tmp_path, streamed)
    np.testing.assert_array_equal(decoded.samples, decode_bytes(tmp_path, raw).samples)
    assert decoded.info.flags == ()


@pytest.mark.parametrize("counted", [0, 1])
def test_a_missing_pad_byte_is_no_missing_sound(tmp_path, counted):
    """10,001 frames of 24 bits end on an odd byte; some writers count a pad that is not there."""
    raw = plain("WAV", "PCM_24")
    at = raw.find(b"data") + 4
    (size,) = struct.unpack("<I", raw[at : at + 4])
    assert size % 2 == 1
    bare = replaced(raw, at, struct.pack("<I", size + counted))[: at + 4 + size]
    for riff_size in (len(bare) - 8, len(bare) - 7):
        decoded = decode_bytes(tmp_path, replaced(bare, 4, struct.pack("<I", riff_size)))
        assert (decoded.info.n_frames, decoded.info.flags) == (N, ())


@pytest.mark.parametrize("pad", [b"", b"\0"])
def test_an_odd_chunk_in_front_may_lack_its_pad_byte(tmp_path, pad):
    raw = plain("WAV")
    at = raw.find(b"data")
    odd = raw[:at] + b"note\5\0\0\0hello" + pad + raw[at:]
    decoded = decode_bytes(tmp_path, odd)
    np.testing.assert_array_equal(decoded.samples, decode_bytes(tmp_path, raw).samples)
    assert decoded.info.flags == ()


def test_a_second_data_chunk_is_not_passed_over_in_silence(tmp_path):
    raw = plain("WAV", n=10_000)
    both = raw + raw[raw.find(b"data") :]
    decoded = decode_bytes(tmp_path, replaced(both, 4, struct.pack("<I", len(both) - 8)))
    np.testing.assert_array_equal(decoded.samples, decode_bytes(tmp_path, raw).samples)
    assert decoded.info.flags == ("trailing_data",)


def test_a_missing_frame_is_missing_sound(tmp_path):
    raw = plain("WAV", n=10_000)
    with pytest.raises(DecodeError) as caught:
        decode_bytes(tmp_path, raw[:-2])
    assert caught.value.reason == "truncated"


@pytest.mark.parametrize("kind", KINDS)
def test_joined_files(tmp_path, kind):
    parts = [plain(kind, "PCM_U8" if kind == "WAV" else "PCM_16"), plain(kind, channels=2, n=5000)]
    decoded = decode_bytes(tmp_path, b"".join(parts))
    alone = [decode_bytes(tmp_path, part).samples for part in parts]
    assert decoded.info.n_frames == sum(map(len, alone)) == N + 5000
    assert decoded.info.flags == ("chained",)


@pytest.mark.parametrize("behind", [id3(b"title"), ID3V1, bytes(100)])
@pytest.mark.parametrize("kind", KINDS)
def test_tags_and_padding_behind_the_sound(tmp_path, kind, behind):
    decoded = decode_bytes(tmp_path, plain(kind, n=10_000) + behind)
    assert (decoded.info.n_frames, decoded.info.flags) == (10_000, ())


def test_bytes_that_nothing_accounts_for_are_flagged(tmp_path):
    """Half the sound behind a data size that is too small is not passed over in silence."""
    raw = plain("WAV", n=10_000)
    short = replaced(raw, raw.find(b"data") + 4, struct.pack("<I", 5000))
    decoded = decode_bytes(tmp_path, short)
    assert (decoded.info.n_frames, decoded.info.flags) == (2500, ("trailing_data",))


def test_a_tag_in_front_of_a_wav(tmp_path):
    raw = plain("WAV")
    decoded = decode_bytes(tmp_path, id3(b"title") + raw)
    np.testing.assert_array_equal(decoded.samples, decode_bytes(tmp_path, raw).samples)
