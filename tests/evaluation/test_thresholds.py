import numpy as np
import pytest

from loopjax.errors import UserError
from loopjax.evaluation.thresholds import score_threshold


def normal_scores(n, seed=0):
    return np.random.default_rng(seed).lognormal(-6.0, 0.7, n)


def test_quantile_and_sigma_thresholds():
    scores = np.arange(1.0, 101.0)
    assert score_threshold(scores) == pytest.approx(np.quantile(scores, 0.95))
    assert score_threshold(scores, "sigma", sigma=2.0) == pytest.approx(
        scores.mean() + 2 * scores.std()
    )


def test_boxcox_threshold_is_one_sd_on_the_log_scale_by_default():
    scores = normal_scores(5000)
    logs = np.log(scores)
    assert score_threshold(scores, "boxcox") == pytest.approx(np.exp(logs.mean() + logs.std()))
    with pytest.raises(UserError, match="above 0"):
        score_threshold([0.0, 1.0], "boxcox")


@pytest.mark.parametrize("bad", [[], [1.0, np.nan], [[1.0, 2.0]], [np.inf]])
def test_scores_that_are_no_numbers_are_refused(bad):
    with pytest.raises(UserError):
        score_threshold(bad)


def test_unknown_method_is_named():
    with pytest.raises(UserError, match="quantil"):
        score_threshold([1.0], "quantil")  # type: ignore[arg-type]
