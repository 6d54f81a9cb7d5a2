import json

import pytest

from loopjax.errors import UserError
from loopjax.evaluation.published import Measurement, compare_with_published, read_published
from loopjax.evaluation.tables import Estimate

REFERENCE = {
    "source": "a paper",
    "detectors": {"AE-SVDD": ["ae", "deep-svdd"]},
    "entries": [
        {"measure": "auroc_P1", "embeddings": "nff", "detector": "AE-SVDD",
         "published": None, "reproduced": 0.916, "reproduced_low": 0.90,
         "reproduced_high": 0.93, "reproduced_seeds": 5},
        {"measure": "threshold_q95", "embeddings": "nff", "detector": "AE-SVDD",
         "published": 0.012, "published_how": "figure"},
    ],
}  # fmt: skip


def test_ours_stand_beside_what_the_reference_knows(tmp_path):
    file = tmp_path / "reference.json"
    file.write_text(json.dumps(REFERENCE), "utf-8")
    measured = [
        Measurement("auroc_P1", "nff", "AE", Estimate(0.91, 0.9, 0.92), 5),
        Measurement("threshold_q95", "nff", "deep-svdd", Estimate(0.006), 5),
        Measurement("auroc_P1", "nff", "mine", Estimate(0.5), 1),
    ]
    table = compare_with_published(measured, read_published(file))
    assert table.note == "a paper"
    auroc, threshold = table.rows
    assert auroc["reproduced"] == Estimate(0.916, 0.90, 0.93)
    assert (auroc["inside_range"], threshold["inside_range"]) == (True, None)
    assert (auroc["ratio"], threshold["ratio"]) == (None, pytest.approx(0.5))
    assert threshold["published_how"] == "figure"


@pytest.mark.parametrize("text", ["{", "[]", '{"source": "x", "detectors": {}}', None])
def test_a_file_of_another_kind_is_named(tmp_path, text):
    file = tmp_path / "other.json"
    if text is not None:
        file.write_text(text, "utf-8")
    with pytest.raises(UserError, match=r"evaluate\.reference .*other\.json"):
        read_published(file)
