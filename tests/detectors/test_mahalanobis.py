import numpy as np
import pytest
from sklearn.covariance import EmpiricalCovariance, LedoitWolf, ShrunkCovariance

from loopjax.detectors.mahalanobis import Mahalanobis
from loopjax.detectors.rows import DataError
from loopjax.errors import UserError
from tests.detectors.small import rows


@pytest.mark.parametrize(("count", "width"), [(70, 16), (20, 48)])
def test_equals_sklearn_ledoit_wolf(count, width):
    train, test = rows(count, width), rows(11, width, seed=1)
    reference = LedoitWolf().fit(train.astype(np.float64))
    ours = Mahalanobis().fit(train)
    assert ours.shrinkage_ == pytest.approx(reference.shrinkage_, rel=1e-8)
    np.testing.assert_allclose(
        ours.decision_function(test), reference.mahalanobis(test.astype(np.float64)), rtol=1e-7
    )


@pytest.mark.parametrize("shrinkage", [0.0, 0.3, 1.0])
def test_equals_sklearn_fixed_shrinkage(shrinkage):
    train, test = rows(70), rows(11, seed=1)
    reference = ShrunkCovariance(shrinkage=shrinkage).fit(train.astype(np.float64))
    ours = Mahalanobis(shrinkage).fit(train)
    np.testing.assert_allclose(
        ours.decision_function(test), reference.mahalanobis(test.astype(np.float64)), rtol=1e-7
    )
    if shrinkage == 0:
        plain = EmpiricalCovariance().fit(train.astype(np.float64))
        np.testing.assert_allclose(ours.decision_scores_, plain.mahalanobis(train), rtol=1e-6)


def test_singular_covariance_is_refused():
    with pytest.raises(DataError, match="set shrinkage above 0"):
        Mahalanobis(0.0).fit(rows(20, 48))


@pytest.mark.parametrize("shrinkage", ["oas", -0.1, 1.5])
def test_bad_shrinkage(shrinkage):
    with pytest.raises(UserError, match="shrinkage"):
        Mahalanobis(shrinkage).fit(rows())
