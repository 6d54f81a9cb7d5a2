"""A store that counts as too large for memory gives what a small one gives, in bounded memory."""

import json
import multiprocessing
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from loopjax.cli import main
from loopjax.config import DetectorConfig, SplitConfig
from loopjax.errors import UserError
from loopjax.experiment import scoring
from loopjax.experiment.fit import fit_models
from loopjax.experiment.load import config_from_dict
from loopjax.experiment.run import evaluate_run, run_experiment
from loopjax.experiment.scoring import most_anomalous, score_store
from loopjax.experiment.splits import split_rows
from loopjax.model import load_model
from loopjax.store import stream
from loopjax.store.parquet import CheckedFile
from loopjax.store.read import read_embeddings
from loopjax.store.scores import read_scores
from loopjax.store.stream import StoredEmbeddings, open_embeddings
from scripts.bench.large_store import write_store

N, WIDTH = 600, 24
TINY = {"epochs": 1, "pretrain_epochs": 1, "hidden_dims": [8]}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("large") / "store"
    write_store(folder, N, WIDTH, shard_rows=128)
    return folder


@pytest.fixture
def large(monkeypatch):
    """Counts every store as too large for memory."""
    monkeypatch.setattr(stream, "RESIDENT_BYTES", 0)
    monkeypatch.setattr("loopjax.experiment.fit.RESIDENT_BYTES", 0)
    monkeypatch.setattr(scoring, "PART_ROWS", 250)


def by_id(table: pa.Table) -> dict[str, dict]:
    return {row["id"]: row for row in table.to_pylist()}


def test_blocks_and_columns_are_those_of_the_whole(store, large):
    stored, whole = open_embeddings(store), read_embeddings(store)
    assert isinstance(stored, StoredEmbeddings) and len(stored) == N
    matrix = np.concatenate(list(stored.read(np.arange(len(stored.sizes)))))
    place = {row_id: i for i, row_id in enumerate(whole.table["id"].to_pylist())}
    order = [place[row_id] for row_id in stored.columns(["id"])["id"].to_pylist()]
    np.testing.assert_array_equal(matrix, whole.matrix[order])
    keep = np.random.default_rng(0).random(N) < 0.3
    some = stored.only(keep).only(np.arange(keep.sum()) % 2 == 0)
    chosen = np.flatnonzero(keep)[::2]
    np.testing.assert_array_equal(some.load().matrix, matrix[chosen])
    assert some.load().table["path"].equals(stored.columns(["path"])["path"].take(chosen))
    assert some.fingerprint() != stored.fingerprint()


def test_large_row_groups_of_other_tools_are_read_piece_by_piece(tmp_path, large, monkeypatch):
    monkeypatch.setattr(stream, "BLOCK_ROWS", 64)
    rows = np.random.default_rng(0).normal(size=(500, 8)).astype(np.float32)
    table = pa.table({"name": ["x"] * 500} | {f"e{i}": rows[:, i] for i in range(8)})
    pq.write_table(table, tmp_path / "a.parquet")
    opened = []
    blocks = CheckedFile.blocks
    monkeypatch.setattr(CheckedFile, "blocks", lambda *args: opened.append(1) or blocks(*args))
    stored = open_embeddings(tmp_path / "a.parquet")
    opened.clear()
    found = list(stored.read(np.arange(len(stored.sizes))))
    assert [len(block) for block in found] == [64] * 7 + [52] and len(opened) == 1
    np.testing.assert_array_equal(np.concatenate(found), rows)
    (again,) = stored.read(np.array([5]))
    np.testing.assert_array_equal(again, rows[320:384])
    assert stored.columns(["id"])["id"][499].as_py() == "row-000499"


def test_a_shard_copied_into_a_large_store_is_found(store, large, tmp_path):
    for part in store.glob("part-*.parquet"):
        (tmp_path / part.name).write_bytes(part.read_bytes())
    (tmp_path / "part-00009.parquet").write_bytes((store / "part-00001.parquet").read_bytes())
    with pytest.raises(UserError, match=r"more than once \(in part-00001.*part-00009.*128 such"):
        open_embeddings(tmp_path)


@pytest.mark.parametrize("kind", ["pca", "knn", "mahalanobis", "mean-cosine", "isolation-forest"])
def test_fit_and_scores_are_those_of_a_small_store(store, tmp_path, monkeypatch, kind):
    def fit_and_score(name: str) -> dict[str, dict]:
        model, out = tmp_path / f"m-{name}", tmp_path / f"{name}.parquet"
        assert main(["fit", str(store), "-o", str(model), "--detector", kind]) == 0
        assert main(["score", str(model), str(store), "-o", str(out)]) == 0
        assert not out.with_name(f"{out.name}.parts").exists()
        return by_id(read_scores(out).table)

    small = fit_and_score("small")
    for name, bound in (("fit.RESIDENT_BYTES", 0), ("scoring.PART_ROWS", 250)):
        monkeypatch.setattr(f"loopjax.experiment.{name}", bound)
    monkeypatch.setattr(stream, "RESIDENT_BYTES", 0)
    large = fit_and_score("large")
    assert small.keys() == large.keys()
    assert list(small[min(small)]) == list(large[min(large)])
    assert {row["scored_as"] for row in large.values()} == {"cross_fitted"}
    if kind == "isolation-forest":  # draws other rows, as these come in another order
        return
    same = [np.isclose(small[i]["score"], large[i]["score"], rtol=1e-3) for i in small]
    assert np.mean(same) > 0.99
    assert sorted(row["rank"] for row in large.values()) == list(range(1, N + 1))


def test_a_sample_is_fitted_and_said(store, large, tmp_path, capsys):
    assert main(["fit", str(store), "-o", str(tmp_path / "m"), "--detector", "pca",
                 "--max-rows", "200"]) == 0  # fmt: skip
    said = capsys.readouterr()
    record = json.loads(said.out)
    assert (record["n_rows"], record["n_train"]) == (N, 200)
    assert "200 of 600 loops" in said.err
    model = load_model(tmp_path / "m")
    assert len(model.training_ids) == 200 and isinstance(model.training_ids, pa.Array)
    assert "training_ids" not in (tmp_path / "m" / "config.json").read_text()
    rows = by_id(model.score(store).table)
    fitted = {i for i, row in rows.items() if row["scored_as"] == "cross_fitted"}
    assert fitted == set(model.training_ids.to_pylist())
    again = split_rows(open_embeddings(store), SplitConfig(max_rows=200))
    other = split_rows(open_embeddings(store), SplitConfig(max_rows=200, seed=1))
    ids = open_embeddings(store).columns(["id"])["id"].filter(pa.array(again.train))
    assert set(ids.to_pylist()) == fitted and (other.train != again.train).any()


@pytest.fixture
def fitted(store, tmp_path):
    embeddings = read_embeddings(store)
    split = split_rows(embeddings, SplitConfig())
    config = DetectorConfig("pca", "pca")
    (model,) = fit_models(embeddings, split.train, config, folds=split.folds)
    model.save(tmp_path / "model")
    return tmp_path / "model"


def test_a_killed_score_goes_on_where_it_was(store, large, fitted, tmp_path, monkeypatch):
    model, out = load_model(fitted), tmp_path / "scores.parquet"
    score_store(model, fitted, open_embeddings(store), tmp_path / "whole.parquet")
    written, score_part = [], scoring._score_part

    def dies_at_the_second(model, stored, part, job):
        if len(written) == 1:
            raise KeyboardInterrupt
        written.append(part.name)
        score_part(model, stored, part, job)

    monkeypatch.setattr(scoring, "_score_part", dies_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        score_store(model, fitted, open_embeddings(store), out)
    assert not out.exists() and (tmp_path / "scores.parquet.parts").exists()
    again = []
    monkeypatch.setattr(
        scoring, "_score_part", lambda *args: again.append(args[2].name) or score_part(*args)
    )
    score_store(model, fitted, open_embeddings(store), out)
    assert written + again == ["part-00000.parquet", "part-00001.parquet", "part-00002.parquet"]
    assert read_scores(out).table.equals(read_scores(tmp_path / "whole.parquet").table)
    again.clear()
    score_store(model, fitted, open_embeddings(store), out)
    assert again == []  # it was finished
    score_store(model, fitted, open_embeddings(store), out, target_fpr=0.1)
    flagged = np.asarray(read_scores(out).table["is_anomaly"])
    assert flagged.mean() == pytest.approx(0.1, abs=0.01)


def test_a_folder_of_scores_has_parts_with_all_columns(store, large, fitted, tmp_path):
    model = load_model(fitted)
    score_store(model, fitted, open_embeddings(store), tmp_path / "scores")
    assert len(list((tmp_path / "scores").glob("part-*.parquet"))) == 3
    found, whole = read_scores(tmp_path / "scores"), model.score(read_embeddings(store))
    assert by_id(found.table).keys() == by_id(whole.table).keys()
    top = most_anomalous(tmp_path / "scores", 5)
    assert top["id"].to_pylist() == whole.table["id"].to_pylist()[:5]
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").touch()
    with pytest.raises(UserError, match="other things"):
        score_store(model, fitted, open_embeddings(store), tmp_path / "other")


def _work(fitted: Path, store: Path, out: Path) -> None:
    stream.RESIDENT_BYTES, scoring.PART_ROWS = 0, 40
    score_store(load_model(fitted), fitted, open_embeddings(store), out)


@pytest.mark.slow
def test_processes_share_the_parts(store, large, fitted, tmp_path):
    out, spawn = tmp_path / "shared.parquet", multiprocessing.get_context("spawn")
    workers = [spawn.Process(target=_work, args=(fitted, store, out)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
        assert worker.exitcode == 0
    assert not out.with_name("shared.parquet.parts").exists()
    assert len(by_id(read_scores(out).table)) == N


@pytest.mark.slow
def test_memory_does_not_grow_with_the_store(tmp_path):
    """Score's peak at four times the rows stays within what ids and scores of a row take."""
    write_store(tmp_path / "store", 60_000, 512)
    code = (
        "import sys, resource\n"
        "from loopjax.cli import main\n"
        "from loopjax.store import stream\n"
        "import loopjax.experiment.fit as fit\n"
        "stream.RESIDENT_BYTES = fit.RESIDENT_BYTES = 8 << 20\n"
        "assert main(sys.argv[1:]) == 0\n"
        "print('peak', resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)\n"
    )

    def peak_mib(*args: object) -> float:
        done = subprocess.run(
            [sys.executable, "-c", code, *map(str, args)],
            capture_output=True,
            text=True,
            check=True,
        )
        return int(done.stdout.split("peak ")[1]) / 1024

    few = tmp_path / "few"
    few.mkdir()
    for part in sorted((tmp_path / "store").glob("part-*.parquet"))[:4]:
        (few / part.name).write_bytes(part.read_bytes())
    peaks = {}
    for store in (few, tmp_path / "store"):
        model = tmp_path / f"m-{store.name}"
        fit = peak_mib("fit", store, "-o", model, "--detector", "pca")
        peaks[store.name] = fit, peak_mib("score", model, store, "-o", tmp_path / "x.parquet")
    # The larger store holds 90 MiB more of embeddings.
    for few_mib, many_mib in zip(peaks["few"], peaks["store"], strict=True):
        assert many_mib - few_mib < 60


def test_a_run_on_a_large_store_is_that_on_a_small_one(store, tmp_path, monkeypatch):
    """Fit, score, evaluate and report; only the shuffling of rows may differ."""
    (tmp_path / "labels.csv").write_text(
        "\n".join(["file,is_anomaly", *(f"loop {i:08d}.wav,{i % 9 == 0:d}" for i in range(N))])
    )
    config = config_from_dict(
        {
            "name": "large",
            "data": {
                "embeddings": str(store),
                "labels": str(tmp_path / "labels.csv"),
                "group_depth": 1,
            },
            "detectors": [
                {"name": "pca", "kind": "pca"},
                {"name": "head", "kind": "deep-svdd", "params": TINY},
            ],
            "evaluate": {"bootstrap": 20},
        },
        "here",
    )

    def run(name: str) -> tuple[dict[str, dict], dict]:
        run_experiment(config, tmp_path / name, log=lambda line: None)
        told = json.loads((tmp_path / name / "evaluation.json").read_text())
        return by_id(read_scores(tmp_path / name / "scores.parquet").table), told

    small, small_told = run("small")
    monkeypatch.setattr(stream, "RESIDENT_BYTES", 0)
    monkeypatch.setattr("loopjax.experiment.figures.MAX_DRAWN", 200)
    refuse = "loopjax.store.stream.read_embeddings"
    monkeypatch.setattr(refuse, lambda path: pytest.fail("it was read whole"))
    large, large_told = run("large")
    evaluate_run(tmp_path / "large", lambda line: None)
    again = json.loads((tmp_path / "large" / "evaluation.json").read_text())
    assert again == large_told
    assert small.keys() == large.keys()
    for row_id, row in small.items():
        other = large[row_id]
        assert row.keys() == other.keys() and other["group"] == row["group"] == "pack 00000"
        assert row["score_pca"] == pytest.approx(other["score_pca"], rel=1e-3)
        assert row["is_labeled"] == other["is_labeled"]
    (small_row, *_), (large_row, *_) = (t["tables"][0]["rows"] for t in (small_told, large_told))
    assert large_row["auroc"] == pytest.approx(small_row["auroc"], abs=1e-3)
    page = (tmp_path / "large" / "report" / "index.html").read_text()
    assert "nearest" in page and "left out" not in page
    assert page.count('"near":') == (tmp_path / "small/report/index.html").read_text().count(
        '"near":'
    )
