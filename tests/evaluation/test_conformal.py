import numpy as np
import pytest

from loopjax.errors import UserError
from loopjax.evaluation.conformal import conformal_p_values
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
