"""A restart deletes what loopjax wrote into a run folder, and nothing else."""

import os

import pytest

from loopjax.errors import UserError
from loopjax.experiment.manifest import discard, step

STEPS = {
    "embed": ["embeddings/part-00000.parquet", "embeddings/.loopjax.lock"],
    "fit": ["models/a [1]/seed-0/model.json", "models/a [1]/seed-0/w/d/0", "metrics.jsonl"],
    "evaluate": ["evaluation.json", "figures/scores.svg", "protocols-ff.jsonl"],
    "report": ["report/index.html"],
}


def write(folder, name):
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(name)


def names(folder):
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if not p.is_dir())


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "run"
    write(folder, "run.json")
    write(folder, ".loopjax.lock")
    for name, files in STEPS.items():
        with step(folder, name):
            for file in files:
                write(folder, file)
    return folder


def test_everything_of_a_run_goes_and_the_lock_stays(run):
    discard(run)
    assert names(run) == [".loopjax.lock"]
    assert list(run.iterdir()) == [run / ".loopjax.lock"]


@pytest.mark.parametrize(
    "name",
    [
        *("thesis.txt", "figures/mine.svg", "figures/mine.png", "models/notes.txt"),
        *("protocols-x.jsonl", "embeddings/loop.wav", "report/index.html.bak"),
        "models/a [1]/seed-0/mine.txt",
    ],
)
def test_a_foreign_file_stops_it_before_anything_is_deleted(run, name):
    write(run, name)
    before = names(run)
    with pytest.raises(UserError, match="1 files that no run has written") as caught:
        discard(run)
    assert name in str(caught.value)
    assert names(run) == before


def test_links_are_neither_followed_nor_deleted(run, tmp_path):
    write(tmp_path / "outside", "figures/scores.svg")
    os.symlink(tmp_path / "outside", run / "figures" / "link")  # noqa: PTH211
    with pytest.raises(UserError, match="figures/link"):
        discard(run)
    assert names(tmp_path / "outside") == ["figures/scores.svg"]


def test_a_step_that_was_killed_may_have_left_its_files(run):
    with pytest.raises(KeyboardInterrupt), step(run, "evaluate"):
        write(run, "figures/another.svg")
        raise KeyboardInterrupt
    discard(run)
    assert names(run) == [".loopjax.lock"]


def test_a_step_again_keeps_its_list(run):
    with step(run, "evaluate"):
        write(run, "figures/more.svg")
    assert "figures/more.svg" in (run / "files.txt").read_text()
    discard(run)
    assert names(run) == [".loopjax.lock"]


def test_runs_from_before_the_list_can_be_discarded(run):
    (run / "files.txt").unlink()
    discard(run)
    assert names(run) == [".loopjax.lock"]
    write(run, "run.json")
    write(run, "thesis.txt")
    with pytest.raises(UserError, match=r"thesis\.txt"):
        discard(run)
