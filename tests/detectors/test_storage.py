import json
import shutil

import numpy as np
import pytest

from loopjax.detectors.base import fitted_types
from loopjax.detectors.pca import PCA
from loopjax.detectors.storage import load_detector, read_detector_config, save_detector
from loopjax.detectors.svdd.estimator import DeepSVDD
from loopjax.errors import UserError
from tests.detectors.small import DETECTORS, TINY, odd_rows, rows


@pytest.fixture(scope="module")
def fitted():
    return {kind: make().fit(rows()) for kind, make in DETECTORS.items()}


@pytest.fixture(params=DETECTORS)
def kind(request):
    return request.param


def edited(folder, change):
    """Writes config.json anew after `change(config)`."""
    config = json.loads((folder / "config.json").read_text("utf-8"))
    change(config)
    (folder / "config.json").write_text(json.dumps(config), "utf-8")


def assert_same_state(one, other):
    for name in fitted_types(type(one)):
        found, expected = getattr(one, name, None), getattr(other, name, None)
        if name == "members_":
            for members in zip(found, expected, strict=True):
                assert_same_state(*members)
        else:
            np.testing.assert_equal(found, expected)


def test_everything_fitted_comes_back(fitted, kind, tmp_path):
    detector = fitted[kind].calibrate(rows(40, seed=3))
    loaded = load_detector(save_detector(detector, tmp_path / "model"))
    assert type(loaded) is type(detector) and loaded.get_params() == detector.get_params()
    assert_same_state(loaded, detector)
    np.testing.assert_array_equal(
        loaded.decision_function(odd_rows()), detector.decision_function(odd_rows())
    )
    described = read_detector_config(tmp_path / "model")
    assert described["kind"] == kind
    assert described["score_convention"] == "higher_is_anomalous"


def test_names_and_origin_come_back(kind, tmp_path):
    pd = pytest.importorskip("pandas")
    names = [f"e{i}" for i in range(16)]
    table = pd.DataFrame(rows().astype(np.float64), columns=names)
    if kind != "mean-cosine":  # which refuses rows that all point the same way
        table += 1e8
    detector = DETECTORS[kind]().fit(table)
    loaded = load_detector(save_detector(detector, tmp_path / "model"))
    assert loaded.feature_names_in_.tolist() == names
    np.testing.assert_array_equal(loaded.decision_function(table), detector.decision_scores_)
    with pytest.raises(ValueError, match="feature names should match"):
        loaded.decision_function(table[names[::-1]])
    with pytest.raises(ValueError, match="feature names should match"):
        loaded.predict(table.rename(columns={"e3": "f3"}))


def test_a_model_saved_before_origins_were_kept_is_read(fitted, tmp_path):
    path = save_detector(fitted["pca"], tmp_path / "model")
    edited(path, lambda config: config["fitted"].pop("origin_"))
    assert load_detector(path).origin_ is None


def test_the_soft_boundary_comes_back(tmp_path):
    detector = DeepSVDD(**TINY, objective="soft-boundary", warmup_epochs=2).fit(rows())
    loaded = load_detector(save_detector(detector, tmp_path / "model"))
    assert loaded.radius_ == detector.radius_ > 0 and loaded.hidden_dims == (8, 4)


def test_sections_of_the_caller_are_kept(fitted, tmp_path):
    save_detector(fitted["pca"], tmp_path / "model", {"model": {"name": "mine"}})
    assert read_detector_config(tmp_path / "model")["model"] == {"name": "mine"}
    assert isinstance(load_detector(tmp_path / "model"), PCA)


def test_what_is_no_model_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"nothing-here.*config.json is missing"):
        load_detector(tmp_path / "nothing-here")
    for text, problem in (
        ("{", r"config.json: damaged"),
        ("", r"config.json: damaged"),
        ("{}", r"config.json does not describe"),
        ("[1]", r"config.json: damaged \(no JSON object"),
    ):
        (tmp_path / "config.json").write_text(text, "utf-8")
        with pytest.raises(UserError, match=problem):
            load_detector(tmp_path)


def set_in(section, name, value):
    return lambda config: config[section].update({name: value})


DAMAGES = {
    "kind": (lambda c: c.update(kind="oracle"), "config.json: unknown detector kind 'oracle'"),
    "a list": (lambda c: c.update(kind=["knn"]), "config.json: unknown detector kind"),
    "no section": (lambda c: c.pop("fitted"), r"config.json: damaged \(fitted: "),
    "text": (set_in("fitted", "threshold_", "high"), r"config.json: threshold_ is 'high'"),
    "nan": (set_in("fitted", "threshold_", float("nan")), r"config.json: threshold_ is nan"),
    "width": (set_in("fitted", "n_features_in_", 16.5), r"config.json: n_features_in_ is 16.5"),
    "gone": (lambda c: c["fitted"].pop("threshold_"), r"config.json: .*missing threshold_"),
    "new": (set_in("fitted", "other_", 1.0), r"config.json: .*unknown fitted 'other_'"),
    "param": (set_in("params", "n_neighbors", "5"), r"config.json: n_neighbors is '5'"),
    "no param": (set_in("params", "k", 5), r"config.json: .*unknown params 'k'"),
    "array gone": (
        lambda c: c["arrays"].pop("reference_"),
        r"model/arrays: damaged",
    ),
    "no shape": (
        lambda c: c["arrays"]["reference_"].pop("shape"),
        r"config.json: damaged \(arrays.reference_.shape",
    ),
    "shape": (
        lambda c: c["arrays"]["reference_"].update(shape=[3, 16]),
        r"arrays: .*reference_|arrays: damaged",
    ),
    "sum": (
        lambda c: c["arrays"]["reference_"].update(sha256="0" * 64),
        "arrays: array reference_ does not match its checksum",
    ),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_named(fitted, name, tmp_path):
    change, problem = DAMAGES[name]
    path = save_detector(fitted["knn"], tmp_path / "model")
    edited(path, change)
    with pytest.raises(UserError, match=problem):
        load_detector(path)


def test_damaged_arrays_are_named(fitted, tmp_path):
    path = save_detector(fitted["knn"], tmp_path / "model")
    for file in sorted((path / "arrays").rglob("*")):
        if file.is_file() and file.stat().st_size > 1000:
            file.write_bytes(file.read_bytes()[:200] + bytes(file.stat().st_size - 200))
    with pytest.raises(UserError, match=r"model/arrays: "):
        load_detector(path)
    shutil.rmtree(path / "arrays")
    with pytest.raises(UserError, match=r"model/arrays: damaged"):
        load_detector(path)


def test_models_are_replaced_and_nothing_else(fitted, tmp_path):
    path = save_detector(fitted["knn"], tmp_path / "model")
    save_detector(fitted["pca"], path)
    assert isinstance(load_detector(path), PCA)
    (tmp_path / "empty").mkdir()
    save_detector(fitted["pca"], tmp_path / "empty")
    other = tmp_path / "notes"
    other.mkdir()
    (other / "todo.txt").write_text("keep me", "utf-8")
    with pytest.raises(UserError, match="no saved model"):
        save_detector(fitted["knn"], other)
    with pytest.raises(UserError, match="no saved model"):
        save_detector(fitted["knn"], other / "todo.txt")
    assert (other / "todo.txt").exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["empty", "model", "notes"]


def test_an_unfitted_detector_is_not_saved(tmp_path):
    with pytest.raises(UserError, match="PCA is not fitted"):
        save_detector(PCA(), tmp_path / "model")
    assert not (tmp_path / "model").exists()
