import numpy as np
import pytest
from sklearn.decomposition import PCA as SkPCA
from sklearn.preprocessing import StandardScaler

from loopjax.detectors.pca import PCA
from loopjax.detectors.rows import DataError
from loopjax.errors import UserError
from tests.detectors.small import odd_rows, rows

TRAIN, TEST = rows(70, 16), rows(30, 16, seed=1)
WIDE, WIDE_TEST = rows(20, 48), rows(9, 48, seed=1)


def sklearn_residual(train, test, n_components, standardize=True):
    scaler = StandardScaler(with_std=standardize).fit(train.astype(np.float64))
    model = SkPCA(n_components).fit(scaler.transform(train.astype(np.float64)))
    z = scaler.transform(test.astype(np.float64))
    return ((z - model.inverse_transform(model.transform(z))) ** 2).sum(axis=1), model


@pytest.mark.parametrize("n_components", [0.95, 0.5, 3])
@pytest.mark.parametrize("standardize", [True, False])
@pytest.mark.parametrize(("train", "test"), [(TRAIN, TEST), (WIDE, WIDE_TEST)])
def test_scores_equal_sklearn(train, test, n_components, standardize):
    expected, model = sklearn_residual(train, test, n_components, standardize)
    ours = PCA(n_components, standardize=standardize).fit(train)
    assert len(ours.components_) == model.n_components_
    np.testing.assert_allclose(ours.decision_function(test), expected, rtol=1e-6)
    np.testing.assert_allclose(ours.explained_variance_, model.explained_variance_, rtol=1e-6)


@pytest.mark.parametrize("n_components", [0.9, 4])
def test_randomized_solver_finds_the_same_subspace(n_components):
    exact = PCA(n_components, solver="exact").fit(WIDE)
    randomized = PCA(n_components, solver="randomized", max_components=16).fit(WIDE)
    np.testing.assert_allclose(
        randomized.decision_function(WIDE_TEST), exact.decision_function(WIDE_TEST), rtol=1e-4
    )


def test_randomized_solver_needs_enough_axes():
    with pytest.raises(UserError, match="raise max_components"):
        PCA(0.99, solver="randomized", max_components=2).fit(TRAIN)


def test_hotelling_is_the_mahalanobis_distance_inside_the_subspace():
    model = PCA(5, statistic="hotelling").fit(TRAIN)
    _, reference = sklearn_residual(TRAIN, TEST, 5)
    scaler = StandardScaler().fit(TRAIN.astype(np.float64))
    inside = reference.transform(scaler.transform(TEST.astype(np.float64)))
    expected = np.sum(inside**2 / reference.explained_variance_, axis=1)
    np.testing.assert_allclose(model.decision_function(TEST), expected, rtol=1e-6)


def test_one_axis_is_always_left_out():
    # 10 rows span 9 axes; asking for all of them would leave nothing to score.
    model = PCA(0.999999).fit(rows(10, 48))
    assert len(model.components_) == 8
    assert model.decision_scores_.max() > 1e-3


def test_rows_on_a_line_are_refused():
    line = np.linspace(0, 1, 20, dtype=np.float32)[:, None] * np.ones(4, np.float32)
    with pytest.raises(DataError, match="1 axis only"):
        PCA().fit(line)


def test_offsets_do_not_cost_accuracy():
    offset = np.float32(2000.0)
    expected, _ = sklearn_residual(TRAIN + offset, TEST + offset, 0.9)
    ours = PCA(0.9).fit(TRAIN + offset).decision_function(TEST + offset)
    np.testing.assert_allclose(ours, expected, rtol=1e-5)


def test_odd_rows_leave_the_subspace():
    model = PCA(0.9).fit(TRAIN)
    assert model.decision_function(odd_rows()).min() > 10 * model.decision_scores_.max()


@pytest.mark.parametrize("n_components", [0, 1.0, -0.5, "all", True])
def test_bad_number_of_components(n_components):
    with pytest.raises(UserError, match="n_components"):
        PCA(n_components).fit(TRAIN)


def test_bad_choices():
    with pytest.raises(UserError, match="statistic"):
        PCA(statistic="t2").fit(TRAIN)
    with pytest.raises(UserError, match="solver"):
        PCA(solver="arpack").fit(TRAIN)
