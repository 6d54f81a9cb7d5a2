"""The verbs where the calls that only Unix has are missing, as on Windows."""

import os
import subprocess
import sys

import pytest

from tests.audio_files import write_corpus

SCRIPT = """
import os, sys
import filelock, jax, platformdirs  # these choose by sys.platform, which stays what it is
kept = os.O_NONBLOCK, os.O_CLOEXEC  # filelock's
from tests.audio.without_unix import take_away_unix
take_away_unix()
os.O_NONBLOCK, os.O_CLOEXEC = kept
for name in "getuid geteuid getgid fork killpg setsid uname chown sysconf".split():
    delattr(os, name)
from loopjax.cli import main
loops, store, model, scores = sys.argv[1:]
embed = ["embed", loops, "-o", store, "--encoder", "log-mel-statistics", "--workers", "1"]
codes = [main(embed), main(["fit", store, "-o", model, "--detector", "pca"])]
codes += [main(["score", model, store, "-o", scores]), main(["store", "verify", store])]
print("codes", codes)
"""


@pytest.mark.slow
def test_a_store_is_made_fitted_and_scored(tmp_path):
    write_corpus(tmp_path / "loops", 12)
    places = [str(tmp_path / name) for name in ("loops", "store", "model", "scores.parquet")]
    environment = {name: value for name, value in os.environ.items() if name[:4] != "JAX_"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *places],
        capture_output=True,
        text=True,
        env={
            **environment,
            "PYTHONPATH": os.pathsep.join(sys.path),
            "XDG_CACHE_HOME": str(tmp_path),
        },
    )
    assert "codes [0, 0, 0, 0]" in done.stdout, done.stderr
