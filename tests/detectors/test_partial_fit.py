"""Rows learned piece by piece are learned as if all had come at once."""

import numpy as np
import pytest

from loopjax.detectors import detector_class, detector_kinds
from loopjax.detectors.base import Detector
from loopjax.detectors.knn import KNN, LocalKNN
from loopjax.detectors.mahalanobis import Mahalanobis
from loopjax.detectors.mean_cosine import MeanCosine
from loopjax.detectors.partial import GROWING, NoPartialFitError
from loopjax.detectors.pca import PCA
from loopjax.detectors.rows import DataError
from loopjax.detectors.storage import load_detector, save_detector
from loopjax.errors import UserError
from tests.detectors.small import DETECTORS, blocks_of, odd_rows, rows

GROWERS = {
    "pca": lambda: PCA(),
    "pca hotelling": lambda: PCA(5, statistic="hotelling"),
    "pca centered": lambda: PCA(standardize=False),
    "mahalanobis": lambda: Mahalanobis(),
    "mahalanobis fixed": lambda: Mahalanobis(shrinkage=0.2),
    "mean-cosine": lambda: MeanCosine(),
    "local-knn": lambda: LocalKNN(),
}
EXACT = {
    "knn": lambda: KNN(),
    "knn cosine": lambda: KNN(metric="cosine"),
    "knn local": lambda: KNN(density_exponent=0.9, max_reference=None),
}


def drifting(width=16):
    """Four batches, of 40, 1, 7 and 90 rows, that do not come from one distribution."""
    parts = [rows(40, width), rows(1, width, seed=1), odd_rows(7, width), 3 * rows(90, width, 2)]
    return [part.astype(np.float32) for part in parts]


def grown(make, parts):
    detector = make()
    for part in parts:
        detector.partial_fit(part)
    return detector


@pytest.mark.parametrize("width", [4, 16, 60], ids=lambda width: f"{width} columns")
@pytest.mark.parametrize("kind", GROWERS)
def test_what_is_learned_is_that_of_one_fit(kind, width):
    parts = drifting(width)
    whole, piecewise = GROWERS[kind]().fit(np.concatenate(parts)), grown(GROWERS[kind], parts)
    new = np.concatenate([rows(30, width, seed=7), odd_rows(5, width)])
    wanted = whole.decision_function(new)
    scale = np.abs(wanted).max()
    np.testing.assert_allclose(piecewise.decision_function(new), wanted, 2e-5, 1e-6 * scale)
    assert piecewise.n_samples_seen_ == whole.n_samples_seen_ == 138
    assert piecewise.decision_scores_.shape == (138,)
    # The last rows were scored by the detector of all rows, as in a fit on all.
    np.testing.assert_allclose(
        piecewise.decision_scores_[-90:], whole.decision_scores_[-90:], 2e-5, 1e-6 * scale
    )


@pytest.mark.parametrize("kind", EXACT)
def test_nearest_neighbors_are_the_same_to_the_bit(kind):
    parts = drifting()
    whole, piecewise = EXACT[kind]().fit(np.concatenate(parts)), grown(EXACT[kind], parts)
    np.testing.assert_array_equal(piecewise.reference_, whole.reference_)
    np.testing.assert_array_equal(piecewise.decision_scores_, whole.decision_scores_)
    assert piecewise.threshold_ == whole.threshold_
    new = rows(30, seed=7)
    np.testing.assert_array_equal(piecewise.decision_function(new), whole.decision_function(new))


def test_local_knn_gives_all_training_scores_anew():
    parts = drifting()
    whole, piecewise = LocalKNN().fit(np.concatenate(parts)), grown(LocalKNN, parts)
    np.testing.assert_allclose(piecewise.decision_scores_, whole.decision_scores_, 1e-4)
    assert piecewise.threshold_ == pytest.approx(whole.threshold_, 1e-4)


@pytest.mark.parametrize("kind", GROWERS)
def test_fewer_rows_than_columns_at_first(kind):
    parts = [rows(9, 40), rows(8, 40, seed=1), rows(60, 40, seed=2)]
    whole, piecewise = GROWERS[kind]().fit(np.concatenate(parts)), grown(GROWERS[kind], parts)
    new = rows(20, 40, seed=3)
    np.testing.assert_allclose(
        piecewise.decision_function(new), whole.decision_function(new), rtol=5e-5
    )


@pytest.mark.parametrize("value", [0.0, 7.3, 1e4])
@pytest.mark.parametrize("kind", ["pca", "local-knn"])
def test_a_constant_column_stays_constant(kind, value):
    parts = drifting()
    for part in parts:
        part[:, 3] = value
    whole, piecewise = GROWERS[kind]().fit(np.concatenate(parts)), grown(GROWERS[kind], parts)
    assert whole.scale_[3] == piecewise.scale_[3] == 1.0
    new = rows(30, seed=7)
    np.testing.assert_allclose(
        piecewise.decision_function(new), whole.decision_function(new), rtol=1e-4
    )


@pytest.mark.parametrize("kind", ["pca", "local-knn"])
def test_a_column_that_was_constant_comes_to_life(kind):
    parts = drifting()
    parts[0][:, 3] = 5.0
    whole, piecewise = GROWERS[kind]().fit(np.concatenate(parts)), grown(GROWERS[kind], parts)
    np.testing.assert_allclose(piecewise.scale_, whole.scale_, rtol=1e-5)


@pytest.mark.parametrize("kind", [*GROWERS, *EXACT])
def test_a_saved_detector_learns_on(kind, tmp_path):
    make, parts = {**GROWERS, **EXACT}[kind], drifting()
    folder = save_detector(make().fit(parts[0]), tmp_path / "model")
    loaded = load_detector(folder).partial_fit(np.concatenate(parts[1:]))
    kept = make().fit(parts[0]).partial_fit(np.concatenate(parts[1:]))
    np.testing.assert_array_equal(loaded.decision_scores_, kept.decision_scores_)
    save_detector(loaded, folder)
    again = load_detector(folder)
    np.testing.assert_array_equal(
        again.decision_function(rows(9, seed=3)), loaded.decision_function(rows(9, seed=3))
    )
    assert again.n_samples_seen_ == 138


@pytest.mark.parametrize("kind", GROWING)
def test_rows_may_come_in_blocks(kind):
    parts = drifting()
    by_blocks = DETECTORS[kind]().fit(parts[0]).partial_fit(blocks_of(parts[3]))
    at_once = DETECTORS[kind]().fit(parts[0]).partial_fit(parts[3])
    np.testing.assert_allclose(by_blocks.decision_scores_, at_once.decision_scores_, rtol=1e-5)


@pytest.mark.parametrize("kind", detector_kinds())
def test_a_detector_has_it_or_says_which_do(kind):
    own = detector_class(kind)._learn_more is not Detector._learn_more
    assert own == (kind in GROWING) == hasattr(DETECTORS[kind](), "partial_fit")
    if not own:
        with pytest.raises(NoPartialFitError, match=r"all rows together.*local-knn") as caught:
            DETECTORS[kind]().partial_fit(rows())
        assert isinstance(caught.value, UserError)


def refused(detector, parts, match):
    detector.fit(parts[0])
    before = detector.decision_function(parts[1]).copy()
    with pytest.raises(UserError, match=match):
        detector.partial_fit(parts[1])
    np.testing.assert_array_equal(detector.decision_function(parts[1]), before)


def test_what_cannot_be_equal_to_a_fit_is_refused():
    parts = [rows(60), rows(60, seed=1)]
    refused(KNN(max_reference=100), parts, "max_reference=100 .* 120 rows.*raise max_reference")
    refused(KNN(max_reference=50), parts, "raise max_reference before the first fit")
    refused(LocalKNN(metric="cosine"), parts, "by cosine keeps no lengths.*metric=")
    refused(PCA(3, solver="randomized"), parts, 'subspace iteration.*solver="exact"')
    fixed = Mahalanobis(shrinkage=0.1).fit(parts[0]).set_params(shrinkage="ledoit-wolf")
    with pytest.raises(UserError, match="fit it on all rows"):
        fixed.partial_fit(parts[1])


def test_a_detector_of_an_earlier_version_says_so(tmp_path):
    old = PCA().fit(rows())
    del old.n_samples_seen_, old.left_out_, old.left_out_variance_
    loaded = load_detector(save_detector(old, tmp_path / "model"))
    with pytest.raises(UserError, match="saved by a version"):
        loaded.partial_fit(rows())


def test_columns_are_checked_by_number_and_name():
    names = [f"e{i}" for i in range(16)]
    pandas = pytest.importorskip("pandas")
    detector = KNN().partial_fit(pandas.DataFrame(rows(), columns=names))
    with pytest.raises(DataError, match="expecting 16"):
        detector.partial_fit(rows(width=12))
    with pytest.raises(DataError, match="feature names"):
        detector.partial_fit(pandas.DataFrame(rows(), columns=names[::-1]))
    with pytest.raises(DataError, match="NaN"):
        detector.partial_fit(np.full((2, 16), np.nan, np.float32))
    assert detector.n_samples_seen_ == 60


def test_an_earlier_calibration_is_forgotten():
    detector = PCA().fit(rows()).calibrate(rows(seed=1)).partial_fit(rows(seed=2))
    with pytest.raises(UserError, match="calibrate"):
        detector.p_value([1.0])
