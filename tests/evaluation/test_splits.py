import numpy as np
import pytest

from loopjax.errors import UserError
from loopjax.evaluation.splits import protocol_splits


@pytest.mark.parametrize("protocol", ["P1", "P3"])
def test_protocol_splits(protocol):
    groups = ["x"] * 10 + ["y"] * 20 + ["z"] * 4 + ["a"]
    splits = list(protocol_splits(groups, protocol, seed=4))
    # Four loops and one loop are nobody's normal class, but anomalous all the same.
    assert [name for name, *_ in splits] == (
        ["x", "y"] if protocol == "P1" else ["a", "x", "y", "z"]
    )
    for name, train, test, labels in splits:
        is_own = np.array(groups) == name
        normal = is_own if protocol == "P1" else ~is_own
        assert len(train) == int(0.8 * normal.sum())
        assert normal[train].all()
        np.testing.assert_array_equal(labels, ~normal[test])
        assert sorted([*train, *test]) == list(range(35))
    again = list(protocol_splits(groups, protocol, seed=4))
    np.testing.assert_array_equal(splits[0][1], again[0][1])
    with pytest.raises(UserError, match="two groups"):
        list(protocol_splits(["x", "x"], protocol, seed=0))


def test_protocol_p1_needs_a_group_to_fit_on():
    with pytest.raises(UserError, match="no group leaves 5 normal loops"):
        list(protocol_splits(["x"] * 6 + ["y"] * 5, "P1", seed=0))


def test_protocol_p2_hides_anomalies_of_the_group_in_training():
    groups = np.array(["x"] * 60 + ["y"] * 60 + ["z"] * 4)
    for (name, train, test, labels), (_, clean, *_) in zip(
        protocol_splits(groups, "P2-10", 0), protocol_splits(groups, "P3", 0), strict=True
    ):
        hidden = np.flatnonzero(groups[train] == name)
        # 10 %; of a small group half, among fewer normal loops.
        n_hidden, n_normal = {"x": (6, 51), "y": (6, 51), "z": (2, 18)}[name]
        assert len(hidden) == n_hidden
        np.testing.assert_array_equal(train[:-n_hidden], clean[:n_normal])
        np.testing.assert_array_equal(labels, groups[test] == name)
        if n_normal == len(clean):
            assert sorted([*train, *test]) == list(range(124))


@pytest.mark.parametrize("protocol", ["P1", "P3", "P2-10"])
def test_no_copy_lies_on_both_sides(protocol):
    groups = ["x"] * 60 + ["y"] * 60
    alike = np.arange(120)
    alike[30:60] = alike[:30]  # copies within a folder
    alike[115:] = alike[:5]  # and across folders
    for _, train, test, labels in protocol_splits(groups, protocol, 0, alike=alike):
        assert not set(alike[train]) & set(alike[test])
        assert len(train) >= 24 and {*labels} == {0, 1}


@pytest.mark.parametrize("percent", [1, 5, 10])
def test_a_small_folder_is_that_fraction_of_fewer_training_loops(percent):
    groups = np.repeat([f"{i:02}" for i in range(25)], 16)
    for folder, train, test, labels in protocol_splits(groups, f"P2-{percent}", 0):
        hidden = groups[train] == folder
        assert np.mean(hidden) == pytest.approx(percent / 100, abs=0.002)
        assert hidden.sum() <= 8 and labels.sum() == 16 - hidden.sum()
        assert not set(train) & set(test)


@pytest.mark.parametrize("protocol", ["P4", "P2", "P2-", "P2-0", "P2-100", "P2-x"])
def test_unknown_protocols_are_refused(protocol):
    with pytest.raises(UserError, match="unknown protocol"):
        list(protocol_splits(["x"] * 9 + ["y"] * 9, protocol, seed=0))
