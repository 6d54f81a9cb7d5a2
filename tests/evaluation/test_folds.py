import numpy as np
import pytest

from loopjax.errors import UserError
from loopjax.evaluation.folds import fold_numbers, linked_groups, near_duplicates


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
