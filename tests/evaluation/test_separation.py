import csv
import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from loopjax.evaluation.separation import separation

SHARED = Path(__file__).parents[3] / "shared"


def test_separation_definitions():
    scores = np.r_[np.arange(1.0, 96.0), [1000.0, 1001.0, 1002.0, 1003.0, 1004.0]]
    row = separation(scores, scores)
    assert row.gap_ratio == pytest.approx(1002.0 / 48.0)
    mad = np.median(np.abs(scores - np.median(scores)))
    assert row.robust_z_top5 == pytest.approx((1002.0 - 50.5) / mad)
    assert row.dynamic_range_log10 == pytest.approx(np.log10(np.quantile(scores, 0.995) / 50.5))
    assert row.fraction_above_threshold == pytest.approx(0.05)
    assert row.ks_train_held_out == 0.0


def test_separation_of_constant_scores_is_null_not_nan():
    row = separation(np.ones(50))
    assert row.gap_ratio is None
    assert row.robust_z_top5 is None
    json.dumps(dataclasses.asdict(row), allow_nan=False)


@pytest.mark.skipif(not SHARED.exists(), reason="published score files are not here")
@pytest.mark.parametrize("part", ["bass", "guitar"])
def test_separation_equals_the_reference_on_published_scores(part):
    with (SHARED / f"data/musicradar-bass-392/published_scores_{part}.csv").open() as file:
        scores = [float(row["anomaly_score"]) for row in csv.DictReader(file)]
    reference = json.loads((SHARED / "facts/paper_reference.json").read_text())
    wanted = reference["published"]["score_files"][part]
    row = separation(scores)
    assert row.gap_ratio == pytest.approx(wanted["gap_ratio"], rel=1e-12)
    assert row.robust_z_top5 == pytest.approx(wanted["robust_z"], rel=1e-12)
    assert row.dynamic_range_log10 == pytest.approx(wanted["log_range"], rel=1e-12)
    assert row.threshold == pytest.approx(wanted["q95"], rel=1e-12)
