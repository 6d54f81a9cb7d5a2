import numpy as np

from loopjax.detectors.known_rows import KnownRows

ROWS = np.random.default_rng(0).normal(size=(200, 40)).astype(np.float32) + 5


def test_training_rows_are_found_in_any_order_and_new_ones_are_not():
    known = KnownRows.of(ROWS)
    order = np.random.default_rng(1).permutation(200)
    rounded = ROWS[order] * np.float32(1 + 1e-7)
    np.testing.assert_array_equal(known.find(rounded), order)
    like = ROWS + np.random.default_rng(2).normal(size=ROWS.shape) * 0.05  # cosine .9999
    assert (known.find(like) == -1).all()
    assert known.find(ROWS[:0]).shape == (0,)


def test_features_without_information_do_not_confuse_rows():
    rows = np.zeros((50, 30), np.float32)
    rows[:, -1] = np.arange(50)
    np.testing.assert_array_equal(KnownRows.of(rows).find(rows), np.arange(50))
