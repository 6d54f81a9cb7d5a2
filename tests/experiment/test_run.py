"""A whole run from one config: repeatable, resumable, refusing to mix."""

import json
import os
import shutil
import signal
import time

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile

from loopjax.errors import InterruptedRunError, UserError
from loopjax.evaluation.tables import Evaluation, Table
from loopjax.experiment import evaluate
from loopjax.experiment import run as experiment
from loopjax.experiment.load import load_config
from loopjax.experiment.run import run_experiment
from loopjax.io import locked
from loopjax.model import Model, load_model
from loopjax.training.sinks import JsonLines

CONFIG = """
name: small
data:
  sources: [{loops}]
  labels: {labels}
embed: {{encoder: untrained-nano, workers: 1}}
split: {{train_on: normal}}
detectors:
  - name: residual
    kind: deep-svdd
    params: {{network: residual, hidden_dims: [16, 8], pretrain_epochs: 3, epochs: 3}}
  - {{name: knn, kind: knn, params: {{n_neighbors: 2}}}}
primary: knn
seeds: [0, 1]
evaluate: {{bootstrap: 50}}
"""


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Twenty alike tones in two folders, two bursts of noise labeled as anomalies."""
    folder = tmp_path_factory.mktemp("corpus")
    rng = np.random.default_rng(0)
    time_s = np.arange(12000) / 16000
    rows = ["file,is_anomaly"]
    for i in range(20):
        place = folder / ("low" if i % 2 else "high")
        place.mkdir(exist_ok=True)
        tone = 0.3 * np.sin(2 * np.pi * (110 + 2 * i) * time_s) * np.exp(-3 * time_s)
        soundfile.write(place / f"tone_{i:02d}.wav", tone.astype(np.float32), 16000)
        rows.append(f"tone_{i:02d}.wav,0")
    for i in range(2):
        soundfile.write(folder / "low" / f"noise_{i}.wav", rng.uniform(-0.8, 0.8, 12000), 16000)
        rows.append(f"noise_{i}.wav,1")
    labels = folder / "labels.csv"
    labels.write_text("\n".join(rows) + "\n")
    config = folder / "config.yaml"
    config.write_text(CONFIG.format(loops=folder, labels=labels))
    return config


@pytest.fixture(scope="module")
def finished(corpus, tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "r1"
    lines: list[str] = []
    result = run_experiment(load_config(corpus), out, log=lines.append)
    return out, result, lines


def test_run_leaves_everything(finished):
    out, _, _ = finished
    for name in ("run.json", "scores.parquet", "scores.csv", "evaluation.json", "metrics.jsonl"):
        assert (out / name).stat().st_size > 0, name
    assert "noise_" in (out / "report" / "index.html").read_text(encoding="utf-8")
    assert list((out / "figures").glob("*.svg"))
    record = json.loads((out / "run.json").read_text())
    assert record["config"]["name"] == "small"
    assert "jax" in record["versions"]


def test_the_anomalous_loops_rank_first_and_are_found(finished):
    _, result, _ = finished
    top = result.scores.table.slice(0, 2)["path"].to_pylist()
    assert all("noise_" in path for path in top)
    detectors = {row["detector"]: row for row in result.evaluation.tables[0].rows}
    assert detectors["knn"]["auroc"].value == 1.0
    assert detectors["residual"]["seeds"] == 2


def test_a_finished_run_repeats_nothing_and_another_folder_gives_the_same(
    finished, corpus, tmp_path
):
    out, _, first_log = finished
    before = pq.read_table(out / "scores.parquet")
    lines: list[str] = []
    run_experiment(load_config(corpus), out, log=lines.append)
    assert any("fitting" in line for line in first_log)
    assert not any("fitting" in line for line in lines)
    assert pq.read_table(out / "scores.parquet").equals(before)
    run_experiment(load_config(corpus), tmp_path / "r2", log=lines.append)
    assert pq.read_table(tmp_path / "r2" / "scores.parquet").equals(before)


def test_a_damaged_model_is_fitted_again(finished, corpus, tmp_path):
    out, _, _ = finished
    shutil.copytree(out, tmp_path / "copy")
    before = pq.read_table(out / "scores.parquet")
    file = tmp_path / "copy" / "models" / "knn" / "seed-0" / "config.json"
    file.write_bytes(file.read_bytes()[:100])
    lines: list[str] = []
    run_experiment(load_config(corpus), tmp_path / "copy", log=lines.append)
    assert any("warning" in line and "seed-0" in line for line in lines)
    assert [line[:19] for line in lines if line.startswith("fitting")] == ["fitting knn (seed 0"]
    assert pq.read_table(tmp_path / "copy" / "scores.parquet").equals(before)


@pytest.mark.parametrize("cut", ["in the curve", "between the models"])
def test_a_killed_training_leaves_every_epoch_once(finished, corpus, tmp_path, monkeypatch, cut):
    whole = (finished[0] / "metrics.jsonl").read_bytes()
    with monkeypatch.context() as patched:
        n_lines, write, save = 0, JsonLines.write, Model.save

        def stop_at_the_fourth_line(sink, epoch):
            nonlocal n_lines
            n_lines += 1
            if n_lines == 4:
                raise KeyboardInterrupt
            write(sink, epoch)

        def stop_at_the_second_model(model, folder):
            if folder.name == "seed-1":
                raise KeyboardInterrupt
            save(model, folder)

        if cut == "in the curve":
            patched.setattr(JsonLines, "write", stop_at_the_fourth_line)
        else:
            patched.setattr(Model, "save", stop_at_the_second_model)
        with pytest.raises(KeyboardInterrupt):
            run_experiment(load_config(corpus), tmp_path / "r", log=lambda line: None)
    assert whole.startswith((tmp_path / "r" / "metrics.jsonl").read_bytes())
    run_experiment(load_config(corpus), tmp_path / "r", log=lambda line: None)
    assert (tmp_path / "r" / "metrics.jsonl").read_bytes() == whole
    for name in ("scores.csv", "evaluation.json"):
        assert (tmp_path / "r" / name).read_bytes() == (finished[0] / name).read_bytes()
    shutil.rmtree(tmp_path / "r" / "models" / "knn")  # what is loaded keeps its lines
    run_experiment(load_config(corpus), tmp_path / "r", log=lambda line: None)
    assert (tmp_path / "r" / "metrics.jsonl").read_bytes() == whole


def test_evaluating_a_run_again_gives_the_same_tables(finished, tmp_path, monkeypatch):
    out, result, _ = finished
    lines: list[str] = []
    again = experiment.evaluate_run(out, lines.append)
    assert again == result.evaluation
    assert not any("fitting" in line for line in lines)
    shutil.copytree(out, tmp_path / "copy")
    record = json.loads((out / "run.json").read_text())
    record["config"]["evaluate"]["robustness"] = "quick"
    (tmp_path / "copy" / "run.json").write_text(json.dumps(record))
    curves = Table("Robustness by severity", "", ())
    monkeypatch.setattr(evaluate, "_robustness", lambda *args: (curves,))
    tables = experiment.evaluate_run(tmp_path / "copy", lines.append).tables
    assert tables == (curves, *again.tables)
    written = json.loads((tmp_path / "copy" / "evaluation.json").read_text())
    assert Evaluation.from_json(written, "written").tables == tables


def changed(finished, corpus, tmp_path, *overrides):
    """A copy of the run, continued with other settings: what it logs, and the folder."""
    shutil.copytree(finished[0], tmp_path / "copy")
    lines: list[str] = []
    run_experiment(load_config(corpus, overrides), tmp_path / "copy", log=lines.append)
    return [
        line.split(" on ")[0] for line in lines if line.startswith("fitting")
    ], tmp_path / "copy"


def same_as_anew(folder, corpus, tmp_path, *overrides):
    run_experiment(load_config(corpus, overrides), tmp_path / "anew", log=lambda line: None)
    for name in ("scores.csv", "evaluation.json"):
        assert (folder / name).read_bytes() == (tmp_path / "anew" / name).read_bytes(), name


@pytest.mark.parametrize(
    ("overrides", "fitted"),
    [
        (["detectors.knn.params.n_neighbors=3"], ["fitting knn (seed 0)"]),
        (["evaluate.quantile=0.8"], []),
        (["seeds=[0,1,2]"], ["fitting residual (seed 2)"]),
        (["primary=residual"], []),
        (["split.seed=5"], ["fitting residual (seed 0, 1)", "fitting knn (seed 0)"]),
    ],
)
def test_a_changed_setting_fits_what_depends_on_it_and_nothing_else(
    finished, corpus, tmp_path, overrides, fitted
):
    stores = [p.stat().st_mtime_ns for p in (finished[0] / "embeddings").glob("part-*")]
    done, folder = changed(finished, corpus, tmp_path, *overrides)
    assert done == fitted
    assert [p.stat().st_mtime_ns for p in (folder / "embeddings").glob("part-*")] == stores
    key, _, value = overrides[0].partition("=")
    record = json.loads((folder / "run.json").read_text())["config"]
    if key == "split.seed":
        assert record["split"]["seed"] == int(value)
    # Heads that train beside others, or after them, agree to rounding alone.
    if "residual (seed 2)" not in "".join(fitted):
        same_as_anew(folder, corpus, tmp_path, *overrides)


def test_an_added_detector_costs_its_own_fit_and_a_removed_one_leaves_no_results(
    finished, corpus, tmp_path
):
    one = "{name: pca, kind: pca}"
    done, folder = changed(
        finished, corpus, tmp_path, f"detectors=[{one}]", "primary=pca", "report.top=3"
    )
    assert done == ["fitting pca (seed 0)"]
    assert [c for c in pq.read_schema(folder / "scores.parquet").names if "score_" in c] == [
        "score_pca"
    ]
    assert load_model(folder).name == "pca"
    lines: list[str] = []
    run_experiment(load_config(corpus), folder, log=lines.append)  # back again
    assert not any(line.startswith("fitting") for line in lines)
    assert pq.read_table(folder / "scores.parquet").equals(
        pq.read_table(finished[0] / "scores.parquet")
    )


def test_other_loops_or_another_encoder_refuse_to_mix(finished, corpus):
    for override, message in (
        ("embed.encoder=log-mel-statistics", r"embed.encoder: was untrained-nano, now log-mel"),
        ("embed.min_duration_s=0.5", r"embed.min_duration_s: was 0.0, now 0.5"),
        ("data.sources=[elsewhere]", r"data.sources: was \["),
    ):
        overrides = [override, *["data.labels=null", "split.train_on=all"] * ("data." in override)]
        with pytest.raises(UserError, match=message + r".*--restart"):
            run_experiment(load_config(corpus, overrides), finished[0], log=print)
    config = load_config(corpus, ["embed.workers=2"])  # changes no number
    run_experiment(config, finished[0], log=lambda line: None)


def test_results_of_other_settings_are_gone_before_the_new_ones_are_there(
    finished, corpus, tmp_path, monkeypatch
):
    def stopped(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(experiment, "fit_all", stopped)
    with pytest.raises(KeyboardInterrupt):
        changed(finished, corpus, tmp_path, "split.seed=5")
    left = {p.name for p in (tmp_path / "copy").iterdir()}
    assert {"embeddings", "models", "metrics.jsonl", "run.json"} <= left
    assert not {"scores.parquet", "scores.csv", "evaluation.json"} & left
    assert not (tmp_path / "copy" / "report" / "index.html").exists()


def test_a_report_drawn_differently_is_no_other_experiment(finished, corpus):
    out, _, _ = finished
    run_experiment(load_config(corpus, ["report.top=3"]), out, log=lambda line: None)


def test_a_restart_keeps_what_is_not_its_own(finished, corpus, tmp_path):
    shutil.copytree(finished[0], tmp_path / "r")
    (tmp_path / "r" / "figures" / "thesis.svg").write_text("years of work")
    with pytest.raises(UserError, match=r"1 files that no run has written \(figures/thesis.svg\)"):
        run_experiment(load_config(corpus), tmp_path / "r", restart=True, log=print)
    assert (tmp_path / "r" / "scores.parquet").exists()
    (tmp_path / "r" / "figures" / "thesis.svg").unlink()
    lines: list[str] = []
    run_experiment(
        load_config(corpus, ["split.seed=5"]), tmp_path / "r", restart=True, log=lines.append
    )
    assert any("fitting" in line for line in lines)
    listed = (tmp_path / "r" / "files.txt").read_text().splitlines()
    found = [p.relative_to(tmp_path / "r") for p in (tmp_path / "r").rglob("*") if p.is_file()]
    own = {p.as_posix() for p in found} - {"run.json", "files.txt", ".loopjax.lock"}
    assert own == set(listed)


def test_a_run_folder_has_one_writer(finished, corpus):
    with locked(finished[0]):
        for again in (
            lambda: run_experiment(load_config(corpus), finished[0], log=print),
            lambda: experiment.evaluate_run(finished[0], print),
            lambda: experiment.report_run(finished[0]),
        ):
            with pytest.raises(UserError, match="being written by another run"):
                again()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_keeps_what_is_finished_and_the_next_is_harmless(
    corpus, tmp_path, monkeypatch, number, code
):
    def stopped(*args):
        try:
            os.kill(os.getpid(), number)
            time.sleep(10)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)

    before = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}
    monkeypatch.setattr(experiment, "evaluate_fitted", stopped)
    with pytest.raises(InterruptedRunError, match="what was finished is saved") as caught:
        run_experiment(load_config(corpus), tmp_path / "r", log=print)
    assert caught.value.exit_code == code
    assert {n: signal.getsignal(n) for n in before} == before
    assert (tmp_path / "r" / "scores.parquet").exists()
    assert not list((tmp_path / "r").rglob("*.tmp"))
    monkeypatch.undo()
    lines: list[str] = []
    run_experiment(load_config(corpus), tmp_path / "r", log=lines.append)
    assert not any("fitting" in line for line in lines)


def test_a_folder_of_other_things_is_left_alone(corpus, tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="no run folder"):
        run_experiment(load_config(corpus), tmp_path, restart=True, log=print)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("detectors.knn.params.n_neighbrs=3", "did you mean 'n_neighbors'"),
        ("detectors=[]", "lists no detectors"),
        ("data.labels=/nonexistent.csv", "/nonexistent.csv"),
        ("data.sources=[]", "data.sources is empty"),
        ("split.train_fraction=0.01", "left for training"),
    ],
)
def test_mistakes_are_found_before_anything_is_trained(corpus, tmp_path, override, message):
    overrides = [override, "primary=''"]
    with pytest.raises(UserError) as caught:
        run_experiment(load_config(corpus, overrides), tmp_path / "r", log=lambda line: None)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("other.wav,1", "none of the 22 loops is labeled"),
        ("noise_0.wav,2", "labels.csv:2: is_anomaly is '2'"),
    ],
)
def test_wrong_labels_are_refused_before_anything_is_written(corpus, tmp_path, rows, message):
    labels = tmp_path / "labels.csv"
    labels.write_text(f"file,is_anomaly\n{rows}\n")
    with pytest.raises(UserError, match=message):
        run_experiment(
            load_config(corpus, [f"data.labels={labels}"]), tmp_path / "r", log=lambda line: None
        )
    assert not (tmp_path / "r").exists()


def test_labels_of_equal_names_in_two_folders_are_kept_apart_and_groups_too(tmp_path):
    rng = np.random.default_rng(0)
    time_s = np.arange(8000) / 16000
    rows = ["file,is_anomaly", "gone/loop.wav,1"]
    for i in range(24):
        place = tmp_path / "corpus" / ("A" if i < 12 else "B") / ("Bass" if i % 12 else "Lead")
        place.mkdir(parents=True, exist_ok=True)
        tone = 0.3 * np.sin(2 * np.pi * (110 + i % 12) * time_s)
        sound = tone if i < 12 else rng.uniform(-0.8, 0.8, 8000)
        soundfile.write(place / f"loop_{i % 12:02d}.wav", sound, 16000)
        rows.append(f"corpus/{place.parent.name}/{place.name}/loop_{i % 12:02d}.wav,{int(i > 11)}")
    (tmp_path / "labels.csv").write_text("\n".join(rows) + "\n")
    (tmp_path / "config.yaml").write_text(
        "name: x\nembed: {encoder: untrained-nano, workers: 1}\nsplit: {train_on: normal}\n"
        "evaluate: {bootstrap: 10}\ndetectors: [{name: knn, kind: knn, params: {n_neighbors: 1}}]\n"
        f"data: {{sources: [{tmp_path / 'corpus'}], labels: {tmp_path / 'labels.csv'}}}\n"
    )
    lines: list[str] = []
    result = run_experiment(load_config(tmp_path / "config.yaml"), tmp_path / "r", log=lines.append)
    assert result.evaluation.headline["AUROC"] == 1.0
    groups = set(result.scores.table["group"].to_pylist())
    assert groups == {"A/Bass", "A/Lead", "B/Bass", "B/Lead"}
    assert sum("1 of 25 label rows match no loop: gone/loop.wav" in line for line in lines) == 1
    config = load_config(tmp_path / "config.yaml", ["data.group_depth=1", "report.top=3"])
    shallow = run_experiment(config, tmp_path / "r", restart=True, log=lines.append)
    assert set(shallow.scores.table["group"].to_pylist()) == {"A", "B"}
