"""Every verb that writes, killed at each of its changes of the file system, then run again."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from loopjax.cli import main
from loopjax.io import write_folder, write_json
from loopjax.store.read import read_embeddings
from loopjax.store.scores import read_scores
from tests.audio_files import write_corpus
from tests.faults.crash import Crash, dying, left_over

pytestmark = [
    pytest.mark.faults,
    pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc"),
]
EVERY = 7  # the short form crashes at each seventh change
SPREAD = 3  # of the number of changes: Orbax makes a file more or less of a model's arrays


def run(*args: object) -> int:
    return main([str(arg) for arg in args])


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Sixteen loops and one broken file."""
    folder = tmp_path_factory.mktemp("crashes") / "loops"
    write_corpus(folder, 16, seconds=(0.1, 0.2))
    (folder / "broken.wav").write_bytes(b"")
    return folder


@pytest.fixture(scope="module")
def store(corpus, tmp_path_factory):
    out = tmp_path_factory.mktemp("crashes") / "emb"
    assert embed(corpus, out) == 3
    return out


def embed(corpus: Path, out: Path) -> int:
    options = ("--encoder", "log-mel-statistics", "--workers", "1", "--shard-rows", "6")
    return run("embed", corpus, "-o", out, *options)


def sweep_crashes(
    tmp_path: Path, act: Callable[[Path], int], content: Callable[[Path], object], step: int
) -> int:
    """Crashes a verb at each step-th change; returns the number of changes of a whole run."""
    with dying(tmp_path / "whole") as point:
        assert act(tmp_path / "whole") in (0, 3)
    expected = content(tmp_path / "whole")
    assert not left_over(tmp_path)
    for at in range(0, point.n_events, step):
        folder = tmp_path / f"crash-{at}"
        try:
            with dying(folder, at):
                act(folder)
        except Crash:
            pass
        else:
            assert at >= point.n_events - SPREAD, f"no change number {at}"
            break
        assert act(folder) in (0, 3), f"change {at}"
        assert content(folder) == expected, f"change {at}"
        assert not left_over(tmp_path), f"change {at}"
    return point.n_events


def rows_of(store: Path) -> object:
    embeddings = read_embeddings(store)
    rows = embeddings.table.to_pylist(), embeddings.failures.to_pylist()
    return rows, embeddings.matrix.tobytes()


@pytest.mark.parametrize("step", [EVERY, pytest.param(1, marks=pytest.mark.slow)])
def test_embed(corpus, tmp_path, step):
    def act(out: Path) -> int:
        return embed(corpus, out / "emb")

    assert sweep_crashes(tmp_path, act, lambda out: rows_of(out / "emb"), step) > 20


@pytest.mark.parametrize("step", [EVERY, pytest.param(1, marks=pytest.mark.slow)])
def test_fit_over_an_older_model_and_score(store, tmp_path, step):
    def act(out: Path) -> int:
        fit = run("fit", store, "-o", out / "model", "--detector", "pca")
        again = run("fit", store, "-o", out / "model", "--detector", "mahalanobis")
        score = ("-o", out / "scores.parquet", "--csv", out / "scores.csv")
        return fit or again or run("score", out / "model", store, *score)

    def content(out: Path) -> object:
        table = read_scores(out / "scores.parquet").table
        return table.to_pylist(), (out / "scores.csv").read_text()

    assert sweep_crashes(tmp_path, act, content, step) > 15


@pytest.mark.parametrize("step", [3 * EVERY, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.timeout(1800)
def test_run_evaluate_and_report(store, tmp_path, step):
    config = tmp_path / "config.yaml"
    config.write_text(
        f"name: crashes\ndata: {{embeddings: {store}}}\nseeds: [0]\n"
        "detectors:\n  - {name: pca, kind: pca}\n  - {name: cosine, kind: mean-cosine}\n"
        "evaluate: {bootstrap: 20}\nreport: {audio: none}\n"
    )

    def act(out: Path) -> int:
        first = run("run", config, "-o", out)
        return first or run("evaluate", out) or run("report", out)

    def content(out: Path) -> object:
        page = (out / "report" / "index.html").read_text()
        tables = (out / "evaluation.json").read_text(), (out / "scores.csv").read_text()
        figures = {file.name: file.read_text() for file in (out / "figures").rglob("*.svg")}
        return read_scores(out / "scores.parquet").table.to_pylist(), tables, figures, len(page)

    assert sweep_crashes(tmp_path, act, content, step) > 30


@pytest.mark.parametrize("step", [1])
def test_the_functions_that_everything_is_written_with(tmp_path, step):
    def act(out: Path) -> int:
        for number in range(2):
            write_json(out / "inner" / "a.json", {"a": number})
            write_folder(out / "model", lambda folder, n=number: _two_files(folder, n))
        return 0

    def content(out: Path) -> object:
        return {p.name: p.read_text() for p in out.rglob("*") if p.is_file()}

    assert sweep_crashes(tmp_path, act, content, step) > 20


def _two_files(folder: Path, number: int) -> None:
    (folder / "inner").mkdir()
    for name in ("a", "b"):
        (folder / "inner" / name).write_text(str(np.arange(number, 50)))
