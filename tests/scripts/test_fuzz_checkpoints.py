"""A short run of the checkpoint fuzzer, and proof that it can fail."""

import time
from pathlib import Path

import pytest

from scripts.fuzz import checkpoints
from scripts.fuzz.checkpoints import Verdict, Worker, attempt, main


@pytest.mark.faults
@pytest.mark.timeout(300)
def test_a_short_run_finds_nothing(tmp_path, capsys):
    assert main(["--n", "40", "--seed", "7", "--keep", str(tmp_path / "kept")]) == 0
    assert capsys.readouterr().out.endswith("0 lost, 0 hung, 0 ran, 0 tracebacks\n")
    assert not (tmp_path / "kept").exists()


class Scripted:
    """A worker that does what a broken converter would do."""

    def __init__(self, verdict: Verdict, touch: str = ""):
        self.verdict, self.touch = verdict, touch

    def judge(self, source: Path, out: Path) -> Verdict:
        if self.touch:
            (out.parent / self.touch).touch()
        return self.verdict


@pytest.mark.parametrize(
    ("worker", "kind"),
    [
        (Scripted(Verdict("read"), "canary"), "ran"),
        (Scripted(Verdict("refused"), ".out.tmp"), "lost"),
        (Scripted(Verdict("tracebacks", "Traceback")), "tracebacks"),
        (Scripted(Verdict("refused")), "refused"),
    ],
)
def test_faults_are_seen(worker, kind, tmp_path):
    _, verdict = attempt(3, worker, tmp_path)
    assert verdict.kind == kind
    assert bool(list(tmp_path.iterdir())) is (kind != "refused")


def test_a_damaged_file_that_was_accepted_is_lost(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "INPUTS", (checkpoints.torch_file,))
    monkeypatch.setattr(checkpoints, "same_weights", lambda source: False)
    assert attempt(0, Scripted(Verdict("read")), tmp_path)[1].kind == "lost"


def dies(connection):
    connection.recv()
    raise SystemExit(9)


def sleeps(connection):
    connection.recv()
    time.sleep(60)


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("work", "kind", "hang_s"), [(dies, "tracebacks", 60), (sleeps, "hung", 2)]
)
def test_processes_that_die_or_hang_are_seen(work, kind, hang_s, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "work", work)
    monkeypatch.setattr(checkpoints, "HANG_S", hang_s)
    worker = Worker()
    try:
        assert worker.judge(tmp_path, tmp_path).kind == kind
    finally:
        worker.stop()
