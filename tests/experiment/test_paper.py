import json

import numpy as np
import pytest

from loopjax.cli import main
from loopjax.config import DetectorConfig
from loopjax.errors import UserError
from loopjax.evaluation.tables import Estimate, Evaluation
from loopjax.experiment.gain import gain_rows
from loopjax.experiment.load import load_config
from loopjax.experiment.paper import reproduce
from tests.detectors.small import TINY, odd_rows, rows

CONFIG = {
    "name": "small",
    "detectors": [
        {"name": "standard", "kind": "deep-svdd", "params": TINY},
        {"name": "knn", "kind": "knn", "params": {}},
        {"name": "pca", "kind": "pca", "params": {}},
    ],
    "seeds": [0, 1],
    "evaluate": {"protocols": ["P1", "P3", "unlabeled"], "reference": "published.json"},
}


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reproduction")
    matrix = np.concatenate([rows(30), odd_rows(20), rows(24, seed=3) + 3])
    groups = np.array(["a"] * 30 + ["b"] * 20 + ["c"] * 24)
    np.savez(folder / "set.npz", embeddings=matrix, group=groups)
    entry = {"measure": "auroc_P1", "embeddings": "set", "detector": "knn", "reproduced": 0.9}
    published = {"source": "here", "detectors": {"knn": []}, "entries": [entry]}
    (folder / "published.json").write_text(json.dumps(published), "utf-8")
    (folder / "config.yaml").write_text(json.dumps(CONFIG), "utf-8")
    sets = [f"data.sets.set={folder / 'set.npz'}"]
    sets.append(f"evaluate.reference={folder / 'published.json'}")
    config = load_config(folder / "config.yaml", sets)
    found = reproduce(config, folder / "out", log=lambda line: None)
    written = json.loads((folder / "out" / "evaluation.json").read_text("utf-8"))
    assert Evaluation.from_json(written, "evaluation.json") == found
    return {table.title: table.rows for table in found.tables}


def test_ours_stands_first_beside_the_published_values(evaluation):
    assert next(iter(evaluation)) == "Ours beside the published values"
    (row,) = evaluation["Ours beside the published values"]
    assert (row["measure"], row["detector"], row["reproduced"]) == (
        "auroc_P1",
        "knn",
        Estimate(0.9),
    )


def test_every_detector_has_its_means(evaluation):
    means = {row["detector"]: row for row in evaluation["AUROC by detector"]}
    assert list(means) == ["standard", "knn", "pca"]
    folders = evaluation["P1 on set: one folder normal"]
    for row in folders:
        mean = np.mean([row[folder] for folder in "abc"])
        assert row["mean"].value == pytest.approx(mean)
        assert row["mean"] == means[row["detector"]]["set P1"]


def test_every_head_stands_beside_every_cheap_method(evaluation):
    beside = evaluation["Deep SVDD beside the cheap methods"]
    means = {row["detector"]: row for row in evaluation["AUROC by detector"]}
    assert [(row["protocol"], row["head"], row["against"]) for row in beside] == [
        (protocol, "standard", other) for protocol in ("P1", "P3") for other in ("knn", "pca")
    ]
    for row in beside:
        key = f"set {row['protocol']}"
        difference = means["standard"][key].value - means[row["against"]][key].value
        assert row["difference"].value == pytest.approx(difference)
        assert row["difference"].low <= difference <= row["difference"].high
        assert row["folders_won"].endswith(" of 3")


def test_what_training_adds_is_a_row_of_every_table():
    detectors = [DetectorConfig("s", "sphere-svdd"), DetectorConfig("l", "local-knn")]
    rows = [
        {"detector": "s", "x P1": Estimate(0.9, 0.8, 1.0), "mean": 0.75, "note": "a"},
        {"detector": "l", "x P1": Estimate(0.5, 0.4, 0.6), "mean": 0.5, "note": "b"},
    ]
    (row,) = gain_rows(rows, detectors)
    assert row == {"detector": "s minus l", "x P1": pytest.approx(0.4), "mean": 0.25}
    assert gain_rows(rows[:1], detectors) == gain_rows(rows, detectors[:1]) == ()


def test_seeds_of_the_command_line_hold_whatever_a_detector_asks_for(tmp_path):
    matrix = np.concatenate([rows(30), odd_rows(20)])
    np.savez(tmp_path / "set.npz", embeddings=matrix, group=np.repeat(["a", "b"], [30, 20]))
    knn = {"name": "k-nn", "kind": "knn", "protocol_seeds": {"P1": [3, 4]}}
    config = {"name": "x", "detectors": [knn], "seeds": [0, 1], "evaluate": {"protocols": ["P1"]}}
    config["data"] = {"sets": {"set": str(tmp_path / "set.npz")}}
    (tmp_path / "config.yaml").write_text(json.dumps(config), "utf-8")
    for i, (asked, seeds) in enumerate(
        [([], [3, 4]), (["--quick"], [0]), (["--seeds", "1..2"], [1, 2])]
    ):
        out = tmp_path / str(i)
        assert main(["run", str(tmp_path / "config.yaml"), "-o", str(out), *asked]) == 0
        lines = (out / "protocols-set.jsonl").read_text("utf-8").splitlines()
        assert sorted({json.loads(line)["row"]["seed"] for line in lines}) == seeds


def test_sets_are_needed(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(json.dumps(CONFIG), "utf-8")
    with pytest.raises(UserError, match=r"data\.sets"):
        reproduce(load_config(path, []), tmp_path / "out", log=lambda line: None)


def test_a_set_that_is_not_there_is_named(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(json.dumps(CONFIG), "utf-8")
    config = load_config(path, ["data.sets.ff=nowhere/ff.npz", "evaluate.reference=null"])
    with pytest.raises(UserError, match=r"data\.sets\.ff: nowhere/ff\.npz does not exist.*--set"):
        reproduce(config, tmp_path / "out", log=lambda line: None)
