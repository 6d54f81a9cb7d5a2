"""Fault matrix rows 33, 34, 37 and 39: runs that are killed, full disks, two writers."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from loopjax.errors import UserError, WriteError
from loopjax.io import LOCK_NAME, locked
from loopjax.store.read import part_files, read_embeddings
from scripts.faults import kill_verbs
from tests.audio_files import write_corpus

pytestmark = pytest.mark.faults

N_FILES = 80


def start(source: Path, out: Path, *settings: str) -> subprocess.Popen:
    """Starts a run in its own process."""
    return subprocess.Popen(
        [sys.executable, "-m", "tests.faults.embed_process", str(source), str(out), *settings],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )


def finish(process: subprocess.Popen) -> tuple[int, str]:
    """Waits; returns exit code and stderr."""
    _, errors = process.communicate(timeout=120)
    return process.returncode, errors


def by_id(out: Path) -> dict[str, bytes]:
    """Embeddings as bytes, by id; asserts that no id occurs twice."""
    embeddings = read_embeddings(out)
    ids = embeddings.table["id"].to_pylist()
    assert len(set(ids)) == len(ids)
    return {i: row.tobytes() for i, row in zip(ids, embeddings.matrix, strict=True)}


def wait_for_part(out: Path, process: subprocess.Popen) -> None:
    """Returns once the first shard is there."""
    deadline = time.monotonic() + 60
    while not part_files(out):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kills") / "corpus"
    write_corpus(folder, N_FILES)
    return folder


@pytest.fixture(scope="module")
def undisturbed(corpus, tmp_path_factory):
    out = tmp_path_factory.mktemp("undisturbed") / "store"
    code, errors = finish(start(corpus, out))
    assert code == 0, errors
    return by_id(out)


@pytest.mark.slow
def test_row_33_killed_runs_continue_exactly_once(corpus, undisturbed, tmp_path):
    assert len(undisturbed) == N_FILES
    out, rng = tmp_path / "store", random.Random(5)
    for _ in range(3):
        process = start(corpus, out, "batch_s=0.05", "shard_rows=8")
        time.sleep(2.0 + rng.random())
        process.kill()
        finish(process)
    code, errors = finish(start(corpus, out, "shard_rows=8"))
    assert code == 0, errors
    assert by_id(out) == undisturbed
    assert not list(out.glob(".*.tmp"))


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_row_34_signals_save_what_is_finished(corpus, undisturbed, tmp_path, number, code):
    out = tmp_path / "store"
    process = start(corpus, out, "batch_s=0.1", "shard_rows=8")
    wait_for_part(out, process)
    process.send_signal(number)
    returned, errors = finish(process)
    assert returned == code, errors
    assert "Traceback" not in errors
    partial = by_id(out)
    assert 0 < len(partial) < N_FILES
    assert not list(out.glob(".loopjax.held-by-*"))  # released in order
    code, errors = finish(start(corpus, out))
    assert code == 0, errors
    assert by_id(out) == undisturbed


@pytest.mark.slow
def test_row_37_full_disk_keeps_earlier_shards(corpus, undisturbed, tmp_path):
    out = tmp_path / "store"
    returned, errors = finish(start(corpus, out, "batch_s=0.1", "shard_rows=8", "fsize=3000"))
    assert returned == 6, errors
    assert "cannot write" in errors
    assert 0 < len(by_id(out)) < N_FILES
    assert not list(out.glob(".*.tmp"))
    returned, errors = finish(start(corpus, out))
    assert returned == 0, errors
    assert by_id(out) == undisturbed


def test_row_37_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(WriteError, match="file"), locked(tmp_path / "file" / "store"):
        pass


@pytest.mark.slow
def test_row_39_second_writer_is_refused_by_name(corpus, tmp_path):
    out = tmp_path / "store"
    first = start(corpus, out, "batch_s=1.0", "shard_rows=4")
    wait_for_part(out, first)
    code, errors = finish(start(corpus, out))
    assert code == 2
    assert f"process {first.pid}" in errors
    first.terminate()
    finish(first)


def test_row_39_lock_of_a_dead_run_is_taken_over(tmp_path, caplog):
    (tmp_path / ".loopjax.held-by-999999-on-elsewhere").touch()
    with locked(tmp_path):
        assert "process 999999 on elsewhere" in caplog.text
        with pytest.raises(UserError, match=f"process {os.getpid()}"), locked(tmp_path):
            pass
    with locked(tmp_path):
        pass
    assert [path.name for path in tmp_path.iterdir()] == [LOCK_NAME]


@pytest.mark.slow
def test_row_34_further_signals_are_harmless(corpus, tmp_path):
    process = start(corpus, tmp_path / "store", "batch_s=0.5", "shard_rows=8")
    wait_for_part(tmp_path / "store", process)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGTERM):
        process.send_signal(number)
        time.sleep(0.05)
    code, errors = finish(process)
    assert code == 143, errors
    assert "Traceback" not in errors
    assert len(by_id(tmp_path / "store")) >= 8  # what is there is whole
    assert all(np.isfinite(read_embeddings(tmp_path / "store").matrix).ravel())


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_row_33_verbs_that_are_killed_recover():
    """The short form of `python -m scripts.faults.kill_verbs`, which kills all verbs."""
    faults = kill_verbs.main(n_kills=4, verbs=("embed", "score", "rerank", "apply"))
    assert faults == {"lost": 0, "tracebacks": 0, "left behind": 0}
