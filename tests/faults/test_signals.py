"""SIGTERM and SIGINT in a run outside embedding: what was finished is kept, and nothing else."""

import gc
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from loopjax.cli import main
from loopjax.errors import InterruptedRunError
from loopjax.experiment.interrupt import stoppable
from loopjax.report import page
from tests.audio_files import write_corpus
from tests.faults.crash import left_over

pytestmark = pytest.mark.faults


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """A run of two detectors over a small store."""
    folder = tmp_path_factory.mktemp("signals")
    write_corpus(folder / "loops", 16, seconds=(0.1, 0.2))
    embed = ("--encoder", "log-mel-statistics", "--workers", "1")
    assert main(["embed", str(folder / "loops"), "-o", str(folder / "emb"), *embed]) == 0
    values = {
        "name": "signals",
        "data": {"embeddings": str(folder / "emb")},
        "seeds": [0],
        "detectors": [{"name": "pca", "kind": "pca"}, {"name": "cosine", "kind": "mean-cosine"}],
        "evaluate": {"bootstrap": 20},
        "report": {"audio": "none"},
    }
    (folder / "config.yaml").write_text(json.dumps(values))
    return folder / "config.yaml"


def start(*arguments: object) -> subprocess.Popen:
    """Starts a verb; its messages can be read line by line."""
    return subprocess.Popen(
        [sys.executable, "-m", "loopjax.cli", *map(str, arguments)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )


@pytest.mark.parametrize(
    ("step", "number", "code"),
    [("fitting cosine", signal.SIGTERM, 143), ("evaluating", signal.SIGINT, 130)],
)
def test_a_signal_keeps_what_is_finished(config, tmp_path, step, number, code):
    process = start("run", config, "-o", tmp_path / "run")
    assert process.stderr is not None
    said = ""
    while step not in said:
        line = process.stderr.readline()
        assert line, said
        said += line
    for each in (number, signal.SIGTERM, signal.SIGINT, signal.SIGTERM):
        if process.poll() is None:
            process.send_signal(each)
        time.sleep(0.02)
    _, rest = process.communicate(timeout=120)
    assert process.returncode == code, said + rest
    assert "Traceback" not in rest
    assert "what was finished is saved" in rest
    assert (tmp_path / "run" / "models" / "pca" / "seed-0" / "config.json").exists()
    assert not left_over(tmp_path)
    assert main(["run", str(config), "-o", str(tmp_path / "run")]) == 0
    assert not left_over(tmp_path)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_within_the_report_keeps_the_run_and_the_older_page(
    config, tmp_path, monkeypatch, capfd, number, code
):
    """First in `run`, before there is a page, then in `report`, which leaves the page alone."""
    run, render = tmp_path / "run", page.render
    index = run / "report" / "index.html"

    def stop(*args):
        os.kill(os.getpid(), number)
        return render(*args)

    with monkeypatch.context() as patched:
        patched.setattr(page, "render", stop)
        assert main(["run", str(config), "-o", str(run)]) == code
        assert "what was finished is saved" in capfd.readouterr().err
        assert not index.exists()
        assert not left_over(tmp_path)
    evaluation = (run / "evaluation.json").read_bytes()
    assert main(["run", str(config), "-o", str(run)]) == 0
    assert (run / "evaluation.json").read_bytes() == evaluation
    written = index.read_bytes()
    with monkeypatch.context() as patched:
        patched.setattr(page, "render", stop)
        assert main(["report", str(run)]) == code
        assert index.read_bytes() == written
    assert main(["report", str(run)]) == 0
    assert not left_over(tmp_path)


def test_a_verb_that_is_stopped_early_says_so(config, tmp_path):
    """Loops that are read from a pipe which nobody writes to: the verb listens, and cannot end."""
    os.mkfifo(tmp_path / "marks.csv")
    store = Path(config).parent / "emb"
    process = start("fit", store, "-o", tmp_path / "model", "--marks", tmp_path / "marks.csv")
    with (tmp_path / "marks.csv").open("w"):  # opens once the verb has opened it to read
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=120)
    assert process.returncode == 143, errors
    assert "Traceback" not in errors
    assert "stopped by SIGTERM" in errors
    assert not (tmp_path / "model").exists()
    assert not left_over(tmp_path)


def test_a_signal_among_dropped_errors_is_not_lost():
    """The garbage collector's callbacks cannot raise, and jax has one of these."""
    sent = []

    def send(phase, info):
        if not sent:
            sent.append(phase)
            os.kill(os.getpid(), signal.SIGTERM)

    gc.callbacks.append(send)
    try:
        with pytest.raises(InterruptedRunError) as stopped, stoppable():
            gc.collect()
            time.sleep(10)
    finally:
        gc.callbacks.remove(send)
    assert stopped.value.exit_code == 143
