"""A model learns further loops: what it flags, whom it knows, and what is saved."""

import json

import numpy as np
import pyarrow as pa
import pytest

from loopjax.cli import main
from loopjax.detectors.base import Detector
from loopjax.detectors.known_rows import KnownRows
from loopjax.errors import UserError
from loopjax.experiment.fit import fit_model, update_model
from loopjax.model import Model, load_model
from loopjax.store.read import Embeddings
from tests.detectors.small import odd_rows, rows

KINDS = ("pca", "mahalanobis", "knn", "local-knn", "mean-cosine")


def embeddings(matrix, prefix="a", silent=()):
    table = pa.table({
        "id": [f"{prefix}{i}" for i in range(len(matrix))],
        "path": [f"{prefix}{i}.wav" for i in range(len(matrix))],
        "flags": [["silence"] if i in silent else [] for i in range(len(matrix))],
    })  # fmt: skip
    return Embeddings(matrix, table, {})


@pytest.mark.parametrize("kind", KINDS)
def test_what_it_learns_is_that_of_a_fit_on_all_loops(kind):
    old, new = embeddings(rows(80)), embeddings(rows(50, seed=1), "b")
    updated = update_model(fit_model(old, kind), new)
    whole = fit_model(embeddings(np.concatenate([old.matrix, new.matrix])), kind)
    tests = rows(40, seed=2)
    np.testing.assert_allclose(
        updated.detector.decision_function(tests),
        whole.detector.decision_function(tests),
        rtol=1e-4,
        atol=1e-7,
    )
    assert updated.training_ids.to_pylist() == [
        *(f"a{i}" for i in range(80)),
        *new.table["id"].to_pylist(),
    ]
    # Unseen scores of all loops stand behind the threshold, a fit's are of folds.
    assert updated.detector.threshold_ == pytest.approx(whole.detector.threshold_, rel=0.15)
    assert len(updated.detector.calibration_scores_) == 130


@pytest.mark.parametrize("kind", KINDS)
def test_new_loops_have_scores_of_detectors_that_never_saw_them(kind):
    model = fit_model(embeddings(rows(80)), kind)
    new = np.concatenate([rows(40, seed=1), odd_rows(3)])
    updated = update_model(model, embeddings(new, "b"))
    own = updated.detector.decision_scores_[80:]
    # Each by the detector with four fifths of the others: near that of a model with all others.
    without = update_model(model, embeddings(np.delete(new, 7, axis=0), "b"))
    assert own[7] == pytest.approx(without.detector.decision_function(new[7:8])[0], rel=0.2)
    # They keep these scores in every ranking, as loops that a model was fitted on do.
    scored = updated.score_rows(new)
    assert scored.is_cross_fitted.all()
    np.testing.assert_array_equal(scored.scores, own)
    assert (scored.p_values[-3:] <= 4 / 123).all()
    assert len(model.training_ids) == 80 and len(model.detector.decision_scores_) == 80


@pytest.mark.parametrize("kind", KINDS)
def test_normal_loops_to_come_are_flagged_as_often_as_was_asked_for(kind):
    model = fit_model(embeddings(rows(300)), kind)
    for week in range(4):
        model = update_model(model, embeddings(rows(300, seed=10 + week), f"w{week}-"))
    flagged = model.detector.predict(rows(4000, seed=99)) == -1
    assert 0.03 < flagged.mean() < 0.065  # by chance alone .04 to .06


def test_a_few_loops_are_scored_by_the_model_as_it_was():
    model = fit_model(embeddings(rows(80)), "knn")
    new = rows(2, seed=1)
    updated = update_model(model, embeddings(new, "b"))
    np.testing.assert_array_equal(
        updated.detector.decision_scores_,
        [*model.detector.decision_scores_, *model.detector.decision_function(new)],
    )


def test_known_and_silent_loops_are_left_out():
    old = embeddings(rows(80))
    model = fit_model(old, "knn")
    again = np.concatenate([rows(80)[:5], rows(20, seed=1)])
    updated = update_model(model, embeddings(again, "b", silent=(7,)))
    assert updated.detector.n_samples_seen_ == 99
    assert "b7" not in updated.training_ids.to_pylist()
    with pytest.raises(UserError, match="knows all of these 80 loops"):
        update_model(model, old)


def test_a_model_with_held_out_scores_keeps_them():
    detector = fit_model(embeddings(rows(80)), "knn").detector
    detector.fit(rows(80)).calibrate(rows(30, seed=5))
    new = rows(20, seed=1)
    updated = update_model(Model(detector, "knn"), embeddings(new))
    assert len(updated.detector.calibration_scores_) == 50
    assert updated.score_rows(rows(9, seed=8)).p_values.min() >= 1 / 51


def test_a_kind_that_learns_from_all_rows_together_says_so_at_once():
    model = fit_model(embeddings(rows(80)), "isolation-forest")
    with pytest.raises(UserError, match=r"no partial_fit.*fit it again on all"):
        update_model(model, "/nowhere")


def test_on_the_command_line(tmp_path, capsys):
    np.save(tmp_path / "old.npy", rows(80))
    np.save(tmp_path / "new.npy", rows(20, seed=1))
    arguments = [str(tmp_path / name) for name in ("old.npy", "new.npy", "model", "grown")]
    old, new, model, grown = arguments
    assert main(["fit", old, "-o", model, "--detector", "knn"]) == 0
    capsys.readouterr()
    assert main(["fit", new, "--update", model, "-o", grown]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["n_learned"], told["n_train"], told["detector"]) == (20, 100, "knn")
    saved = load_model(grown)
    assert told["threshold"] == saved.detector.threshold_
    assert len(saved.training_ids) == 100 and isinstance(saved.known_rows, KnownRows)
    assert isinstance(saved.detector, Detector) and len(load_model(model).training_ids) == 80
    # In place, and once more: nothing new.
    assert main(["fit", new, "--update", grown, "-o", grown]) == 2
    assert "knows all of these 20 loops" in capsys.readouterr().err
    assert main(["fit", new, "--update", model, "-o", model]) == 0
    assert len(load_model(model).training_ids) == 100


@pytest.mark.parametrize(
    "option", [["--detector", "pca"], ["--seeds", "0..3"], ["--set", "params.n_neighbors=3"]]
)
def test_options_of_a_fit_have_no_meaning_with_update(option, tmp_path, capsys):
    assert main(["fit", "x.npy", "--update", "m", "-o", str(tmp_path / "o"), *option]) == 2
    assert f"{option[0]} has no meaning with --update" in capsys.readouterr().err
