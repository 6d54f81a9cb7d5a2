import subprocess
import sys
from typing import Literal

import pytest

from loopjax.detectors import detector_class, detector_kinds, make_detector, parameter_types
from loopjax.errors import UserError


@pytest.mark.parametrize("kind", detector_kinds())
def test_the_list_and_the_classes_agree(kind):
    cls = detector_class(kind)
    assert cls.kind == kind
    assert type(make_detector(kind)) is cls
    known = cls().get_params()
    assert set(parameter_types(kind)) == set(known) - set(cls.run_time_params)
    if cls.depends_on_seed:
        assert "random_state" in known


def test_listing_the_kinds_imports_nothing_heavy():
    code = (
        "import sys, loopjax.detectors as d\n"
        "assert 'knn' in d.detector_kinds()\n"
        "print(sorted({'jax', 'flax', 'sklearn', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_parameter_types_are_exact():
    types = parameter_types("deep-svdd")
    assert types["learning_rate"] is float
    assert types["hidden_dims"] == tuple[int, ...] | str
    assert types["network"] == Literal["standard", "residual"]
    assert types["bn_shift"] is bool
    assert "on_epoch" not in types and "checkpoint_dir" not in types
    assert parameter_types("knn")["n_neighbors"] is int


def test_an_unknown_kind_is_named():
    for call in (detector_class, parameter_types, make_detector):
        with pytest.raises(UserError, match=r"unknown detector 'svm'; known: deep-svdd"):
            call("svm")
