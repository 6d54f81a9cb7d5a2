"""What a faster precision may change: nothing that ranks loops."""

import jax
import numpy as np
import pytest
from scipy.stats import spearmanr

import loopjax
from loopjax import bundled
from loopjax.encoders.load import default_precision, load_encoder
from tests.htsat import tolerances


def test_the_default_is_full_precision_on_a_cpu_and_bfloat16_on_accelerators(monkeypatch):
    assert default_precision() == ("fp32" if jax.default_backend() == "cpu" else "bf16")
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert default_precision() == "bf16"
    monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
    assert load_encoder("loopjax-nano").precision == "fp32"


@pytest.mark.slow
def test_the_demo_ranks_alike_in_every_precision():
    def matrix(precision):
        encoder = load_encoder("loopjax-nano", precision)
        return loopjax.embed(bundled.DATA / "demo", encoder).matrix

    exact = matrix("fp32")
    for precision in ("tf32", "bf16", "bf16-fast"):
        other = matrix(precision)
        cosine = (exact * other).sum(1)
        cosine /= np.linalg.norm(exact, axis=1) * np.linalg.norm(other, axis=1)
        assert cosine.min() >= tolerances.BF16_COSINE
        for detector in (loopjax.PCA, loopjax.KNN, loopjax.Mahalanobis):
            scores = [detector().fit(rows).decision_function(rows) for rows in (exact, other)]
            assert spearmanr(*scores).statistic >= tolerances.DEMO_RANK_CORRELATION, precision
