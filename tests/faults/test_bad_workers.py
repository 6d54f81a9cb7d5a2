"""Fault matrix rows 30 to 32, and memory: codecs that crash, hang or claim too much."""

import os
import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile

from loopjax.audio.batching import make_buckets
from loopjax.audio.decode import DecodeOptions
from loopjax.audio.feeding import Feeder
from loopjax.audio.loop import DecodeError
from loopjax.audio.process import DecoderProcess
from loopjax.audio.sources.files import scan
from loopjax.errors import LoopjaxError
from tests.audio_files import wav_bytes, write_tone
from tests.faults.conftest import assert_healthy_rows_equal, run_and_read

pytestmark = pytest.mark.faults

WORKER = "tests.faults.crashing_worker"


@pytest.fixture
def crashing(monkeypatch):
    """The engine with a decoder that misbehaves on request, two seconds allowed per file."""

    def make(options, timeout_s):
        return DecoderProcess(options, 2.0, module=WORKER)

    monkeypatch.setattr("loopjax.audio.sources.files.DecoderProcess", make)


def test_rows_30_to_32_cost_one_row_each(crashing, encoder, healthy, clean, tmp_path):
    folder = tmp_path / "evil"
    folder.mkdir()
    names = ("segfault.wav", "exit.wav", "sleep.wav", "memory.wav", "once.wav")
    for i, name in enumerate(names):
        write_tone(folder / name, seed=200 + i)
    outcome = run_and_read(encoder, [healthy, folder], tmp_path / "store", workers=2)
    assert outcome.reasons == {
        "segfault.wav": "worker_crash",
        "exit.wav": "worker_crash",
        "sleep.wav": "timeout",
        "memory.wav": "out_of_memory",
    }
    assert "once.wav" in outcome.rows  # a second, fresh process decoded it
    messages = {f["path"]: f["message"] for f in outcome.embeddings.failures.to_pylist()}
    assert "SIGSEGV" in messages[str(folder / "segfault.wav")]
    assert "exit code 7" in messages[str(folder / "exit.wav")]
    assert_healthy_rows_equal(outcome, clean)


def _peak_mib(process: DecoderProcess) -> float:
    assert process._process is not None
    status = Path(f"/proc/{process._process.pid}/status").read_text()
    (line,) = [line for line in status.splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) / 1024


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
def test_rows_12_and_14_limits_come_before_memory(tmp_path):
    with soundfile.SoundFile(tmp_path / "bomb.flac", "w", 8000, 8) as file:
        for _ in range(1801):
            file.write(np.zeros((8000, 8), np.int16))
    raw = bytearray((tmp_path / "bomb.flac").read_bytes())
    (packed,) = struct.unpack(">Q", raw[18:26])
    raw[18:26] = struct.pack(">Q", packed & ~((1 << 36) - 1))
    (tmp_path / "bomb_unknown.flac").write_bytes(bytes(raw))
    (tmp_path / "rate_1.wav").write_bytes(wav_bytes(bytes(96_000), rate_hz=1))
    (tmp_path / "claim.wav").write_bytes(wav_bytes(bytes(96_000), data_size=0x7FFFFFF0))
    write_tone(tmp_path / "a_good.wav")
    process = DecoderProcess(DecodeOptions(), 60.0)
    try:
        reasons = {}
        for loop in scan([tmp_path]):
            try:
                process.decode(loop)
                reasons[Path(loop.path).name] = ""
            except DecodeError as error:
                reasons[Path(loop.path).name] = error.reason
            if loop.path.endswith("a_good.wav"):
                before = _peak_mib(process)
        assert reasons == {
            "a_good.wav": "",
            "bomb.flac": "limit_duration",
            "bomb_unknown.flac": "limit_duration",
            "claim.wav": "",
            "rate_1.wav": "limit_rate",
        }
        # 30 minutes of 8 channels would be 440 MiB; the limit admits 10 minutes of mono: 18 MiB.
        assert _peak_mib(process) - before < 60
    finally:
        process.close()


def test_a_decoder_that_cannot_start_says_why(healthy):
    process = DecoderProcess(DecodeOptions(), 5.0, module="tests.faults.no_such_module")
    with pytest.raises(LoopjaxError, match="no_such_module"):
        process.decode(next(scan([healthy])))
    process.close()


def test_stopping_does_not_wait_for_a_hanging_decoder(tmp_path):
    write_tone(tmp_path / "sleep.wav")
    process = DecoderProcess(DecodeOptions(), 60.0, module=WORKER)
    failures = []
    feeder = Feeder(scan([tmp_path]), [process], make_buckets((1.0,), 10.0, 4), failures.append)
    feeder.start()
    deadline = time.monotonic() + 30
    while process._process is None and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(1.0)
    started = time.monotonic()
    feeder.close()
    assert time.monotonic() - started < 20
    assert not failures


ORPHAN_SCRIPT = """
import os, sys
from loopjax.audio.decode import DecodeOptions
from loopjax.audio.sources.files import scan
from loopjax.audio.process import DecoderProcess
process = DecoderProcess(DecodeOptions(), 60.0, module="tests.faults.crashing_worker")
process._start()
print(process._process.pid, flush=True)
process.decode(next(scan([sys.argv[1]])))
"""


def test_decoders_end_with_their_parent_even_in_the_middle_of_a_file(tmp_path):
    write_tone(tmp_path / "sleep.wav")
    parent = subprocess.Popen(
        [sys.executable, "-c", ORPHAN_SCRIPT, str(tmp_path / "sleep.wav")],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    time.sleep(0.5)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and _alive(child):
        time.sleep(0.05)
    assert not _alive(child)


def _alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"
