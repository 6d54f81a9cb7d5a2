import numpy as np
import pytest

from loopjax.detectors import make_detector
from loopjax.detectors.crossfit import copy_folds, fit_and_cross_fit
from loopjax.detectors.rows import DataError
from loopjax.errors import UserError
from loopjax.evaluation.conformal import (
    conformal_p_values,
    cross_conformal_p_values,
    discoveries,
    require_attainable,
)
from tests.detectors.small import DETECTORS, rows


@pytest.mark.parametrize("kind", DETECTORS)
def test_the_flagged_fraction_of_new_normals_is_the_one_asked_for(kind):
    detector = DETECTORS[kind]()
    (found,) = fit_and_cross_fit([detector], rows(500))
    new = detector.decision_function(rows(400, seed=1))
    assert 0.02 <= np.mean(new > detector.threshold_) <= 0.09
    # One threshold, one percentile, everywhere.
    np.testing.assert_array_equal(detector.decision_scores_, found.scores)
    assert np.mean(found.scores > detector.threshold_) == pytest.approx(0.05)
    assert np.median(detector.percentile(new)) == pytest.approx(50, abs=15)


def test_every_row_is_scored_by_a_model_that_did_not_see_it():
    # PCA with more columns than rows reproduces what it saw and nothing else.
    x = rows(40, width=64)
    detector = make_detector("pca", n_components=30)
    (found,) = fit_and_cross_fit([detector], x)
    seen = make_detector("pca", n_components=30).fit(x).decision_scores_
    assert np.median(found.scores) > 1.5 * np.median(seen)
    for fold in range(5):
        held_out = found.folds == fold
        model = make_detector("pca", n_components=30).fit(x[~held_out])
        ratio = found.scores[held_out] / model.decision_function(x[held_out])
        assert np.ptp(ratio) <= 1e-9 * ratio[0]


def test_rankings_find_anomalies_that_were_trained_on():
    x = np.concatenate([rows(60, width=64), 2.0 * rows(4, width=64, seed=5)[:, ::-1]])
    detector = make_detector("mahalanobis")
    (found,) = fit_and_cross_fit([detector], x)
    assert set(np.argsort(-found.scores)[:4]) == {60, 61, 62, 63}


def test_copies_share_a_fold():
    x = rows(300)
    x[100:110] = x[:10]  # equal
    x[110:120] = x[10:20] + 1e-4  # nearly equal
    folds = copy_folds(x + 1e3)  # near-copies whatever the origin
    for a, b in [(i, i + 100) for i in range(20)]:
        assert folds[a] == folds[b]
    assert np.bincount(folds).tolist() == [60] * 5
    (found,) = fit_and_cross_fit([make_detector("knn")], x)
    assert found.scores.min() > 0.1  # no row meets its copy


def test_too_few_different_rows():
    with pytest.raises(DataError, match="copies of 4 different ones"):
        copy_folds(np.repeat(rows(4), 10, axis=0))
    with pytest.raises(DataError, match="holds 30 of 40"):
        copy_folds(np.concatenate([np.repeat(rows(1), 30, axis=0), rows(10, seed=1)]))


def test_rows_of_one_number_are_copies_where_they_are_equal():
    folds = copy_folds(np.float32([[1], [2], [2], [3], [4], [5]]), 3)
    assert folds[1] == folds[2] and len(np.unique(folds)) == 3


def test_seeds_of_heads_train_with_their_folds():
    heads = [DETECTORS["deep-svdd"]().set_params(random_state=seed) for seed in (0, 1)]
    found = fit_and_cross_fit(heads, rows(100))
    alone = DETECTORS["deep-svdd"]()
    fit_and_cross_fit([alone], rows(100))
    np.testing.assert_allclose(found[0].scores, alone.decision_scores_, rtol=1e-4)
    assert not np.allclose(found[1].scores, found[0].scores, rtol=0.01)


@pytest.mark.parametrize("kind", ["knn", "pca", "mahalanobis", "isolation-forest"])
def test_false_positive_rates_on_generated_normals(kind):
    detector = DETECTORS[kind]()
    fit_and_cross_fit([detector], rows(1000))
    p_values = detector.p_value(detector.decision_function(rows(2000, seed=7)))
    for rate in (0.01, 0.05, 0.1):
        sd = np.sqrt(rate * (1 - rate) * (1 / 1000 + 1 / 2000))
        assert abs(np.mean(p_values <= rate) - rate) <= 3 * sd


def test_p_values_of_a_corpus_are_ranks():
    assert cross_conformal_p_values(np.array([3.0, 1.0, 2.0, 3.0])).tolist() == [
        0.5,
        1.0,
        0.75,
        0.5,
    ]
    assert conformal_p_values(np.arange(99), np.array([98.5, -1.0])).tolist() == [0.01, 1.0]


@pytest.mark.parametrize("rate", [0, 1, -1, 5, float("nan")])
def test_impossible_rates_are_refused(rate):
    with pytest.raises(UserError, match="expected between 0 and 1"):
        require_attainable(rate, 1000)
    with pytest.raises(UserError, match="expected between 0 and 1"):
        discoveries(np.array([0.5]), rate)


def test_a_rate_says_how_many_rows_it_needs():
    with pytest.raises(UserError, match=r"0\.01 needs 99 held-out normal loops; there are 16"):
        require_attainable(0.01, 16)
    require_attainable(0.01, 99)
    assert conformal_p_values(np.zeros(99), np.ones(1))[0] <= 0.01


def test_benjamini_hochberg_keeps_the_false_discovery_rate():
    rng = np.random.default_rng(0)
    wrong = []
    for _ in range(200):
        calibration, normal = rng.normal(size=2000), rng.normal(size=180)
        scores = np.r_[normal, rng.normal(4.0, 1.0, 20)]
        flagged = discoveries(conformal_p_values(calibration, scores), 0.1)
        wrong.append(flagged[:180].sum() / max(flagged.sum(), 1))
        assert flagged[180:].sum() >= 5
    assert np.mean(wrong) <= 0.12
