import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score

from loopjax.evaluation.statistics import holm, seed_interval, welch_tests


def normal_scores(n, seed=0):
    return np.random.default_rng(seed).lognormal(-6.0, 0.7, n)


def test_welch_tests_on_three_scales():
    base = normal_scores(300)
    other = 1000 * normal_scores(300, 1)
    scores = {"a": base, "a-in-other-units": other, "zero": base - base.min()}
    rows = welch_tests(scores, reference_scores=scores)
    pick = {(r.a, r.b, r.scale): r for r in rows}
    raw = pick["a", "a-in-other-units", "raw"]
    wanted = stats.ttest_ind(base, other, equal_var=False)
    assert raw.p_value == pytest.approx(wanted.pvalue)
    assert raw.p_value < 1e-20  # only the units differ ...
    assert pick["a", "a-in-other-units", "log"].p_value > 0.01  # ... and here they are gone
    assert pick["a", "a-in-other-units", "percentile"].p_value > 0.01
    assert "at or below 0" in pick["a", "zero", "log"].note
    assert raw.cliffs_delta == pytest.approx(
        2 * roc_auc_score(np.r_[np.zeros(300), np.ones(300)], np.r_[other, base]) - 1
    )


def test_holm_against_a_worked_example():
    np.testing.assert_allclose(
        holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02], atol=1e-12
    )


def test_seed_interval():
    row = seed_interval([0.8, 0.82, 0.84])
    assert (row.mean, row.min, row.max) == pytest.approx((0.82, 0.8, 0.84))
    assert row.high - row.mean == pytest.approx(4.3027 * 0.02 / np.sqrt(3), rel=1e-4)
    assert seed_interval([0.5]).sd is None
