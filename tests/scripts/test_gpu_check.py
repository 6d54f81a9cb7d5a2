import re
from pathlib import Path

import numpy as np
import pytest

from scripts.gpu_check import common, parity

ROOT = Path(__file__).parents[2]


@pytest.mark.gpu
def test_an_accelerator_computes_what_a_cpu_does():
    assert parity.compare(rehearse=False)


def test_a_wrong_figure_fails(capsys):
    right = np.eye(3)
    assert common.check("right", parity.angle(right, right), "1 - cosine", most=1e-12)
    assert not common.check("wrong", parity.angle(right, right + 0.1), "1 - cosine", most=1e-3)
    assert not common.check("not finite", float("nan"), "", most=1.0)
    assert capsys.readouterr().out.count('"holds": false') == 2


def test_the_carried_file_belongs_to_these_weights():
    model = common.encoder("nano", "fp32")
    with np.load(common.REFERENCE) as reference:
        assert str(reference["nano/weights"]) == model.weights_sha256
        assert reference["nano/20 s at 48000 Hz/embedding"].shape == (4, model.embedding_dim)


def test_the_sections_end_within_ten_minutes():
    script = (ROOT / "scripts/gpu_check.sh").read_text("utf-8")
    sections = re.findall(r"([\w-]+):(\w+):(\d+)", script)
    assert [name for name, *_ in sections] == [
        "ceilings", "parity", "encoder", "finetuning",
        "transformers", "end-to-end", "heads", "trace",
    ]  # fmt: skip
    assert sum(int(seconds) for *_, seconds in sections) <= 600
    assert all((ROOT / f"scripts/gpu_check/{module}.py").is_file() for _, module, _ in sections)
