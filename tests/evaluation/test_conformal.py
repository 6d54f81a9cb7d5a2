import numpy as np
import pytest

from loopjax.errors import UserError
from loopjax.evaluation.conformal import (
    conformal_p_values,
    cross_conformal_p_values,
    discoveries,
    require_attainable,
)
from loopjax.evaluation.thresholds import score_threshold


def normal_scores(n, seed=0):
    return np.random.default_rng(seed).lognormal(-6.0, 0.7, n)


def test_conformal_threshold_and_p_value_agree_exactly():
    calibration = np.round(normal_scores(97, 1), 4)  # rounded: ties must not break the agreement
    scores = np.round(np.r_[normal_scores(500, 2), calibration], 4)
    for rate in (0.02, 0.05, 0.1, 0.37):
        threshold = score_threshold(
            scores, "conformal", calibration_scores=calibration, target_fpr=rate
        )
        p = conformal_p_values(calibration, scores)
        np.testing.assert_array_equal(scores > threshold, p <= rate)


def test_conformal_rate_is_kept_on_new_normals():
    flagged = []
    for seed in range(200):
        calibration, fresh = normal_scores(99, seed), normal_scores(200, 10_000 + seed)
        flagged.append(np.mean(conformal_p_values(calibration, fresh) <= 0.05))
    assert np.mean(flagged) == pytest.approx(0.05, abs=0.005)


def test_conformal_p_value_floor_and_too_small_calibration():
    assert conformal_p_values([1.0, 2.0, 3.0], [99.0])[0] == pytest.approx(1 / 4)
    with pytest.raises(UserError, match="needs 99 held-out"):
        score_threshold([1.0], "conformal", calibration_scores=normal_scores(20), target_fpr=0.01)


@pytest.mark.parametrize("rate", [0.0, 1.0, -1.0, 5.0, np.nan])
def test_rates_that_are_none_are_refused(rate):
    with pytest.raises(UserError, match="between 0 and 1"):
        require_attainable(rate, 100)
    with pytest.raises(UserError, match="between 0 and 1"):
        discoveries([0.1, 0.2], rate)


def test_cross_conformal_values_are_those_among_all_others():
    scores = np.round(normal_scores(60), 4)
    p = cross_conformal_p_values(scores)
    for i in range(60):
        assert p[i] == pytest.approx(conformal_p_values(np.delete(scores, i), scores[i : i + 1])[0])
    assert all(np.mean(p <= a) <= a + 1e-12 for a in (0.01, 0.05, 0.1, 0.5))


def test_discoveries_keep_their_rate():
    wrong = []
    for seed in range(200):
        rng = np.random.default_rng(seed)
        calibration, normal = rng.normal(size=400), rng.normal(size=180)
        p = conformal_p_values(calibration, np.r_[normal, rng.normal(size=20) + 6])
        called = discoveries(p, 0.2)
        wrong.append(called[:180].sum() / max(called.sum(), 1))
    assert np.mean(wrong) == pytest.approx(0.2 * 0.9, abs=0.04)


def test_rows_without_a_p_value_are_never_discoveries():
    called = discoveries([np.nan, 1e-6, np.nan, 0.9], 0.1)
    assert called.tolist() == [False, True, False, False]
    assert not discoveries([np.nan], 0.1).any()
