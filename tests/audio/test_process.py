"""The decoder process: same samples as decoding here, one request at a time."""

import os
import subprocess
import sys

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
    assert process._samples.size_bytes < KEEP_BYTES


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


def test_a_smaller_limit_that_is_there_already_stays(tmp_path):
    code = (
        "import resource\n"
        "resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 3 << 30))\n"
        "from loopjax.audio.limits import limit_resources\n"
        "print(limit_resources(4 << 30), resource.getrlimit(resource.RLIMIT_AS))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.split("\n")[0] == f"[] ({2 << 30}, {2 << 30})", done.stderr


@pytest.mark.parametrize(
    ("module", "missing"),
    [
        ("loopjax.audio.worker", ()),
        ("tests.audio.macos_worker", ("memory",)),
        ("tests.audio.windows_worker", ("memory", "core")),
    ],
)
def test_limits_that_a_system_lacks_are_told_and_files_decode(tmp_path, module, missing):
    path = write_tone(tmp_path / "a.wav", 0.2)
    process = DecoderProcess(OPTIONS, module=module)
    try:
        reply = process.decode(next(scan([path])))
        assert process.missing_limits == missing
        here = decode_file(os.fsencode(path), -1, 0, OPTIONS).samples
        np.testing.assert_array_equal(copy(reply), here)
    finally:
        process.close()


WINDOWS_SCRIPT = """
import sys
from tests.audio.without_unix import take_away_unix
take_away_unix()
import numpy as np
from loopjax.audio.decode import DecodeOptions
from loopjax.audio.loop import DecodeError
from loopjax.audio.process import DecoderProcess
from loopjax.audio.sources.files import Files
import loopjax.io, loopjax.store.write, loopjax.cli
corpus = Files([sys.argv[1]])
decoder = DecoderProcess(DecodeOptions(), module="tests.audio.windows_worker")
for loop in corpus.loops():
    try:
        reply = decoder.decode(loop)
        out = np.empty(reply.n_samples, reply.dtype)
        reply.copy_to(out)
        print(reply.n_samples, bool(np.abs(out).max() > 0))
    except DecodeError as error:
        print(error.reason)
place = decoder._samples.place
decoder.close()
import os
print(type(place).__name__, os.path.exists(place), decoder.missing_limits)
"""


def test_without_anything_that_only_unix_has(tmp_path):
    folder = tmp_path / "loops"
    folder.mkdir()
    write_tone(folder / "a.wav", 0.1)
    write_tone(folder / "b.mp3", 0.1)
    (folder / "c.wav").write_bytes(b"junk")
    done = subprocess.run(
        [sys.executable, "-c", WINDOWS_SCRIPT, str(folder)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.stdout.splitlines() == [
        "4800 True",
        "4800 True",
        "unsupported_format",
        "str False ('memory', 'core')",
    ], done.stderr[-1000:]
