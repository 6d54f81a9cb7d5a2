"""Ranks and q-values of parts of a corpus are those of the whole."""

import numpy as np
import pytest

from loopjax.evaluation.conformal import adjusted_p_values
from loopjax.evaluation.standing import Standing


def standing_of(scores, p_values, ids):
    standing = Standing(scores.copy(), p_values.copy())
    tied = standing.tied(scores)
    standing.order_equals(scores[tied], list(ids[tied]))
    return standing


def test_parts_have_the_ranks_and_q_values_of_the_whole():
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 40, 200) / 8.0  # many are equal
    p_values = rng.integers(1, 60, 200) / 60
    ids = rng.permutation(np.array([f"loop-{i:03d}" for i in range(200)]))
    order = np.lexsort((ids, -scores))
    ranks = np.empty(200, int)
    ranks[order] = np.arange(1, 201)
    standing, expected = standing_of(scores, p_values, ids), adjusted_p_values(p_values)
    for part in np.split(np.arange(200), [50, 51, 130]):
        tied = standing.tied(scores[part])
        found = standing.ranks(scores[part], list(ids[part][tied]))
        np.testing.assert_array_equal(found, ranks[part])
        np.testing.assert_array_equal(standing.q_values(p_values[part]), expected[part])


@pytest.mark.parametrize("count", [1, 3])
def test_without_calibration_there_are_no_q_values(count):
    scores = np.arange(count, dtype=float)
    standing = standing_of(scores, np.full(count, np.nan), np.array(["a"] * count))
    assert np.isnan(standing.q_values(np.full(count, np.nan))).all()
    np.testing.assert_array_equal(standing.ranks(scores, []), np.arange(count, 0, -1))
