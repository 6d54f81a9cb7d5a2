"""A process that was forked from one that had used JAX says so, where JAX would hang."""

import os
import subprocess
import sys

import pytest

FORK = """
import os, signal, sys
import numpy as np
from loopjax.detectors import make_detector
from loopjax.errors import UserError
X = np.random.default_rng(0).normal(size=(20, 4)).astype(np.float32)

def use():
    make_detector("pca").fit(X)

if sys.argv[1] == "before":
    use()
child = os.fork()
if child:
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
signal.alarm(60)
try:
    use()
    print("computed", flush=True)
except UserError as error:
    print(error, flush=True)
os._exit(0)
"""


@pytest.mark.faults
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize(("used", "said"), [("before", "spawn"), ("after", "computed")])
def test_use_after_a_fork(used, said):
    done = subprocess.run(
        [sys.executable, "-c", FORK, used],
        capture_output=True,
        text=True,
        timeout=90,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == 0, done.stderr
    assert said in done.stdout
