import numpy as np
import pytest
from sklearn.metrics.pairwise import cosine_distances

from loopjax.detectors.mean_cosine import MeanCosine
from loopjax.detectors.rows import DataError
from tests.detectors.small import rows


def test_equals_sklearn():
    train, test = rows(), rows(9, seed=1)
    expected = cosine_distances(test.astype(np.float64), train.mean(axis=0, keepdims=True))[:, 0]
    np.testing.assert_allclose(MeanCosine().fit(train).decision_function(test), expected, rtol=1e-5)


def test_zero_row_counts_as_orthogonal():
    assert MeanCosine().fit(rows()).decision_function(np.zeros((1, 16)))[0] == 1.0


def test_no_direction_and_no_spread_are_refused():
    x = rows()
    with pytest.raises(DataError, match="mean of the rows is zero"):
        MeanCosine().fit(np.concatenate([x, -x]))
    with pytest.raises(DataError, match="point the same way"):
        MeanCosine().fit(np.arange(1, 20)[:, None] * np.ones((1, 4)))
