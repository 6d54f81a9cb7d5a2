import numpy as np
import pytest
from scipy.stats import spearmanr

from loopjax.detectors import detector_kinds, make_detector
from loopjax.detectors.isolation_forest import IsolationForest
from loopjax.detectors.knn import KNN
from loopjax.detectors.pca import PCA
from loopjax.detectors.rows import DataError, RowBlocks
from loopjax.errors import ModelCheckError, UserError
from tests.detectors.small import DETECTORS, blocks_of, odd_rows, rows

SAME_ROWS = r"identical|point the same way|collapsed"


@pytest.fixture(scope="module")
def fitted():
    return {kind: make().fit(rows()) for kind, make in DETECTORS.items()}


@pytest.fixture(params=DETECTORS)
def kind(request):
    return request.param


def test_every_kind_is_covered():
    assert set(DETECTORS) == set(detector_kinds())


def test_odd_rows_score_higher(fitted, kind):
    normal = fitted[kind].decision_function(rows(seed=1))
    assert np.median(fitted[kind].decision_function(odd_rows())) > np.quantile(normal, 0.95)
    assert normal.dtype == np.float64 and normal.shape == (60,)


def test_fit_is_deterministic(fitted, kind):
    again = DETECTORS[kind]().fit(rows())
    np.testing.assert_array_equal(again.decision_scores_, fitted[kind].decision_scores_)


def test_score_does_not_depend_on_company(fitted, kind):
    x = rows(300, seed=2)
    together = fitted[kind].decision_function(x)
    alone = np.concatenate([fitted[kind].decision_function(x[i : i + 7]) for i in range(0, 300, 7)])
    np.testing.assert_allclose(alone, together, rtol=1e-6)


def test_threshold_and_prediction(fitted, kind):
    detector = fitted[kind]
    assert detector.threshold_ == pytest.approx(np.quantile(detector.decision_scores_, 0.95))
    predicted = detector.predict(odd_rows())
    assert predicted.dtype == np.int64 and set(predicted) <= {-1, 1}
    np.testing.assert_array_equal(
        predicted == -1, detector.decision_function(odd_rows()) > detector.threshold_
    )
    np.testing.assert_array_equal(
        detector.score_samples(rows()), detector.decision_function(rows())
    )


def test_row_with_nan_is_named(kind):
    x = rows()
    x[17, 3] = np.nan
    x[20, 0] = np.inf
    with pytest.raises(DataError, match=r"NaN or infinity in 2 of 60 rows \(first: row 17\)"):
        DETECTORS[kind]().fit(x)


def test_row_with_infinity_is_refused_at_scoring(fitted, kind):
    x = rows()
    x[5] = np.inf
    with pytest.raises(DataError, match="row 5"):
        fitted[kind].decision_function(x)


def test_values_whose_squares_overflow_are_refused(fitted, kind):
    with pytest.raises(DataError, match=r"magnitudes above 1e\+15 in 60 of 60 rows"):
        DETECTORS[kind]().fit(rows() * 1e30)
    with pytest.raises(DataError, match="magnitudes above"):
        fitted[kind].decision_function(odd_rows() * 1e20)
    largest = fitted[kind].decision_function(np.full((1, 16), 1e15))
    assert np.isfinite(largest).all()


def test_no_rows_are_refused(fitted, kind):
    for call in (DETECTORS[kind]().fit, fitted[kind].decision_function):
        with pytest.raises(DataError, match=r"0 sample\(s\)"):
            call(np.zeros((0, 16)))


def test_a_zero_row_has_a_finite_score(fitted, kind):
    assert np.isfinite(fitted[kind].decision_function(np.zeros((1, 16)))).all()


def test_rows_without_any_variance_never_score_silently(kind):
    with pytest.raises((DataError, ModelCheckError), match=f"{SAME_ROWS}|mean of the rows is zero"):
        DETECTORS[kind]().fit(np.zeros((40, 16)))


def test_wrong_width_is_refused(fitted, kind):
    with pytest.raises(DataError, match=r"15 features.*16"):
        fitted[kind].decision_function(rows()[:, :15])


@pytest.mark.parametrize("count", [1, 2])
def test_too_few_rows(kind, count):
    # Two rows suffice where the score of each against the other is defined.
    possible = count == 2 and kind in ("isolation-forest", "mean-cosine")
    if possible:
        assert np.isfinite(DETECTORS[kind]().fit(rows(count)).decision_scores_).all()
    else:
        with pytest.raises((DataError, ModelCheckError)):
            DETECTORS[kind]().fit(rows(count))


def test_identical_rows_never_score_silently(kind):
    with pytest.raises((DataError, ModelCheckError), match=SAME_ROWS):
        DETECTORS[kind]().fit(np.repeat(rows(1), 40, axis=0))


@pytest.mark.parametrize("scale", [1.0, 1e-3])
def test_an_offset_that_float32_cannot_hold_changes_nothing(kind, scale):
    # Float32 steps by 8 at 1e8. Deep SVDD has an origin of its own, so both are centered.
    x, new = rows(80).astype(np.float64) * scale, rows(30, seed=1) * scale
    x, new = x - x.mean(axis=0), new - x.mean(axis=0)
    offset = 1e8 * np.random.default_rng(0).choice([-1.0, 0.5, 1.0], 16)
    near, far = DETECTORS[kind](), DETECTORS[kind]()
    if kind == "mean-cosine":
        # A direction depends on the origin: from so far away all rows lie in the same one.
        with pytest.raises(DataError, match="point the same way"):
            far.fit(x + offset)
        return
    near.fit(x), far.fit(x + offset)
    # What is left of float64 at 1e8.
    tolerance = {"rtol": 1e-3 if scale == 1.0 else 0.05}
    np.testing.assert_allclose(far.decision_scores_, near.decision_scores_, **tolerance)
    np.testing.assert_allclose(
        far.decision_function(new + offset), near.decision_function(new), **tolerance
    )
    assert far.threshold_ == pytest.approx(near.threshold_, rel=tolerance["rtol"])
    blocks = DETECTORS[kind]()
    if kind != "deep-svdd":  # streams its batches in another order
        blocks.fit(blocks_of(x + offset))
        np.testing.assert_allclose(blocks.decision_scores_, near.decision_scores_, **tolerance)


@pytest.mark.parametrize("scale", [1e-20, 1e-7, 1e13])
def test_rows_of_any_scale_are_told_apart_or_refused(kind, scale):
    x, new = rows().astype(np.float64), np.concatenate([rows(30, seed=1), odd_rows()])
    detector = DETECTORS[kind]()
    if kind == "deep-svdd" and scale < 1:
        with pytest.raises(DataError, match="BatchNorm takes for constant"):
            detector.fit(x * scale)
        return
    scores = detector.fit(x * scale).decision_function(new * scale)
    expected = DETECTORS[kind]().fit(x).decision_function(new)
    assert spearmanr(scores, expected).statistic > 0.98


def test_constant_columns_are_harmless(kind):
    x = rows()
    x[:, 4] = 7.0
    x[:, 9] = 0.0
    detector = DETECTORS[kind]().fit(x)
    assert np.isfinite(detector.decision_scores_).all()
    assert np.isfinite(detector.decision_function(odd_rows())).all()


def test_p_values_are_conformal(fitted):
    detector = fitted["pca"].calibrate(rows(99, seed=4))
    calibration = detector.calibration_scores_
    assert detector.p_value([calibration.max() + 1.0])[0] == pytest.approx(1 / 100)
    assert detector.p_value([calibration.min() - 1.0])[0] == 1.0
    assert detector.p_value([calibration[49]])[0] == pytest.approx((1 + 50) / 100)


def test_p_value_without_calibration():
    with pytest.raises(UserError, match="calibrate"):
        PCA().fit(rows()).p_value([1.0])


def test_refitting_forgets_the_calibration():
    detector = PCA().fit(rows()).calibrate(rows(seed=1)).fit(rows(seed=2))
    assert not hasattr(detector, "calibration_scores_")


def test_percentile(fitted):
    scores = fitted["knn"].decision_scores_
    assert fitted["knn"].percentile([scores.max(), scores.min() - 1]).tolist() == [100.0, 0.0]
    assert fitted["knn"].percentile([np.median(scores)])[0] == pytest.approx(50, abs=2)


@pytest.mark.parametrize("contamination", [0.0, 0.5, -1])
def test_contamination_out_of_range(kind, contamination):
    with pytest.raises(UserError, match="contamination"):
        DETECTORS[kind]().set_params(contamination=contamination).fit(rows())


def test_make_detector():
    detector = make_detector("knn", n_neighbors=3)
    assert isinstance(detector, KNN) and detector.n_neighbors == 3
    with pytest.raises(UserError, match=r"unknown detector 'svm'.*knn"):
        make_detector("svm")
    with pytest.raises(UserError, match=r"no parameter k;.*n_neighbors"):
        make_detector("knn", k=3)


def test_row_blocks_give_what_the_matrix_gives(kind):
    if kind == "deep-svdd":
        pytest.skip("streams its batches in another order; see test_streaming.py")
    x = rows(80)
    whole, streamed = DETECTORS[kind]().fit(x), DETECTORS[kind]().fit(blocks_of(x))
    np.testing.assert_allclose(streamed.decision_scores_, whole.decision_scores_, rtol=1e-5)
    np.testing.assert_allclose(
        streamed.decision_function(blocks_of(odd_rows(), 5)),
        whole.decision_function(odd_rows()),
        rtol=1e-5,
    )


def test_row_blocks_are_checked():
    x = rows(30)
    x[25, 1] = np.nan
    with pytest.raises(DataError, match="row 25"):
        PCA().fit(blocks_of(x))
    with pytest.raises(DataError, match=r"\(30, 16\); 31 rows"):
        PCA().fit(RowBlocks(lambda numbers: [rows(30)], np.array([31]), 16))
    with pytest.raises(DataError, match="16 features"):
        PCA().fit(RowBlocks(lambda numbers: [rows(30, 8)], np.array([30]), 16))


def test_unfitted_detector_cannot_score():
    with pytest.raises(ValueError, match="not fitted"):
        IsolationForest().decision_function(rows())
