"""The recipe for a large corpus, run on a small one."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from loopjax.detectors import make_detector
from loopjax.experiment.load import load_config
from tests.detectors.small import odd_rows, rows

CONFIG = Path(__file__).parents[2] / "configs" / "large_corpus.yaml"


@pytest.fixture(scope="module")
def detectors():
    return {d.name: d for d in load_config(CONFIG).detectors}


def test_one_head_has_a_soft_boundary_and_batches_are_spread(detectors):
    params = detectors["soft-boundary"].params
    assert params["objective"] == "soft-boundary" and params["data_parallel"] is True


@pytest.mark.parametrize("name", ["soft-boundary", "one-class", "isolation-forest", "pca", "knn"])
def test_every_detector_of_the_recipe_ranks_anomalies_first(detectors, name):
    config = dataclasses.replace(detectors[name])
    tiny = {"hidden_dims": (8, 4), "batch_size": 64} if config.kind == "deep-svdd" else {}
    fitted = make_detector(config.kind, **{**config.params, **tiny}).fit(rows(300))
    normal = fitted.decision_function(rows(60, seed=1))
    assert np.median(fitted.decision_function(odd_rows())) > np.quantile(normal, 0.95)
    if name == "soft-boundary":
        assert fitted.radius_ > 0
        assert np.mean(fitted.decision_scores_ > fitted.radius_**2) < 0.2
