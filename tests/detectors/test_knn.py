import numpy as np
import pytest
from sklearn.neighbors import NearestNeighbors

from loopjax.detectors.knn import KNN, LocalKNN
from loopjax.detectors.rows import DataError
from loopjax.errors import UserError
from tests.detectors.small import rows


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@pytest.mark.parametrize("k", [1, 5])
def test_equals_sklearn(metric, k, monkeypatch):
    # Small reference blocks, so that candidates are merged over several of them.
    monkeypatch.setattr("loopjax.detectors.nearest._REFERENCE_BLOCK", 32)
    train, test = rows(100) + 50, rows(37, seed=1) + 50
    ours = KNN(k, metric=metric).fit(train)

    def unit(x):
        x = x.astype(np.float64)
        return x / np.linalg.norm(x, axis=1, keepdims=True) if metric == "cosine" else x

    reference = NearestNeighbors(n_neighbors=k).fit(unit(train))
    distances, _ = reference.kneighbors(unit(test))
    tolerance = {"rtol": 1e-5, "atol": 1e-6}
    np.testing.assert_allclose(ours.decision_function(test), distances.mean(axis=1), **tolerance)
    left_out = reference.kneighbors()[0]
    np.testing.assert_allclose(ours.decision_scores_, left_out.mean(axis=1), **tolerance)


def test_rows_that_all_point_the_same_way_have_no_cosine_distances():
    with pytest.raises(DataError, match="point the same way"):
        KNN(metric="cosine").fit(rows().astype(np.float64) + 1e8)


def test_aggregate_max_is_the_kth_distance():
    scores = KNN(4, aggregate="max").fit(rows()).decision_function(rows(9, seed=1))
    expected = NearestNeighbors(n_neighbors=4).fit(rows()).kneighbors(rows(9, seed=1))[0][:, 3]
    np.testing.assert_allclose(scores, expected, rtol=1e-5)


def test_duplicates_of_a_row_count_as_neighbors():
    x = np.concatenate([rows(30), rows(30)[:1]])
    scores = KNN(1).fit(x).decision_scores_
    assert scores[0] == 0.0 and scores[30] == 0.0 and scores[1] > 0


def test_reference_can_be_thinned():
    x = rows(200)
    thinned = KNN(3, max_reference=50).fit(x)
    assert thinned.reference_.shape == (50, 16)
    assert thinned.decision_scores_.min() > 0  # kept rows do not find themselves
    assert thinned.decision_scores_.shape == (200,)


def test_too_few_reference_rows():
    with pytest.raises(DataError, match="n_neighbors=5 needs more than 5"):
        KNN().fit(rows(5))


@pytest.mark.parametrize(
    "wrong", [{"n_neighbors": 0}, {"n_neighbors": 2.5}, {"aggregate": "sum"}, {"metric": "l1"}]
)
def test_bad_parameters(wrong):
    with pytest.raises(UserError, match=next(iter(wrong))):
        KNN(**wrong).fit(rows())


def test_distances_in_local_units_equal_sklearns():
    train, test = rows(80), rows(20, seed=1)
    scale = train.std(axis=0)
    reference = NearestNeighbors(n_neighbors=3).fit(train / scale)
    radii = np.maximum(reference.kneighbors()[0].mean(axis=1), 1e-9) ** 0.9
    every = NearestNeighbors(n_neighbors=80).fit(train / scale)
    distances, indices = every.kneighbors(test / scale)
    wanted = np.sort(distances / radii[indices], axis=1)[:, :3].mean(axis=1)
    np.testing.assert_allclose(LocalKNN().fit(train).decision_function(test), wanted, rtol=1e-4)


@pytest.mark.parametrize("exponent", [-20, 0, 12])
def test_scores_scale_with_the_data(exponent):
    factor = np.float32(2.0 ** (exponent * 3))
    train, test = rows(100), rows(20, seed=1)
    plain = KNN().fit(train)
    scaled = KNN().fit(train * factor)
    np.testing.assert_array_equal(scaled.decision_scores_, plain.decision_scores_ * factor)
    np.testing.assert_array_equal(
        scaled.decision_function(test * factor), plain.decision_function(test) * factor
    )


def test_a_row_beyond_float32_at_the_scale_of_the_others_has_a_finite_score():
    tiny = KNN().fit(rows(50) * np.float32(1e-20))
    far = rows(2, seed=1)
    np.testing.assert_allclose(
        tiny.decision_function(far), np.linalg.norm(far.astype(np.float64), axis=1), rtol=1e-6
    )
