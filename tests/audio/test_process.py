"""The decoder process: same samples as decoding here, one request at a time."""

import os

import numpy as np
import pytest

from loopjax.audio.decode import DecodeOptions, decode_file
from loopjax.audio.loop import DecodeError
from loopjax.audio.process import KEEP_BYTES, DecoderProcess
from loopjax.audio.sources.files import scan
from tests.audio_files import write_tone

OPTIONS = DecodeOptions(device_rates_hz=(44_100, 48_000, 96_000))


@pytest.fixture(scope="module")
def process():
    process = DecoderProcess(OPTIONS)
    yield process
    process.close()


def copy(reply) -> np.ndarray:
    out = np.empty(reply.n_samples, reply.dtype)
    reply.copy_to(out)
    return out


@pytest.mark.parametrize("extension", ["wav", "flac", "ogg", "mp3"])
def test_same_samples_as_decoding_here(process, tmp_path, extension):
    path = write_tone(tmp_path / f"a.{extension}", 0.5, 44_100, channels=2)
    reply = process.decode(next(scan([path])))
    here = decode_file(os.fsencode(path), -1, 0, OPTIONS)
    np.testing.assert_array_equal(copy(reply), here.samples)
    assert reply.info == here.info


def test_long_and_short_files_alternate(process, tmp_path):
    """Large samples give their shared memory back; small ones after them stay right."""
    long = write_tone(tmp_path / "long.wav", 45.0, 96_000, channels=2, seed=1)
    short = write_tone(tmp_path / "short.wav", 0.1, seed=2)
    for path in (short, long, short, long, short):
        reply = process.decode(next(scan([path])))
        samples = copy(reply)
        here = decode_file(os.fsencode(path), -1, 0, OPTIONS).samples
        np.testing.assert_array_equal(samples, here)
    assert KEEP_BYTES < 45 * 96_000 * 4
    assert os.fstat(process._samples_fd).st_size < KEEP_BYTES


def test_copying_into_the_front_of_a_row_leaves_the_rest(process, tmp_path):
    path = write_tone(tmp_path / "a.wav", 0.01)
    reply = process.decode(next(scan([path])))
    row = np.full(1000, 7, np.int16)
    reply.copy_to(row)
    assert reply.n_samples == 480
    assert (row[480:] == 7).all()
    assert (row[:480] != 7).any()


def test_rejections_do_not_end_the_process(process, tmp_path):
    good = write_tone(tmp_path / "good.wav")
    (tmp_path / "bad.wav").write_bytes(b"junk")
    process.decode(next(scan([good])))
    pid = process._process.pid
    with pytest.raises(DecodeError) as caught:
        process.decode(next(scan([tmp_path / "bad.wav"])))
    assert caught.value.reason == "unsupported_format"
    process.decode(next(scan([good])))
    assert process._process.pid == pid
