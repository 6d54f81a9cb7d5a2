import csv
import json
from pathlib import Path

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics

from loopjax.errors import UserError
from loopjax.evaluation import metrics as evaluate

SHARED = Path(__file__).parents[3] / "shared"


def normal_scores(n, seed=0):
    return np.random.default_rng(seed).lognormal(-6.0, 0.7, n)


def test_quantile_and_sigma_thresholds():
    scores = np.arange(1.0, 101.0)
    assert evaluate.thresholds(scores) == pytest.approx(np.quantile(scores, 0.95))
    assert evaluate.thresholds(scores, "sigma", sigma=2.0) == pytest.approx(
        scores.mean() + 2 * scores.std()
    )


def test_boxcox_threshold_is_one_sd_on_the_log_scale_by_default():
    scores = normal_scores(5000)
    logs = np.log(scores)
    assert evaluate.thresholds(scores, "boxcox") == pytest.approx(np.exp(logs.mean() + logs.std()))
    with pytest.raises(UserError, match="above 0"):
        evaluate.thresholds([0.0, 1.0], "boxcox")


def test_conformal_threshold_and_p_value_agree_exactly():
    calibration = np.round(normal_scores(97, 1), 4)  # rounded: ties must not break the agreement
    scores = np.round(np.r_[normal_scores(500, 2), calibration], 4)
    for rate in (0.02, 0.05, 0.1, 0.37):
        threshold = evaluate.thresholds(
            scores, "conformal", calibration_scores=calibration, target_fpr=rate
        )
        p = evaluate.conformal_p_values(calibration, scores)
        np.testing.assert_array_equal(scores > threshold, p <= rate)


def test_conformal_rate_is_kept_on_new_normals():
    flagged = []
    for seed in range(200):
        calibration, fresh = normal_scores(99, seed), normal_scores(200, 10_000 + seed)
        flagged.append(np.mean(evaluate.conformal_p_values(calibration, fresh) <= 0.05))
    assert np.mean(flagged) == pytest.approx(0.05, abs=0.005)


def test_conformal_p_value_floor_and_too_small_calibration():
    assert evaluate.conformal_p_values([1.0, 2.0, 3.0], [99.0])[0] == pytest.approx(1 / 4)
    with pytest.raises(UserError, match="needs 99 held-out"):
        evaluate.thresholds(
            [1.0], "conformal", calibration_scores=normal_scores(20), target_fpr=0.01
        )


@pytest.mark.parametrize("bad", [[], [1.0, np.nan], [[1.0, 2.0]], [np.inf]])
def test_scores_that_cannot_be_judged_are_refused(bad):
    with pytest.raises(UserError):
        evaluate.thresholds(bad)


def test_unknown_method_is_named():
    with pytest.raises(UserError, match="quantil"):
        evaluate.thresholds([1.0], "quantil")  # type: ignore[arg-type]


def test_separation_definitions():
    scores = np.r_[np.arange(1.0, 96.0), [1000.0, 1001.0, 1002.0, 1003.0, 1004.0]]
    row = evaluate.separation(scores, scores)
    assert row["gap_ratio"] == pytest.approx(1002.0 / 48.0)
    mad = np.median(np.abs(scores - np.median(scores)))
    assert row["robust_z_top5"] == pytest.approx((1002.0 - 50.5) / mad)
    assert row["dynamic_range_log10"] == pytest.approx(np.log10(np.quantile(scores, 0.995) / 50.5))
    assert row["share_above_threshold"] == pytest.approx(0.05)
    assert row["ks_train_held_out"] == 0.0


def test_separation_of_constant_scores_is_null_not_nan():
    row = evaluate.separation(np.ones(50))
    assert row["gap_ratio"] is None
    assert row["robust_z_top5"] is None
    json.dumps(row, allow_nan=False)


@pytest.mark.skipif(not SHARED.exists(), reason="published score files are not here")
@pytest.mark.parametrize("part", ["bass", "guitar"])
def test_separation_equals_the_reference_on_published_scores(part):
    with (SHARED / f"data/musicradar-bass-392/published_scores_{part}.csv").open() as file:
        scores = [float(row["anomaly_score"]) for row in csv.DictReader(file)]
    reference = json.loads((SHARED / "facts/paper_reference.json").read_text())
    wanted = reference["published"]["score_files"][part]
    row = evaluate.separation(scores)
    assert row["gap_ratio"] == pytest.approx(wanted["gap_ratio"], rel=1e-12)
    assert row["robust_z_top5"] == pytest.approx(wanted["robust_z"], rel=1e-12)
    assert row["dynamic_range_log10"] == pytest.approx(wanted["log_range"], rel=1e-12)
    assert row["threshold"] == pytest.approx(wanted["q95"], rel=1e-12)


def test_labeled_point_estimates_and_interval():
    rng = np.random.default_rng(3)
    labels = np.r_[np.zeros(150, int), np.ones(60, int)]
    scores = np.round(rng.normal(labels * 1.2), 1)  # rounded: many ties
    row = evaluate.labeled(labels, scores, bootstrap=400, seed=1)
    assert row["auroc"] == pytest.approx(metrics.roc_auc_score(labels, scores))
    for name in ("auroc", "pauc_0.1", "average_precision"):
        assert row[f"{name}_low"] < row[name] < row[f"{name}_high"]
    # Hanley & McNeil's standard error of an AUROC: the bootstrap must be of that size
    auroc = row["auroc"]
    q1, q2 = auroc / (2 - auroc), 2 * auroc**2 / (1 + auroc)
    variance = (auroc * (1 - auroc) + 59 * (q1 - auroc**2) + 149 * (q2 - auroc**2)) / (150 * 60)
    half_width = (row["auroc_high"] - row["auroc_low"]) / 2
    assert half_width == pytest.approx(1.96 * np.sqrt(variance), rel=0.2)
    assert row == evaluate.labeled(labels, scores, bootstrap=400, seed=1)


def test_bootstrap_curves_equal_scikit_learn_on_every_resample(monkeypatch):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 80).astype(bool)
    scores = np.round(rng.normal(labels * 0.8), 1)
    drawn = []

    class Recorder:
        def multinomial(self, n, share, size):
            drawn.append(np.random.default_rng(n).multinomial(n, share, size=size))
            return drawn[-1]

    got = evaluate._bootstrap(labels, scores, 25, Recorder())
    weights = np.empty((25, len(labels)))
    weights[:, labels], weights[:, ~labels] = drawn
    for i, weight in enumerate(weights):
        kept = weight > 0
        wanted = {
            "auroc": metrics.roc_auc_score(labels[kept], scores[kept], sample_weight=weight[kept]),
            "pauc_0.1": metrics.roc_auc_score(
                labels[kept], scores[kept], sample_weight=weight[kept], max_fpr=0.1
            ),
            "average_precision": metrics.average_precision_score(
                labels[kept], scores[kept], sample_weight=weight[kept]
            ),
        }
        assert {name: got[name][i] for name in wanted} == pytest.approx(wanted, abs=1e-9)


def test_labeled_needs_both_classes():
    with pytest.raises(UserError, match="all labels are equal"):
        evaluate.labeled([1, 1], [0.1, 0.2])


def test_welch_tests_on_three_scales():
    base = normal_scores(300)
    other = 1000 * normal_scores(300, 1)
    scores = {"a": base, "a-in-other-units": other, "zero": base - base.min()}
    rows = evaluate.welch_tests(scores, reference_scores=scores)
    pick = {(r["a"], r["b"], r["scale"]): r for r in rows}
    raw = pick["a", "a-in-other-units", "raw"]
    wanted = stats.ttest_ind(base, other, equal_var=False)
    assert raw["p_value"] == pytest.approx(wanted.pvalue)
    assert raw["p_value"] < 1e-20  # only the units differ ...
    assert pick["a", "a-in-other-units", "log"]["p_value"] > 0.01  # ... and here they are gone
    assert pick["a", "a-in-other-units", "percentile"]["p_value"] > 0.01
    assert "at or below 0" in pick["a", "zero", "log"]["note"]
    assert raw["cliffs_delta"] == pytest.approx(
        2 * metrics.roc_auc_score(np.r_[np.zeros(300), np.ones(300)], np.r_[other, base]) - 1
    )


def test_holm_against_a_worked_example():
    np.testing.assert_allclose(
        evaluate.holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02], atol=1e-12
    )


def test_seed_interval():
    row = evaluate.seed_interval([0.8, 0.82, 0.84])
    assert (row["mean"], row["min"], row["max"]) == pytest.approx((0.82, 0.8, 0.84))
    assert row["high"] - row["mean"] == pytest.approx(4.3027 * 0.02 / np.sqrt(3), rel=1e-4)
    assert evaluate.seed_interval([0.5])["sd"] is None


def test_per_group():
    rows = evaluate.per_group(
        ["b", "a", "a", "b"], [1.0, 5.0, 7.0, 3.0], threshold=2.0, labels=[0, 1, 1, 1]
    )
    assert [row["group"] for row in rows] == ["a", "b"]
    assert rows[0]["auroc"] is None
    assert rows[1] == {
        "group": "b", "n": 2, "median": 2.0, "q25": 1.5, "q75": 2.5,
        "n_flagged": 1, "share_flagged": 0.5, "n_anomaly": 1, "auroc": 1.0,
    }  # fmt: skip


@pytest.mark.parametrize("protocol", ["P1", "P3"])
def test_protocol_splits(protocol):
    groups = ["x"] * 10 + ["y"] * 20 + ["z"] * 4 + ["a"]
    splits = list(evaluate.protocol_splits(groups, protocol, seed=4))
    # Four loops and one loop are nobody's normal class, but odd all the same.
    assert [name for name, *_ in splits] == (
        ["x", "y"] if protocol == "P1" else ["a", "x", "y", "z"]
    )
    for name, train, test, labels in splits:
        is_own = np.array(groups) == name
        normal = is_own if protocol == "P1" else ~is_own
        assert len(train) == int(0.8 * normal.sum())
        assert normal[train].all()
        np.testing.assert_array_equal(labels, ~normal[test])
        assert sorted([*train, *test]) == list(range(35))
    again = list(evaluate.protocol_splits(groups, protocol, seed=4))
    np.testing.assert_array_equal(splits[0][1], again[0][1])
    with pytest.raises(UserError, match="two groups"):
        list(evaluate.protocol_splits(["x", "x"], protocol, seed=0))


def test_protocol_p1_needs_a_group_to_fit_on():
    with pytest.raises(UserError, match="no group leaves 5 normal loops"):
        list(evaluate.protocol_splits(["x"] * 6 + ["y"] * 5, "P1", seed=0))


def test_compare_with_published():
    reference = {
        "detectors": {"AE-SVDD": ["ae", "deep-svdd"]},
        "entries": [
            {"measure": "auroc_P1", "embeddings": "nff", "detector": "AE-SVDD",
             "published": None, "reproduced": 0.916, "reproduced_low": 0.90,
             "reproduced_high": 0.93, "reproduced_seeds": 5},
            {"measure": "threshold_q95", "embeddings": "nff", "detector": "AE-SVDD",
             "published": 0.012, "published_how": "figure"},
        ],
    }  # fmt: skip
    rows = [
        {"measure": "auroc_P1", "embeddings": "nff", "detector": "AE", "value": 0.91},
        {"measure": "threshold_q95", "embeddings": "nff", "detector": "deep-svdd", "value": 0.006},
        {"measure": "auroc_P1", "embeddings": "nff", "detector": "mine", "value": 0.5},
    ]
    table = evaluate.compare_with_published(rows, reference)
    assert [r["reproduced"] for r in table] == [0.916, None, None]
    assert [r["inside_range"] for r in table] == [True, None, None]
    assert [r["ratio"] for r in table] == [None, pytest.approx(0.5), None]
