import json

import pytest

from loopjax.errors import UserError
from loopjax.evaluation.tables import Estimate, Evaluation, Table

TABLE = Table(
    "Detectors",
    "a note",
    (
        {"detector": "a", "n": 3, "auroc": Estimate(0.9, 0.8, 0.95), "is_fit": True, "x_low": 1.5},
        {"detector": "b", "auroc": Estimate(0.5), "published": None, "late": "text"},
    ),
)


def test_columns_are_those_of_all_rows_in_order():
    assert TABLE.columns == ("detector", "n", "auroc", "is_fit", "x_low", "published", "late")


def test_json_keeps_every_cell_and_flattens_estimates():
    evaluation = Evaluation((TABLE,), {"AUROC": 0.9})
    text = json.dumps(evaluation.to_json(), allow_nan=False)
    assert Evaluation.from_json(json.loads(text), "here") == evaluation
    first = json.loads(text)["tables"][0]["rows"][0]
    assert (first["auroc"], first["auroc_low"], first["auroc_high"]) == (0.9, 0.8, 0.95)


def test_an_estimate_that_is_missing_takes_its_ends_along():
    row = {"reproduced": None, "reproduced_low": None, "reproduced_high": None}
    table = Table.from_json({"title": "t", "rows": [row]}, "here")
    assert table.rows == ({"reproduced": None},)


@pytest.mark.parametrize(
    "value",
    [[], {"tables": 1}, {"tables": [{}]}, {"tables": [{"title": "t"}]}, {"headline": {"x": "y"}},
     {"tables": [{"title": "t", "rows": [{"cell": [1]}]}]}],
)  # fmt: skip
def test_something_else_is_refused_and_named(value):
    with pytest.raises(UserError, match=r"evaluation\.json"):
        Evaluation.from_json(value, "evaluation.json")
