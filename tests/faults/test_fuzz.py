"""A short run of each fuzzer; `python -m scripts.fuzz.NAME --n 2000` is the long one."""

import pytest

from scripts.fuzz import audio, inputs, stores
from scripts.fuzz.outcomes import in_parts

pytestmark = pytest.mark.faults

N = 150


@pytest.mark.parametrize("fuzzer", [audio, inputs, stores], ids=lambda module: module.__name__[13:])
def test_damaged_files_are_read_rightly_or_refused(fuzzer):
    outcomes = in_parts(fuzzer.work, N, seed=7)
    assert outcomes.n == N
    assert 0 < outcomes.n_refused < N
    assert outcomes.is_clean, "\n".join(outcomes.details())
    assert outcomes.summary() == "0 lost, 0 hung, 0 ran, 0 tracebacks"
