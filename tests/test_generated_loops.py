"""The guarantee of the p-values on sound: 2,000 fresh normal loops from the demo's generator."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from loopjax.detectors import make_detector
from loopjax.evaluation import metrics as evaluate

ROOT = Path(__file__).parent.parent
N_FIT, N_CALIBRATE, N_FRESH = 300, 1000, 2000


@pytest.fixture(scope="module")
def embeddings(tmp_path_factory):
    from loopjax.embedding.chain import embed
    from loopjax.encoders.load import load_encoder

    folder = tmp_path_factory.mktemp("generated") / "loops"
    command = [sys.executable, "-m", "scripts.render", "-o", str(folder)]
    command += [
        "--n",
        str(N_FIT + N_CALIBRATE + N_FRESH),
        "--degraded-fraction",
        "0",
        "--wav",
        "flac",
    ]
    subprocess.run(command, check=True, capture_output=True, cwd=ROOT)
    return embed(str(folder), load_encoder("log-mel-statistics")).matrix


@pytest.mark.slow
@pytest.mark.timeout(5400)  # renders 3,300 loops first
@pytest.mark.skipif(shutil.which("fluidsynth") is None, reason="the generator needs FluidSynth")
def test_false_positive_rate_on_fresh_loops_is_the_one_asked_for(embeddings):
    for kind in ("pca", "knn", "mahalanobis", "isolation-forest"):
        rates = []
        for seed in range(5):  # one draw alone varies by 0.01 with its calibration loops
            order = np.random.default_rng(seed).permutation(len(embeddings))
            fit, calibrate, fresh = np.split(embeddings[order], [N_FIT, N_FIT + N_CALIBRATE])
            assert len(fresh) == N_FRESH
            detector = make_detector(kind).fit(fit)
            calibration = detector.decision_function(calibrate)
            p = evaluate.conformal_p_values(calibration, detector.decision_function(fresh))
            rates.append(np.mean(p <= 0.05))
        assert 0.03 <= np.mean(rates) <= 0.07, (kind, rates)
