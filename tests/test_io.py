"""Files and folders that are there completely or not at all."""

import json
import os
import subprocess
from pathlib import Path

import pytest

import loopjax.io
from loopjax.errors import UserError, WriteError
from loopjax.io import (
    check_can_write,
    is_empty,
    locked,
    sweep,
    write_atomically,
    write_folder,
    write_json,
)


def test_json_goes_into_folders_that_are_not_there_yet(tmp_path):
    write_json(tmp_path / "new" / "a.json", {"b": [1, None]})
    assert json.loads((tmp_path / "new" / "a.json").read_text()) == {"b": [1, None]}


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_failed_writes_leave_nothing_and_keep_the_old_file(tmp_path, error):
    path = tmp_path / "a.json"
    write_json(path, 1)

    def half(temporary: Path) -> None:
        temporary.write_text("[")
        raise error

    with pytest.raises((WriteError, KeyboardInterrupt)) as stop:
        write_atomically(path, half)
    if isinstance(error, OSError):
        assert str(stop.value) == f"cannot write {path}: No space left on device"
    assert json.loads(path.read_text()) == 1
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_is_synced_before_it_is_renamed_and_its_folder_after(tmp_path, monkeypatch):
    order: list[str] = []
    plain = Path.replace
    monkeypatch.setattr(os, "fsync", lambda fd: order.append("fsync"))
    monkeypatch.setattr(
        Path, "replace", lambda self, to: (order.append("rename"), plain(self, to))[1]
    )
    write_json(tmp_path / "a.json", 1)
    assert order == ["fsync", "rename", "fsync"]


def test_a_folder_is_written_completely_or_not_at_all(tmp_path):
    folder = tmp_path / "model"

    def write(temporary):
        (temporary / "inner").mkdir()
        (temporary / "inner" / "a").write_text("new")

    write_folder(folder, write)
    assert (folder / "inner" / "a").read_text() == "new"

    def fail(temporary):
        (temporary / "half").write_text("x")
        raise OSError(28, "No space left on device")

    with pytest.raises(WriteError, match="No space left"):
        write_folder(folder, fail)
    assert (folder / "inner" / "a").read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_what_killed_writers_left_is_swept_and_what_runs_stays(tmp_path):
    dead = subprocess.Popen(["true"])
    dead.wait()
    host = loopjax.io._this_host()
    inner = tmp_path / "models" / f".seed-0.{dead.pid}-{host}.tmp"
    (inner / "arrays").mkdir(parents=True)
    (tmp_path / f".run.json.{dead.pid}-{host}.tmp").write_text("{")
    (tmp_path / f".part-00007.parquet.{dead.pid}.tmp").write_bytes(b"half")  # an older version's
    (tmp_path / "models" / ".seed-1.writing.lock").touch()
    replaced = tmp_path / f".report.{dead.pid}-{host}.old"
    replaced.mkdir()
    (replaced / "index.html").write_text("older")
    running = tmp_path / f".metrics.jsonl.{os.getppid()}-{host}.tmp"
    running.write_text("")
    sweep(tmp_path)
    assert {p.name for p in tmp_path.rglob("*")} == {"models", "report", "index.html", running.name}


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_what_a_killed_process_left_goes_before_its_parent_has_asked_for_it(tmp_path):
    dead = subprocess.Popen(["true"])  # a zombie until `wait`
    os.waitid(os.P_PID, dead.pid, os.WEXITED | os.WNOWAIT)
    (tmp_path / f".a.json.{dead.pid}-{loopjax.io._this_host()}.tmp").write_text("{")
    sweep(tmp_path)
    assert not list(tmp_path.iterdir())
    dead.wait()


def test_writers_clear_what_was_left_of_the_same_name(tmp_path):
    dead = subprocess.Popen(["true"])
    dead.wait()
    left = f"{dead.pid}-{loopjax.io._this_host()}"
    (tmp_path / f".a.json.{left}.tmp").write_text("{")
    (tmp_path / f".model.{left}.tmp").mkdir()
    (tmp_path / f".model.{left}.old").mkdir()
    write_json(tmp_path / "a.json", 1)
    write_folder(tmp_path / "model", lambda folder: (folder / "a").write_text("x"))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.json", "model"]


@pytest.mark.faults
def test_a_place_that_cannot_be_written_is_told_before_the_work(tmp_path):
    check_can_write(tmp_path / "a" / "b" / "out", 1 << 10)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    for place in (tmp_path / "file" / "out", Path("/proc/out"), Path("/proc/a/b/out")):
        with pytest.raises(WriteError, match=f"cannot write {place}"):
            check_can_write(place)
    with pytest.raises(WriteError, match="cannot write"):
        check_can_write(tmp_path / "out", 1 << 60)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_folder_has_one_writer_and_the_others_are_told_who(tmp_path):
    with locked(tmp_path / "run"):
        assert is_empty(tmp_path / "run")
        with (
            pytest.raises(UserError, match=rf"process {os.getpid()} on .*, since"),
            locked(tmp_path / "run"),
        ):
            pass
        (tmp_path / "run" / "a").touch()
        assert not is_empty(tmp_path / "run")
    with locked(tmp_path / "run"):
        pass
    with (
        pytest.raises(FileNotFoundError),
        locked(tmp_path / "run"),
    ):  # the body's errors are its own
        raise FileNotFoundError
