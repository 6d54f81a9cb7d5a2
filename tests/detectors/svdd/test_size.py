"""A head takes the same number of steps whatever the size of the corpus."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from loopjax.detectors.svdd.estimator import DeepSVDD
from loopjax.detectors.svdd.fit import batch_size_for
from tests.detectors.small import blocks_of

WIDTH = 32
SMALL = {"hidden_dims": (64, 32, 16)}


def corpus(count: int, seed: int = 0) -> np.ndarray:
    """Rows around 200 fixed ones, so that more rows say nothing new."""
    mixing = np.random.default_rng(99).normal(size=(8, WIDTH))
    base = np.random.default_rng(1).normal(size=(200, 8)) @ mixing
    rng = np.random.default_rng(seed)
    picked = base[rng.permutation(np.arange(count) % 200)]
    return (picked + 0.05 * rng.normal(size=(count, WIDTH))).astype(np.float32)


def auroc(detector: DeepSVDD) -> float:
    """Of anomalies that leave the plane of the others."""
    stray = np.random.default_rng(3).normal(size=(1000, WIDTH)).astype(np.float32)
    rows = np.concatenate([corpus(1000, 7), corpus(1000, 8) + stray])
    return float(roc_auc_score(np.repeat([0, 1], 1000), detector.decision_function(rows)))


@pytest.mark.parametrize("network", ["standard", "residual"])
@pytest.mark.parametrize("count", [20_000, pytest.param(200_000, marks=pytest.mark.slow)])
def test_a_large_corpus_neither_collapses_nor_detects_less(network, count):
    large = DeepSVDD(network, **SMALL).fit(corpus(count))
    assert large.latent_shrinkage_ > 1e-3
    assert auroc(large) >= auroc(DeepSVDD(network, **SMALL).fit(corpus(400))) - 0.02


def test_batches_grow_so_that_an_epoch_has_ten_steps():
    assert [batch_size_for(n) for n in (10, 320, 321, 1600, 40_960, 10**6)] == [
        32, 32, 40, 160, 4096, 4096,
    ]  # fmt: skip
    limits = [DeepSVDD().training_config(16, n).max_steps_per_epoch for n in (50_000, 60_000)]
    assert limits == [None, 10]


def test_an_epoch_of_a_large_corpus_is_a_sample_of_it(monkeypatch):
    monkeypatch.setattr("loopjax.detectors.svdd.estimator._ONE_PASS", 100)
    x = corpus(2000)
    recipe = {"hidden_dims": (8, 4), "pretrain_epochs": 3, "epochs": 3}
    blocks = blocks_of(x, 300)
    for data in (x, blocks):
        history = DeepSVDD(**recipe).fit(data).history_["pretrain"]
        assert history["train_loss"][-1] < history["train_loss"][0]
        # A mean over the rows that were drawn, not over all.
        assert history["train_loss"][0] == pytest.approx(history["val_loss"][0], rel=0.3)


@pytest.mark.parametrize("compat", ["reference", "reference-true-split"])
def test_the_references_batches_stay_as_they_are(compat):
    config = DeepSVDD(compat=compat).training_config(16, 10**6)
    assert (config.batch_size, config.max_steps_per_epoch) == (32, None)
