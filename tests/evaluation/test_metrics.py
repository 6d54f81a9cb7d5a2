import numpy as np
import pytest
from sklearn import metrics as sk_metrics

from loopjax.errors import UserError
from loopjax.evaluation import metrics
from loopjax.evaluation.metrics import group_rows, labeled_metrics


def test_labeled_point_estimates_and_interval():
    rng = np.random.default_rng(3)
    labels = np.r_[np.zeros(150, int), np.ones(60, int)]
    scores = np.round(rng.normal(labels * 1.2), 1)  # rounded: many ties
    row = labeled_metrics(labels, scores, bootstrap=400, seed=1)
    assert row.auroc.value == pytest.approx(sk_metrics.roc_auc_score(labels, scores))
    for estimate in (row.auroc, row.pauc, row.average_precision):
        assert estimate.low < estimate.value < estimate.high
    # Hanley & McNeil's standard error of an AUROC: the bootstrap must be of that size
    auroc = row.auroc.value
    q1, q2 = auroc / (2 - auroc), 2 * auroc**2 / (1 + auroc)
    variance = (auroc * (1 - auroc) + 59 * (q1 - auroc**2) + 149 * (q2 - auroc**2)) / (150 * 60)
    half_width = (row.auroc.high - row.auroc.low) / 2
    assert half_width == pytest.approx(1.96 * np.sqrt(variance), rel=0.2)
    assert row == labeled_metrics(labels, scores, bootstrap=400, seed=1)


def test_bootstrap_curves_equal_scikit_learn_on_every_resample(monkeypatch):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 80).astype(bool)
    scores = np.round(rng.normal(labels * 0.8), 1)
    drawn = []

    class Recorder:
        def multinomial(self, n, chances, size):
            drawn.append(np.random.default_rng(n).multinomial(n, chances, size=size))
            return drawn[-1]

    got = metrics._bootstrap(labels, scores, 25, Recorder())
    weights = np.empty((25, len(labels)))
    weights[:, labels], weights[:, ~labels] = drawn
    for i, weight in enumerate(weights):
        kept = weight > 0
        wanted = {
            "auroc": sk_metrics.roc_auc_score(
                labels[kept], scores[kept], sample_weight=weight[kept]
            ),
            "pauc_0.1": sk_metrics.roc_auc_score(
                labels[kept], scores[kept], sample_weight=weight[kept], max_fpr=0.1
            ),
            "average_precision": sk_metrics.average_precision_score(
                labels[kept], scores[kept], sample_weight=weight[kept]
            ),
        }
        assert {name: got[name][i] for name in wanted} == pytest.approx(wanted, abs=1e-9)


def test_labeled_metrics_need_both_classes():
    with pytest.raises(UserError, match="all labels are equal"):
        labeled_metrics([1, 1], [0.1, 0.2])


def test_group_rows():
    rows = group_rows(
        ["b", "a", "a", "b"], [1.0, 5.0, 7.0, 3.0], threshold=2.0, labels=[0, 1, 1, 1]
    )
    assert [row["group"] for row in rows] == ["a", "b"]
    assert rows[0]["auroc"] is None
    assert rows[1] == {
        "group": "b", "n": 2, "median": 2.0, "q25": 1.5, "q75": 2.5,
        "n_flagged": 1, "fraction_flagged": 0.5, "n_anomaly": 1, "auroc": 1.0,
    }  # fmt: skip
