"""Formats of the codecs extra: read when it is there, a row with the remedy when it is not."""

import struct
import sys
from pathlib import Path

import numpy as np
import pytest

from loopjax.audio.loop import DecodeError
from tests.audio_bytes import decode_bytes, encoded, noise

pytestmark = pytest.mark.cases

DATA = Path(__file__).parent / "data"
N, RATE_HZ = 3200, 16_000
WAVE = (noise(N, 2) * 32767).astype(np.int16)  # what the files were made from, by ffmpeg 5.1


@pytest.fixture
def codecs():
    pytest.importorskip("av")


def data(name: str) -> bytes:
    return (DATA / name).read_bytes()


@pytest.mark.parametrize(
    "name", ["alac.m4a", "alac.caf", "wavpack.wv", "flac.mka", "ogg_flac.oga", "wave64.w64"]
)
def test_lossless_formats_give_the_samples_back(codecs, tmp_path, name):
    decoded = decode_bytes(tmp_path, data(name))
    assert (decoded.info.n_frames, decoded.info.channels) == (N, 2)
    expected = (WAVE.astype(np.float32) / 32768).mean(axis=1)
    np.testing.assert_allclose(decoded.samples, expected, atol=1e-7)
    assert (decoded.info.source_rate_hz, decoded.info.flags) == (RATE_HZ, ())


@pytest.mark.parametrize(  # as many frames as ffmpeg's own program gives
    ("name", "n_frames"),
    [
        ("aac.m4a", 4096),
        ("adts.aac", 5120),
        ("media.wma", 3072),
        ("speex.spx", 6400),
        ("yamaha.wav", 4096),
    ],
)
def test_lossy_formats_keep_the_length(codecs, tmp_path, name, n_frames):
    decoded = decode_bytes(tmp_path, data(name))
    assert (decoded.info.n_frames, decoded.info.flags) == (n_frames, ())
    assert 0.02 < decoded.samples.std() < 0.2


def test_a_stream_that_needs_the_extra_behind_one_that_does_not_is_named(tmp_path):
    """A codec that is given the whole file would read one of the two alone."""
    raw = encoded(noise(4410), 44_100, "WAV", "PCM_16") + data("yamaha.wav")
    with pytest.raises(DecodeError, match="WAV of a rare codec behind a stream") as caught:
        decode_bytes(tmp_path, raw)
    assert caught.value.reason == "unsupported_format"


def test_cut_and_damaged_files_are_rejected(codecs, tmp_path):
    raw = data("alac.m4a")
    with pytest.raises(DecodeError) as caught:
        decode_bytes(tmp_path, raw[: len(raw) // 2])
    assert caught.value.reason in ("truncated", "decode_error")
    with pytest.raises(DecodeError):
        decode_bytes(tmp_path, data("wavpack.wv")[:32] + bytes(5000))


def test_limits_hold(codecs, tmp_path):
    with pytest.raises(DecodeError) as caught:
        decode_bytes(tmp_path, data("wavpack.wv"), max_duration_s=0.1)
    assert caught.value.reason == "limit_duration"
    with pytest.raises(DecodeError) as caught:
        decode_bytes(tmp_path, data("wavpack.wv"), max_channels=1)
    assert caught.value.reason == "limit_channels"


HEADS = {
    "MPEG-4": b"\0\0\0\x1cftypM4A \0\0\0\0",
    "Windows Media": bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c"),
    "WavPack": b"wvpk" + bytes(20),
    "AAC": b"\xff\xf1\x50\x80",
    "Matroska": b"\x1aE\xdf\xa3",
}


@pytest.mark.parametrize("name", HEADS)
def test_without_the_extra_the_remedy_is_named(tmp_path, monkeypatch, name):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(DecodeError, match=rf"{name}.*pip install 'loopjax\[codecs\]'") as caught:
        decode_bytes(tmp_path, HEADS[name] + bytes(500))
    assert caught.value.reason == "unsupported_format"


def test_what_no_extra_reads_names_what_to_do(tmp_path):
    recycle = b"CAT " + struct.pack(">I", 100) + b"REX2" + bytes(100)
    with pytest.raises(DecodeError, match="ReCycle; convert it to WAV"):
        decode_bytes(tmp_path, recycle)


def test_shortest_admitted_loop(tmp_path):
    raw = encoded(noise(4410), 44_100, "WAV", "PCM_16")
    assert decode_bytes(tmp_path, raw, min_duration_s=0.1).info.n_frames == 4410
    with pytest.raises(DecodeError, match=r"0\.100 s, at least 0\.2 s") as caught:
        decode_bytes(tmp_path, raw, min_duration_s=0.2)
    assert caught.value.reason == "limit_duration"
