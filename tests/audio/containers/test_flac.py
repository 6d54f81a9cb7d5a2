"""FLAC: the last frame's own number is believed, not the header's length alone."""

import numpy as np
import pytest

from loopjax.audio.loop import DecodeError
from tests.audio_bytes import ID3V1, decode_bytes, encoded, id3, noise

pytestmark = pytest.mark.cases

N = 50_000
BITS = 36


def flac(n: int = N, channels: int = 1, subtype: str = "PCM_16") -> bytes:
    return encoded(noise(n, channels), 44_100, "FLAC", subtype)


def claim(raw: bytes, total: int) -> bytes:
    packed = int.from_bytes(raw[18:26], "big") >> BITS << BITS | total
    return raw[:18] + packed.to_bytes(8, "big") + raw[26:]


@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24"])
@pytest.mark.parametrize("total", [0, 10_000])
def test_all_frames_are_decoded_whatever_the_header_says(tmp_path, subtype, total):
    raw = flac(subtype=subtype)
    decoded = decode_bytes(tmp_path, claim(raw, total))
    np.testing.assert_array_equal(decoded.samples, decode_bytes(tmp_path, raw).samples)
    assert decoded.info.flags == (("size_mismatch",) if total else ())


def test_a_wrong_block_size_is_a_broken_header(tmp_path):
    """With it, sound behind a damaged frame was delivered from another place, and as long."""
    raw = flac()
    wrong = raw[:8] + b"\xff\xff\xff\xff" + raw[12:]
    damaged = wrong[: len(raw) * 3 // 4] + bytes(16) + wrong[len(raw) * 3 // 4 + 16 :]
    for file in (wrong, damaged):
        with pytest.raises(DecodeError, match="frames of 4096 samples") as caught:
            decode_bytes(tmp_path, file)
        assert caught.value.reason == "bad_header"


def test_a_claim_of_more_than_there_is(tmp_path):
    with pytest.raises(DecodeError, match=f"{N} of {N + 9} frames are there") as caught:
        decode_bytes(tmp_path, claim(flac(), N + 9))
    assert caught.value.reason == "truncated"


def test_a_cut_file_is_truncated_and_its_whole_frames_can_be_kept(tmp_path):
    raw = flac()
    with pytest.raises(DecodeError) as caught:
        decode_bytes(tmp_path, raw[:-3000])
    assert caught.value.reason == "truncated"
    kept = decode_bytes(tmp_path, raw[:-3000], accept_truncated=True)
    assert kept.info.flags == ("truncated",)
    assert 0 < kept.info.n_frames < N
    right = decode_bytes(tmp_path, raw).samples
    np.testing.assert_array_equal(kept.samples, right[: kept.info.n_frames])


@pytest.mark.parametrize("silent", [100, 4096])
def test_a_last_frame_of_silence_takes_few_bytes(tmp_path, silent):
    """Loops fade out: their last frame may be shorter than the longest header of one."""
    sound = np.concatenate([noise(2 * 4096, 1), np.zeros((silent, 1))])
    raw = encoded(sound, 44_100, "FLAC", "PCM_16")
    decoded = decode_bytes(tmp_path, raw)
    assert decoded.info.n_frames == len(sound) and decoded.info.flags == ()
    for cut in (1, 4, 8):
        with pytest.raises(DecodeError) as caught:
            decode_bytes(tmp_path, raw[:-cut])
        assert caught.value.reason == "truncated"


def test_tags_around_it(tmp_path):
    raw = flac()
    decoded = decode_bytes(tmp_path, id3(b"title" * 50) + raw + ID3V1)
    np.testing.assert_array_equal(decoded.samples, decode_bytes(tmp_path, raw).samples)


def test_joined_files(tmp_path):
    parts = [flac(), flac(20_000, 2), flac(9000, 1, "PCM_24")]
    decoded = decode_bytes(tmp_path, b"".join(parts))
    alone = [decode_bytes(tmp_path, part).samples for part in parts]
    assert decoded.samples.dtype == np.float32
    assert decoded.info.n_frames == sum(map(len, alone)) == N + 29_000
    np.testing.assert_array_equal(decoded.samples[N : N + 20_000], alone[1])
    assert decoded.info.flags == ("chained",)
