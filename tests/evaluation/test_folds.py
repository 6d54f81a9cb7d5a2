import numpy as np
import pytest

from loopjax.errors import UserError
from loopjax.evaluation.folds import copy_groups, fold_numbers, linked_groups, near_duplicates


@pytest.mark.parametrize("dim", [2, 40])
@pytest.mark.parametrize("cosine", [0.9, 0.999])
def test_near_duplicates_are_those_of_all_pairs(dim, cosine):
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(300, dim)) + 2
    rows[200:] = rows[:100] * rng.uniform(0.5, 2, (100, 1)) + rng.normal(size=(100, dim)) * 0.05
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)

    def pairs(least):
        return {(int(i), int(j)) for i, j in np.argwhere(unit @ unit.T >= least) if i < j}

    found = {(i, j) for i, j in near_duplicates(rows, cosine).tolist()}
    assert len(found) > 20
    assert pairs(cosine + 2e-5) <= found <= pairs(cosine - 2e-5)


def test_few_rows_and_silence_have_no_duplicates():
    assert near_duplicates(np.ones((1, 4)), 0.9).shape == (0, 2)
    assert len(near_duplicates(np.zeros((3, 4)), 0.9)) == 0


def test_groups_reach_through_others_and_through_equal_texts():
    groups = linked_groups(6, np.array([[0, 2], [2, 4]]), [["", "x", "", "x", "", ""]])
    assert groups.tolist() == [0, 1, 0, 1, 0, 5]


def test_folds_keep_groups_whole_and_sizes_even():
    groups = np.repeat(np.arange(0, 60, 3), 3)  # twenty groups of three
    groups = np.r_[groups, np.arange(60, 100)]
    names = [f"loop {i}" for i in range(100)]
    eligible = np.arange(100) % 4 != 0
    folds = fold_numbers(groups, names, 5, 0, eligible)
    for group in np.unique(groups):
        assert len(set(folds[groups == group])) == 1
    sizes = np.bincount(folds[eligible], minlength=5)
    assert sizes.max() - sizes.min() <= 1
    again = fold_numbers(groups, names, 5, 0, eligible)
    np.testing.assert_array_equal(folds, again)
    assert (fold_numbers(groups, names, 5, 1, eligible) != folds).any()


def test_two_folds_of_an_odd_number_of_rows_are_dealt():
    rows = np.arange(21)
    folds = fold_numbers(rows, [str(row) for row in rows], 2, 0, np.ones(21, bool))
    assert sorted(np.bincount(folds)) == [10, 11]


def test_a_corpus_of_copies_is_refused():
    groups = np.r_[np.zeros(30, int), np.arange(30, 40)]
    with pytest.raises(UserError, match=r"holds 30 of 40 loops.*near_duplicate_cosine"):
        fold_numbers(groups, [str(i) for i in range(40)], 5, 0, np.ones(40, bool))


@pytest.mark.parametrize("scale", [1e-300, 1e-20, 1.0, 1e20])
def test_copies_are_found_at_every_scale_and_beside_a_far_row(scale):
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(100, 8)) @ rng.normal(size=(8, 32)) + 3
    rows[90:95] = rows[:5] * (1 + 1e-4)
    rows[50] *= 1e6  # seen from the mean, all others point away from this one
    groups, _ = copy_groups(rows * scale, 5)
    expected = np.arange(100)
    expected[90:95] = np.arange(5)
    np.testing.assert_array_equal(groups, expected)


@pytest.mark.parametrize("width", [1, 2, 3])
def test_rows_of_few_columns_are_copies_where_they_are_equal(width):
    rows = np.random.default_rng(0).normal(size=(500, width))
    rows[400:] = rows[:100]
    groups, _ = copy_groups(rows, 5)
    np.testing.assert_array_equal(groups, np.r_[np.arange(400), np.arange(100)])


def test_rows_that_all_point_the_same_way_are_not_all_copies():
    rows = np.random.default_rng(0).normal(size=(300, 4)) ** 2 + [1e4, 0, 0, 0]
    for groups, _ in (copy_groups(rows, 5), copy_groups(rows[:, 0:1] * rows, 5)):
        assert np.unique(groups, return_counts=True)[1].max() <= 60
