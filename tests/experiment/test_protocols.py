import numpy as np
import pytest

from loopjax.config import DetectorConfig
from loopjax.errors import UserError
from loopjax.experiment.protocols import run_protocols
from tests.detectors.small import TINY, odd_rows, rows

X = np.concatenate([rows(30), odd_rows(20), rows(24, seed=3) + 3])
GROUPS = ["a"] * 30 + ["b"] * 20 + ["c"] * 24
KNN = DetectorConfig("knn", "knn", {"n_neighbors": 3})
HEAD = DetectorConfig("head", "deep-svdd", TINY)
METHODS = [KNN, HEAD]


def test_rows_cover_folders_methods_and_seeds(tmp_path):
    found = run_protocols(X, GROUPS, METHODS, seeds=(0, 1), cache=tmp_path / "cache.jsonl")
    keys = {(r.protocol, r.folder, r.method, r.seed) for r in found}
    assert len(keys) == len(found) == 2 * 2 * (3 + 3 + 1)
    for row in found:
        assert row.collapsed == ""
        if row.protocol == "unlabeled":
            numbers = (row.threshold, row.gap_ratio, row.fraction_above_threshold)
            assert all(number is not None for number in numbers)
        else:
            assert 0 <= row.auroc <= 1 and 0 <= row.false_alarms <= 1
            assert row.n_normal + row.n_anomaly + row.n_train == len(X)
    easy = [r for r in found if (r.protocol, r.folder) == ("P1", "b")]
    assert min(r.auroc for r in easy if r.method == "knn") > 0.9

    # A second call computes nothing and returns the same rows, also after a cut last line.
    file = tmp_path / "cache.jsonl"
    file.write_text(file.read_text("utf-8") + '{"key": "cut', "utf-8")
    known = []
    again = run_protocols(
        X, GROUPS, METHODS, seeds=(0, 1), cache=file, log=lambda line: known.append(line)
    )
    assert again == found
    assert known[0] == "knn P1: 6 fits, 6 known"

    # A digit that flipped on the disk is no result.
    first, rest = file.read_text("utf-8").split("\n", 1)
    file.write_text(first.replace('"seed": 0', '"seed": 1') + "\n[[]]\n7\n" + rest, "utf-8")
    again = run_protocols(X, GROUPS, METHODS, seeds=(0, 1), cache=file, log=known.append)
    assert again == found
    assert "knn P1: 6 fits, 5 known" in known


def test_other_settings_are_computed_anew(tmp_path):
    file = tmp_path / "cache.jsonl"
    first = run_protocols(X, GROUPS, [KNN], ("P1",), (0,), cache=file)
    other = [DetectorConfig("knn", "knn", {"n_neighbors": 1})]
    second = run_protocols(X, GROUPS, other, ("P1",), (0,), cache=file)
    assert [r.threshold for r in first] != [r.threshold for r in second]


def test_a_method_may_have_seeds_of_its_own():
    own = DetectorConfig("own", "knn", {"n_neighbors": 3}, protocol_seeds={"P3": (7,)})
    methods = [own, KNN]
    found = run_protocols(X, GROUPS, methods, ("P1", "P3"), (0, 1))
    seeds = {(r.method, r.protocol, r.seed) for r in found}
    assert {s for s in seeds if s[:2] == ("own", "P3")} == {("own", "P3", 7)}
    assert len(seeds) == 5


def test_collapsed_heads_are_rows_with_a_reason():
    params = {**TINY, "pretrain_learning_rate": 1e30}
    methods = [DetectorConfig("broken", "deep-svdd", params)]
    found = run_protocols(X, GROUPS, methods, ("P1",), (0,))
    assert all("diverged" in row.collapsed and row.auroc is None for row in found)


def test_unknown_protocol():
    with pytest.raises(UserError, match="unknown protocol 'P9'"):
        run_protocols(X, GROUPS, METHODS, ("P9",), (0,))
