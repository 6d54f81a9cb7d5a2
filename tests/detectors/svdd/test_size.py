"""A head takes the same steps on batches of the same size, whatever the size of the corpus."""

import time

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from loopjax.detectors.svdd.estimator import DeepSVDD
from tests.detectors.small import blocks_of

WIDTH = 256
NETWORKS = ["standard", "residual"]


def corpus(count: int, seed: int = 0) -> np.ndarray:
    """Rows around 200 fixed ones, so that more rows say nothing new."""
    mixing = np.random.default_rng(99).normal(size=(16, WIDTH))
    base = np.random.default_rng(1).normal(size=(200, 16)) @ mixing
    rng = np.random.default_rng(seed)
    picked = base[rng.permutation(np.arange(count) % 200)]
    return (picked + 0.2 * rng.normal(size=(count, WIDTH))).astype(np.float32)


def auroc(detector: DeepSVDD) -> float:
    """Of anomalies that take a twentieth of their columns from another row."""
    normal, other, third = corpus(1000, 7), corpus(1000, 8), corpus(1000, 9)
    mixed = np.where(np.random.default_rng(3).random(WIDTH) < 0.05, other, third)
    rows = np.concatenate([normal, mixed])
    return float(roc_auc_score(np.repeat([0, 1], 1000), detector.decision_function(rows)))


def fit(network: str, count: int) -> DeepSVDD:
    fitted = DeepSVDD(network).fit(corpus(count))
    assert fitted.latent_shrinkage_ > 0.01
    return fitted


@pytest.fixture(scope="module")
def at_200_rows():
    return {network: auroc(fit(network, 200)) for network in NETWORKS}


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("count", [400, 20_000, pytest.param(200_000, marks=pytest.mark.slow)])
def test_a_large_corpus_detects_what_a_small_one_does(network, count, at_200_rows):
    assert 0.6 < at_200_rows[network] < 0.9  # neither chance nor too easy to show a drift
    assert auroc(fit(network, count)) == pytest.approx(at_200_rows[network], abs=0.02)


@pytest.mark.slow
def test_time_grows_no_faster_than_the_rows():
    seconds = {}
    for count in (20_000, 200_000):
        x, start = corpus(count), time.monotonic()
        DeepSVDD().fit(x)
        seconds[count] = time.monotonic() - start
    assert seconds[200_000] <= 12 * seconds[20_000]


def test_a_large_corpus_is_a_sample_however_it_is_given(monkeypatch):
    x = corpus(2000)[:, :8]
    blocks = blocks_of(x, 300)
    recipe = {"hidden_dims": (4, 2), "pretrain_epochs": 2, "epochs": 2}
    whole, streamed = (DeepSVDD(**recipe).fit(data) for data in (x, blocks))
    monkeypatch.setattr("loopjax.detectors.svdd.fit._WHOLE", 100)
    seen_only = DeepSVDD(**recipe).fit(x)
    # Four epochs of five batches of 32.
    assert len(whole.train_rows_) == 640 == len(set(whole.train_rows_))
    for other in (streamed, seen_only):
        np.testing.assert_array_equal(other.train_rows_, whole.train_rows_)
        np.testing.assert_allclose(other.decision_scores_, whole.decision_scores_, rtol=1e-4)


@pytest.mark.parametrize("compat", ["reference", "reference-true-split"])
def test_the_references_batches_stay_as_they_are(compat):
    config = DeepSVDD(compat=compat).training_config(16)
    assert (config.batch_size, config.steps_per_epoch) == (32, None)
