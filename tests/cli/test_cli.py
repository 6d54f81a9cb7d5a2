"""The command line as a user meets it: help, exit codes, and the main job on real audio."""

import argparse
import csv
import json
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
import yaml

import loopjax
from loopjax import __version__
from loopjax.cli import VERBS, main
from loopjax.cli.options import add_settings, given_settings
from loopjax.config import EmbedConfig
from loopjax.store.read import read_embeddings
from loopjax.training import sinks

ENCODER = "untrained-nano"
DEMO = str(Path(__file__).parents[2] / "configs" / "demo.yaml")


def run(*args) -> int:
    return main([str(a) for a in args])


@pytest.fixture(scope="module")
def loops(tmp_path_factory):
    """Twelve short loops: eleven alike, one of noise."""
    folder = tmp_path_factory.mktemp("loops")
    rng = np.random.default_rng(0)
    time_s = np.arange(16000) / 16000
    for i in range(11):
        tone = 0.3 * np.sin(2 * np.pi * (110 + i) * time_s) * np.exp(-3 * time_s)
        soundfile.write(folder / f"tone_{i:02d}.wav", tone.astype(np.float32), 16000)
    soundfile.write(folder / "noise.wav", rng.uniform(-0.8, 0.8, 16000), 16000)
    return folder


@pytest.fixture(scope="module")
def store(loops, tmp_path_factory):
    out = tmp_path_factory.mktemp("store") / "emb"
    assert run("embed", loops, "-o", out, "--encoder", ENCODER, "--workers", "1") == 0
    return out


@pytest.fixture(scope="module")
def model(store, tmp_path_factory):
    out = tmp_path_factory.mktemp("model") / "knn"
    assert run("fit", store, "-o", out, "--detector", "knn", "--set", "params.n_neighbors=2") == 0
    return out


def test_fit_model_is_what_fit_does(store, model):
    fitted = loopjax.fit_model(store, "knn", n_neighbors=2)
    saved = loopjax.load_model(model)
    assert fitted.embeddings_path == saved.embeddings_path == str(store)
    assert fitted.score(store).table.equals(saved.score(store).table)
    same = loopjax.fit_model(read_embeddings(store), "knn", n_neighbors=2)
    assert same.score(store).table.equals(saved.score(store).table)
    with pytest.raises(loopjax.UserError, match=r"no such parameter.*did you mean 'n_neighbors'"):
        loopjax.fit_model(store, "knn", n_neighbrs=2)


def test_several_seeds_train_together_as_each_would_alone(store, tmp_path, capsys):
    small = (
        "--detector",
        "deep-svdd",
        "--set",
        "params.hidden_dims=[8,4]",
        "--set",
        "params.epochs=2",
    )
    small += ("--set", "params.pretrain_epochs=0", "--set", "params.bn_warmup_passes=0")
    assert run("fit", store, "-o", tmp_path / "both", "--seeds", "0..1", *small) == 0
    assert run("fit", store, "-o", tmp_path / "alone", "--seeds", "1..1", *small) == 0
    first, second, alone = map(json.loads, capsys.readouterr().out.splitlines()[-3:])
    assert [row["model"] for row in (first, second)] == [
        str(tmp_path / "both" / f"seed-{seed}") for seed in (0, 1)
    ]
    assert first["threshold"] != second["threshold"]
    assert alone["threshold"] == pytest.approx(second["threshold"], rel=1e-5)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_with_an_example(verb, capsys):
    with pytest.raises(SystemExit) as stop:
        run(verb, "--help")
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert f"loopjax {verb}" in text.split("example:")[1]


@pytest.mark.parametrize("verb", VERBS.values(), ids=lambda verb: verb.name)
def test_every_option_has_help(verb):
    parser = argparse.ArgumentParser()
    verb.add_options(parser)
    assert [a.dest for a in parser._actions if not a.help] == []


def test_comma_separated_patterns_are_taken_as_written():
    parser = argparse.ArgumentParser()
    add_settings(parser, EmbedConfig)
    args = parser.parse_args(["--include", "*kick*, Bass/*", "--min-duration", "0.2"])
    config = given_settings(args, EmbedConfig())
    assert (config.include, config.min_duration_s) == (("*kick*", "Bass/*"), 0.2)


def test_options_may_stand_between_the_sources(loops, tmp_path):
    with pytest.raises(SystemExit) as stop:
        run("embed", loops, "-o", tmp_path, loops / "noise.wav", "--crop", "x", "--nonsense")
    assert stop.value.code == 2
    code = run("embed", loops, "-o", tmp_path / "e", "--crops", "seeded", loops / "noise.wav")
    assert code == 2
    assert not (tmp_path / "e").exists()


def test_recipes_run_by_name_on_ones_own_loops(loops, tmp_path, capsys):
    assert run("run", "--list") == 0
    assert "baselines            The cheap methods alone" in capsys.readouterr().out
    small = ("--set", "embed.encoder=untrained-nano", "--set", "evaluate.bootstrap=10")
    one = ("--set", "detectors=[{name: k, kind: knn, params: {n_neighbors: 2}}]")
    one += ("--set", "primary=k", "--set", "embed.workers=1")
    assert run("run", "baselines", "-o", tmp_path / "r", loops, *small, *one) == 0
    assert "noise.wav" in capsys.readouterr().out
    record = json.loads((tmp_path / "r" / "run.json").read_text())
    assert record["config"]["data"]["sources"] == [str(loops)]
    assert run("run", "bass392", loops, "-o", tmp_path / "b") == 2
    assert "takes no audio" in capsys.readouterr().err


def test_a_run_folder_scores_new_loops_by_its_first_choice(loops, tmp_path, capsys):
    small = ("--set", "embed.encoder=untrained-nano", "--set", "evaluate.bootstrap=10")
    both = "[{name: k, kind: knn, params: {n_neighbors: 2}}, {name: p, kind: pca}]"
    one = ("--set", f"detectors={both}", "--set", "primary=p", "--set", "embed.workers=1")
    out = tmp_path / "r"
    assert run("run", "baselines", "-o", out, loops, *small, *one) == 0
    assert run("score", out, loops / "noise.wav", "-o", tmp_path / "x.csv") == 0
    assert run("score", out / "models/p/seed-0", loops / "noise.wav", "-o", tmp_path / "y.csv") == 0
    assert (tmp_path / "x.csv").read_bytes() == (tmp_path / "y.csv").read_bytes()
    assert run("score", out, out, "-o", tmp_path / "all.csv") == 0  # the run's own store
    with (tmp_path / "all.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 12
    assert set(rows[0]) == set(pq.read_schema(out / "scores.parquet").names) - {
        *("score_k", "score_p"),
    }
    assert run("score", out, out, "-o", tmp_path / "z.csv", "--csv", tmp_path / "z2.csv") == 2
    assert "is CSV already" in capsys.readouterr().err
    shutil.rmtree(out / "models")
    assert run("score", out, loops / "noise.wav") == 2
    assert "is a run without models" in capsys.readouterr().err


def test_fit_says_where_it_is_without_a_terminal_and_keeps_the_curves(
    store, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(sinks, "LINE_EVERY_S", 0.0)
    small = ("--set", "params.hidden_dims=[8,4]", "--set", "params.epochs=2")
    small += ("--set", "params.pretrain_epochs=1", "--set", "params.bn_warmup_passes=0")
    for _ in range(2):  # the second replaces what the first has left
        assert run("fit", store, "-o", tmp_path / "m", "--network", "residual", *small) == 0
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "fitting residual on 12 loops"
    assert said[1].startswith("residual: pretrain epoch 0  train_loss ")
    rows = [json.loads(x) for x in (tmp_path / "m.log" / "metrics.jsonl").read_text().splitlines()]
    assert [(row["stage"], row["epoch"]) for row in rows] == [
        ("pretrain", 0), ("one-class", 0), ("one-class", 1),
    ]  # fmt: skip
    assert all(row["detector"] == "residual" and row["train_loss"] > 0 for row in rows)
    assert run("fit", store, "-o", tmp_path / "k", "--detector", "knn", "--log", "wandbb") == 2
    assert "no logger 'wandbb'; there are tensorboard, wandb" in capsys.readouterr().err


def test_config_prints_the_resolved_file_and_the_schema(tmp_path, capsys):
    assert run("config", "show", "demo", "--set", "split.seed=4") == 0
    text = capsys.readouterr().out
    assert yaml.safe_load(text)["split"]["seed"] == 4
    (tmp_path / "again.yaml").write_text(text)
    assert run("config", "show", tmp_path / "again.yaml") == 0
    assert capsys.readouterr().out == text
    assert run("config", "schema") == 0
    assert json.loads(capsys.readouterr().out)["required"] == ["name"]
    assert run("config", "show") == 2


def test_evaluate_says_how_a_file_is_run(capsys):
    with pytest.raises(SystemExit) as stop:
        run("evaluate", DEMO, "-o", "x", "--quick")
    assert stop.value.code == 2
    assert f"run it with `loopjax run {DEMO}`" in capsys.readouterr().err


def test_version(capsys):
    with pytest.raises(SystemExit):
        run("--version")
    assert capsys.readouterr().out.strip() == f"loopjax {__version__}"


def test_unknown_verb_is_a_usage_error():
    with pytest.raises(SystemExit) as stop:
        run("embedd")
    assert stop.value.code == 2


def test_embed_prints_a_summary_and_writes_every_row(store):
    rows = sum(pq.read_metadata(part).num_rows for part in store.glob("part-*.parquet"))
    assert rows == 12


def test_score_a_store_and_a_file_agree(model, store, loops, tmp_path, capsys):
    out = tmp_path / "scores.parquet"
    assert run("score", model, store, "-o", out, "--csv", tmp_path / "scores.csv") == 0
    table = pq.read_table(out)
    assert {"id", "path", "score", "percentile", "p_value", "is_anomaly", "rank"} <= set(
        table.column_names
    )
    top = table.slice(0, 1).to_pylist()[0]
    assert top["path"].endswith("noise.wav")
    assert top["rank"] == 1
    assert (tmp_path / "scores.csv").read_text().count("\n") == 13
    assert "noise.wav" in capsys.readouterr().out
    direct = tmp_path / "direct.parquet"
    assert run("score", model, loops / "noise.wav", "-o", direct) == 0
    alone = pq.read_table(direct).to_pylist()[0]
    assert alone["score"] == pytest.approx(top["score"], rel=1e-4)


@pytest.mark.parametrize("suffix", [".pkl", ".pickle"])
def test_pickled_rows_of_another_encoder_are_refused(model, store, tmp_path, capsys, suffix):
    with (tmp_path / f"rows{suffix}").open("wb") as file:
        pickle.dump(read_embeddings(store).matrix, file)
    assert run("score", model, tmp_path / f"rows{suffix}") == 2
    assert "come from another space" in capsys.readouterr().err


def test_a_bad_file_among_good_ones_is_named_and_exits_3(loops, tmp_path, capsys):
    for name in ("tone_00.wav", "tone_01.wav"):
        (tmp_path / name).write_bytes((loops / name).read_bytes())
    (tmp_path / "broken.wav").write_bytes(b"")
    out = tmp_path / "emb"
    command = ("embed", tmp_path, "-o", out, "--encoder", ENCODER, "--workers", "1")
    assert run(*command, "--json") == 3
    summary = json.loads(capsys.readouterr().out)
    assert (summary["n_embedded"], summary["n_failed"]) == (2, 1)
    assert run(*command) == 3
    first, *more = capsys.readouterr().out.splitlines()
    assert first.startswith(f"{out}: 0 loops embedded in ")
    assert more == [
        "  2 were there already",
        f"  1 rejected (1 empty_file): loopjax store failures {out}",
    ]
    failures = read_embeddings(out).failures.to_pylist()
    assert [(f["path"].rsplit("/", 1)[-1], f["reason"]) for f in failures] == [
        ("broken.wav", "empty_file")
    ]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("fit", "/nonexistent", "-o", "x"), "/nonexistent"),
        (("score", "/nonexistent", "x.wav"), "/nonexistent"),
        (("run", "/nonexistent.yaml", "-o", "x"), "/nonexistent.yaml"),
        (("run", DEMO, "--set", "detectr.x=1"), "unknown key 'detectr'"),
        (("report", "/nonexistent"), "/nonexistent"),
        (("report", "broken"), "run.json is damaged"),
        (("evaluate", "broken"), "run.json is damaged"),
        (("evaluate", "/nonexistent"), "/nonexistent is no run folder (run.json is missing)"),
        (("embed", "pyproject.toml", "-o", "x", "--encoder", ENCODER), "pyproject.toml"),
        (("embed", "/nonexistent", "-o", "x", "--encoder", ENCODER), "/nonexistent"),
        (("embed", "tests", "-o", "x", "--encoder", "clap-htsat-fusd"), "clap-htsat-fusd"),
        (("convert", "/nonexistent.pt", "-o", "x"), "/nonexistent.pt"),
        (("encoders", "verify"), "needs a name"),
        (("fit", "/nonexistent", "-o", "x", "--seeds", "a..b"), "seeds"),
    ],
    ids=lambda value: " ".join(value[:2]) if isinstance(value, tuple) else None,
)
def test_mistakes_exit_2_and_name_the_thing(args, message, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pyproject.toml").write_text("[project]\n")
    (tmp_path / "tests").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "run.json").write_text("{")
    assert run(*args) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


def test_help_is_quick_because_nothing_heavy_is_imported():
    code = (
        "import sys\nfrom loopjax.cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        "heavy = {'jax', 'numpy', 'pyarrow', 'rich', 'sklearn'} & set(sys.modules)\n"
        "print('heavy', sorted(heavy))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip().endswith("heavy []"), done.stdout + done.stderr
