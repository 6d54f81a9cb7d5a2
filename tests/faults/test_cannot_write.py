"""Targets that cannot be written, and disks that are full: exit 6, the path, and nothing left."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from loopjax.cli import main
from tests.audio_files import write_corpus
from tests.faults.crash import left_over

pytestmark = pytest.mark.faults

FULL_DISK = """
import resource, signal, sys
from loopjax.cli import main
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (600, 600))
sys.exit(main(sys.argv[1:]))
"""
VERBS = ("embed", "fit", "score", "explain", "run", "report")


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A corpus, its store, a model and a finished run."""
    folder = tmp_path_factory.mktemp("work")
    write_corpus(folder / "loops", 16, seconds=(0.1, 0.2))
    config = {
        "name": "x",
        "data": {"embeddings": str(folder / "emb")},
        "seeds": [0],
        "detectors": [{"name": "pca", "kind": "pca"}],
        "report": {"audio": "none"},
    }
    (folder / "config.yaml").write_text(json.dumps(config))
    embed = ("--encoder", "log-mel-statistics", "--workers", "1")
    assert main(["embed", str(folder / "loops"), "-o", str(folder / "emb"), *embed]) == 0
    assert main(["fit", str(folder / "emb"), "-o", str(folder / "model"), "--detector", "pca"]) == 0
    assert main(["run", str(folder / "config.yaml"), "-o", str(folder / "run")]) == 0
    return folder


def command(verb: str, work: Path, out: Path) -> list[str]:
    arguments = {
        "embed": ["loops", "--encoder", "log-mel-statistics", "--workers", "1", "-o"],
        "fit": ["emb", "--detector", "pca", "-o"],
        "score": ["model", "emb", "--csv", str(out.with_suffix(".csv")), "-o"],
        "explain": ["model", "loops/loop_00001.wav", "-o"],
        "run": ["config.yaml", "-o"],
        "report": ["run"],
    }[verb]
    places = [str(work / a) if (work / a).exists() else a for a in arguments]
    return [verb, *places, *([] if verb == "report" else [str(out)])]


@pytest.mark.parametrize("verb", VERBS[:-1])
def test_a_file_in_the_way(work, tmp_path, capsys, verb):
    (tmp_path / "file").write_text("mine")
    assert main(command(verb, work, tmp_path / "file" / "out")) == 6
    errors = capsys.readouterr().err
    assert f"cannot write {tmp_path / 'file'}" in errors
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.slow
@pytest.mark.parametrize("verb", VERBS)
def test_a_full_disk(work, tmp_path, verb):
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, *command(verb, work, tmp_path / "out")],
        capture_output=True,
        text=True,
        timeout=120,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(sys.path),
            "JAX_ENABLE_COMPILATION_CACHE": "false",
        },
    )
    assert done.returncode == 6, done.stderr
    assert "Traceback" not in done.stderr
    assert "cannot write" in done.stderr
    assert not left_over(tmp_path)
    assert not left_over(work)
