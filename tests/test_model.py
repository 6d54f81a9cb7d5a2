"""The one door to a trained model: what is saved, scored and explained agrees."""

import json
import logging
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import soundfile

import loopjax
from loopjax.cli import main
from loopjax.config import DetectorConfig, EmbedConfig
from loopjax.detectors.knn import KNN
from loopjax.detectors.mahalanobis import Mahalanobis
from loopjax.detectors.storage import save_detector
from loopjax.detectors.svdd.estimator import DeepSVDD
from loopjax.embedding.chain import embed, embed_corpus
from loopjax.encoders.encoder import random_weights
from loopjax.encoders.load import load_encoder
from loopjax.encoders.space import Space
from loopjax.encoders.storage import save_encoder
from loopjax.errors import UserError
from loopjax.experiment.fit import fit_models
from loopjax.explanation import explain
from loopjax.htsat.frontend import LogMelConfig
from loopjax.htsat.model import HtsatConfig
from loopjax.model import Model, load_model
from loopjax.store.read import Embeddings, read_embeddings
from tests.audio_files import write_corpus
from tests.fake_encoder import FakeEncoder

ENCODER = "log-mel-statistics"


def run(*args) -> int:
    return main([str(a) for a in args])


@pytest.fixture(scope="module")
def stereo(tmp_path_factory):
    """Forty stereo loops whose right channel is another sound than the left one."""
    folder = tmp_path_factory.mktemp("stereo") / "loops"
    folder.mkdir()
    rng = np.random.default_rng(0)
    time_s = np.arange(16000) / 32000
    for i in range(40):
        left = 0.3 * np.sin(2 * np.pi * (200 + 5 * i) * time_s) * np.exp(-4 * time_s)
        left += 0.01 * rng.standard_normal(left.size)
        right = 0.4 * rng.standard_normal(left.size) * (i % 2)
        soundfile.write(folder / f"{i:02d}.wav", np.stack([left, right], axis=1), 32000)
    return folder


@pytest.fixture(scope="module")
def left_store(stereo, tmp_path_factory):
    out = tmp_path_factory.mktemp("left") / "emb"
    assert run("embed", stereo, "-o", out, "--encoder", ENCODER, "--mono", "left") == 0
    return out


@pytest.fixture(scope="module")
def left_model(left_store, tmp_path_factory):
    out = tmp_path_factory.mktemp("model") / "mahalanobis"
    assert run("fit", left_store, "-o", out, "--detector", "mahalanobis") == 0
    return out


def test_scores_of_store_file_array_and_explanation_agree(left_model, left_store, stereo):
    """Also where the options were not the default ones: the left channel alone."""
    model = load_model(left_model)
    assert model.space.mono == "left"
    stored = {Path(row["path"]).name: row for row in model.score(left_store).table.to_pylist()}
    audio = model.score([stereo / "03.wav", stereo / "04.wav"]).table.to_pylist()
    for row in audio:
        expected = stored[Path(row["path"]).name]
        assert row["score"] == pytest.approx(expected["score"], rel=1e-4)
        assert row["is_anomaly"] == expected["is_anomaly"]
        explanation = explain(model, row["path"])
        assert explanation.score == pytest.approx(expected["score"], rel=1e-4)
        assert explanation.is_anomaly == expected["is_anomaly"]
        assert explanation.percentile == pytest.approx(expected["percentile"])
    matrix = read_embeddings(left_store).matrix
    rows = model.score(matrix).table
    assert sorted(rows["score"].to_pylist()) == sorted(row["score"] for row in stored.values())
    assert rows["id"][0].as_py().startswith("row-")


def test_seeded_crops_of_a_long_loop_are_explained_as_they_are_scored(tmp_path):
    folder = tmp_path / "loops"
    folder.mkdir()
    rng = np.random.default_rng(1)
    for i in range(12):
        wave = np.concatenate([0.02 * rng.standard_normal(48000 * 13), rng.uniform(-1, 1, 48000)])
        soundfile.write(folder / f"{i}.wav", wave * (0.1 + i / 20), 48000)
    encoder = FakeEncoder()
    embeddings = embed(folder, encoder, crops="seeded:3", workers=1)
    (model,) = fit_models(
        embeddings, np.arange(12) < 9, DetectorConfig("knn", "knn", {"n_neighbors": 2})
    )
    encoder.outputs = lambda mel, longer: {}
    for row in model.score(embeddings).table.to_pylist()[:3]:
        explanation = explain(model, row["path"], encoder)
        assert explanation.score == pytest.approx(row["score"], rel=1e-4)


def test_a_model_is_what_it_was_after_saving(left_model, left_store, tmp_path):
    model = load_model(left_model)
    again = load_model(model.save(tmp_path / "again"))
    assert again.space == model.space
    assert (again.name, again.training_ids) == (model.name, model.training_ids)
    assert again.embeddings_path == str(left_store)
    assert again.is_calibrated
    assert again.score(left_store).table.equals(model.score(left_store).table)


def test_the_detector_of_a_model_folder_loads_on_its_own(left_model, left_store):
    matrix = read_embeddings(left_store).matrix
    alone = loopjax.load_detector(left_model).decision_function(matrix)
    np.testing.assert_array_equal(alone, load_model(left_model).detector.decision_function(matrix))


def test_a_detector_without_a_record_of_its_space_scores_and_explains(
    left_store, stereo, tmp_path, capsys, caplog
):
    """What converting a trained head gives: nobody knows the encoder, so it must be named."""
    rows = read_embeddings(left_store).matrix
    width = rows.shape[1]
    head = {
        f"layers/{i}/linear/kernel": np.eye(*shape, dtype=np.float32)
        for i, shape in enumerate([(width, 16), (16, 8)])
    }
    detector = DeepSVDD.from_arrays(head, np.zeros(8, np.float32), training_rows=rows)
    folder = save_detector(detector, tmp_path / "head")
    assert run("score", folder, left_store, "-o", tmp_path / "scores.parquet") == 0
    assert run("score", folder, stereo / "03.wav") == 2
    assert "--encoder" in capsys.readouterr().err
    assert run("score", folder, stereo / "03.wav", "--encoder", ENCODER) == 0
    with caplog.at_level(logging.WARNING):
        load_model(folder).score(left_store)
    assert "does not know which encoder" in caplog.text
    capsys.readouterr()
    assert run("explain", folder, stereo / "03.wav", "--encoder", ENCODER, "-o", tmp_path) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["detector"] == "deep-svdd"
    assert json.loads((tmp_path / "explain.json").read_text()) == printed
    assert "currentColor" in (tmp_path / "explain.svg").read_text()


@pytest.fixture
def own_encoder(tmp_path):
    """A converted encoder somewhere on disk."""
    config = HtsatConfig.nano(width=8, depths=(1,), heads=(1,))
    folder = tmp_path / "weights" / "mine"
    save_encoder(
        folder, config, LogMelConfig(), random_weights(config), encoder_id="mine", about={},
        probe=False,
    )  # fmt: skip
    return folder


def test_an_encoder_is_found_from_another_folder_and_elsewhere_with_the_option(
    own_encoder, tmp_path, monkeypatch, capsys
):
    loops = tmp_path / "loops"
    write_corpus(loops, 12)
    monkeypatch.chdir(tmp_path)
    assert run("embed", "loops", "-o", "emb", "--encoder", "weights/mine", "--workers", 1) == 0
    assert run("fit", "emb", "-o", "knn", "--detector", "knn", "--set", "params.n_neighbors=2") == 0
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    loop = next(loops.iterdir())
    assert run("score", tmp_path / "knn", loop) == 0
    own_encoder.rename(tmp_path / "moved")
    assert run("score", tmp_path / "knn", loop) == 2
    assert "--encoder" in capsys.readouterr().err
    assert run("score", tmp_path / "knn", loop, "--encoder", tmp_path / "moved") == 0


def test_an_encoder_with_other_weights_is_refused(own_encoder, tmp_path, capsys):
    write_corpus(tmp_path / "loops", 12)
    encoder = load_encoder(own_encoder)
    embed_corpus(tmp_path / "loops", encoder, tmp_path / "emb", EmbedConfig(workers=1))
    embeddings = read_embeddings(tmp_path / "emb")
    (model,) = fit_models(
        embeddings, np.arange(12) < 9, DetectorConfig("knn", "knn", {"n_neighbors": 2})
    )
    model.save(tmp_path / "knn")
    config = HtsatConfig.nano(width=8, depths=(1,), heads=(1,))
    save_encoder(
        own_encoder, config, LogMelConfig(), random_weights(config, seed=1), encoder_id="mine",
        about={}, probe=False,
    )  # fmt: skip
    assert run("score", tmp_path / "knn", tmp_path / "loops") == 2
    assert "weights_sha256" in capsys.readouterr().err


def test_embeddings_of_another_space_are_refused(left_model, stereo, tmp_path):
    model = load_model(left_model)
    mean = embed([stereo / "03.wav"], ENCODER)
    with pytest.raises(UserError, match=r"another space.*mono: 'mean' instead of 'left'"):
        model.score(mean)
    with pytest.raises(UserError, match=r"another space.*mono"):
        explain(model, stereo / "03.wav", neighbors_from=mean)
    with pytest.raises(UserError, match="encoder untrained-nano comes from another space"):
        model.embed(stereo / "03.wav", "untrained-nano")


def test_folders_that_hold_no_model_are_named(tmp_path, left_model):
    with pytest.raises(UserError, match="holds no model"):
        load_model(tmp_path)
    (tmp_path / "model.json").write_text("{}")
    with pytest.raises(UserError, match="model of an earlier version"):
        load_model(tmp_path)
    folder = load_model(left_model).save(tmp_path / "cut")
    text = (folder / "config.json").read_text()
    (folder / "config.json").write_text(text[: len(text) // 2])
    with pytest.raises(UserError, match="cut"):
        load_model(folder)
    record = json.loads(text)
    del record["model"]["training_rows"]
    (folder / "config.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match="fit it again"):
        load_model(folder)


def test_a_false_positive_rate_needs_calibration():
    rows = np.random.default_rng(0).normal(size=(30, 4)).astype(np.float32)
    model = Model(KNN(n_neighbors=2).fit(rows), "knn")
    with pytest.raises(UserError, match="can keep no rate"):
        model.score(rows, target_fpr=0.1)
    model.detector.calibrate(rows[:9])
    with pytest.raises(UserError, match="needs 19 held-out normal loops; there are 9"):
        model.score(rows, target_fpr=0.05)
    for rate in (0.0, -1.0, 5.0, float("nan")):
        with pytest.raises(UserError, match="between 0 and 1"):
            model.score(rows, target_fpr=rate)
        with pytest.raises(UserError, match="between 0 and 1"):
            model.score(rows, target_fdr=rate)


def test_a_corpus_and_new_loops_stand_in_one_ranking():
    """Loops a model was fitted on score, and are placed, as if it had never seen them."""
    rng = np.random.default_rng(0)
    rows, new = (rng.normal(size=(n, 12)).astype(np.float32) for n in (150, 300))
    table = pa.table({"id": [f"loop {i}" for i in range(150)], "path": [""] * 150})
    folds = np.arange(150) % 5
    for kind in ("knn", "pca", "mahalanobis"):
        config = DetectorConfig(kind, kind)
        train = np.ones(150, bool)
        (model,) = fit_models(Embeddings(rows, table, {}), train, config, folds=folds)
        both = model.score(np.concatenate([rows, new])).table.sort_by("id").to_pylist()
        own, others = both[:150], both[150:]
        assert {row["scored_as"] for row in own} == {"cross_fitted"}
        assert {row["scored_as"] for row in others} == {"new"}
        scores = np.array([row["score"] for row in own])
        np.testing.assert_array_equal(scores, model.detector.decision_scores_)
        assert sum(row["is_anomaly"] for row in own) == np.sum(scores > model.detector.threshold_)
        assert np.mean([row["percentile"] for row in own]) == pytest.approx(50, abs=1)
        assert np.mean([row["percentile"] for row in others]) == pytest.approx(50, abs=8)
        ranks = np.sort([row["p_value"] for row in own])
        np.testing.assert_allclose(ranks, np.arange(1, 151) / 150)


def test_a_model_in_memory_asks_for_its_encoder(tmp_path):
    rows = np.random.default_rng(0).normal(size=(30, 16)).astype(np.float32)
    space = Space("x", "0" * 64, 16, LogMelConfig(), False)
    model = Model(Mahalanobis().fit(rows), "m", space)
    with pytest.raises(UserError, match="was never saved"):
        model.embed(tmp_path)
