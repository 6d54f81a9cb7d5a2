"""WAV, AIFF, AU and CAF: sizes that were never right are repaired, and no sound is left behind."""

import struct

import numpy as np
import pytest

from loopjax.audio.loop import DecodeError
from tests.audio_bytes import ID3V1, decode_bytes, encoded, id3, noise

pytestmark = pytest.mark.cases

N = 10_001
KINDS = ("WAV", "RF64", "AIFF", "AU", "CAF")


def plain(kind: str, subtype: str = "PCM_16", n: int = N, channels: int = 1) -> bytes:
    return encoded(noise(n, channels), 44_100, kind, subtype)


def replaced(raw: bytes, at: int, new: bytes) -> bytes:
    return raw[:at] + new + raw[at + len(new) :]


def without_sizes(raw: bytes) -> bytes:
    """The header as a writer leaves it that cannot go back: 0 wherever a size belongs."""
    if raw[:4] == b".snd":
        return replaced(raw, 8, bytes(4))
    if raw[:4] == b"caff":
        return replaced(raw, raw.find(b"data") + 4, bytes(8))
    if raw[:4] == b"RF64":
        return replaced(raw, raw.find(b"ds64") + 8, bytes(24))
    if raw[:4] == b"FORM":
        raw = replaced(raw, raw.find(b"COMM") + 10, bytes(4))
        return replaced(replaced(raw, 4, bytes(4)), raw.find(b"SSND") + 4, bytes(4))
    return replaced(replaced(raw, 4, bytes(4)), raw.find(b"data") + 4, bytes(4))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24"])
def test_sizes_that_were_never_written(tmp_path, kind, subtype):
    raw = plain(kind, subtype)
    decoded = decode_bytes(tmp_path, without_sizes(raw))
    assert decoded.info.n_frames == N
    np.testing.assert_array_equal(decoded.samples, decode_bytes(tmp_path, raw).samples)
    assert decoded.info.flags == ("size_mismatch",)


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
