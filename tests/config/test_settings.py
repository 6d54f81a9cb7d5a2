"""What is read off a declared setting: checks of unions and lists, and the JSON Schema."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal

import jsonschema
import pytest

from loopjax.config.settings import FileName, Setting, build, build_value, json_schema
from loopjax.config.tree import from_plain, parse_yaml
from loopjax.errors import UserError


@dataclass(frozen=True)
class Inner:
    count: Annotated[int, Setting("how many", at_least=1, below=10)] = 3


@dataclass(frozen=True)
class Outer:
    name: Annotated[FileName, Setting("a name")]
    inner: Annotated[Inner, Setting("more")] = field(default_factory=Inner)
    sizes: Annotated[tuple[float, ...], Setting("sizes", filled=True)] = (1.0,)
    mode: Annotated[Literal["a", "b"] | None, Setting("mode")] = None


@pytest.mark.parametrize(
    ("expected", "text", "value"),
    [
        (int | float | None, "3", 3),
        (float | int | None, "3", 3),
        (float | int | None, "3.0", 3.0),
        (float | int | None, "", None),
        (Sequence[int] | str, "[1, 2]", (1, 2)),
        (Sequence[int] | Literal["exp1"], "exp1", "exp1"),
        (Literal["auto"] | float, "1e-2", 0.01),
        (list[str], "[a]", ("a",)),
        (int | Callable[[], int], "3", 3),
    ],
)
def test_unions_keep_the_kind_that_was_written(expected, text, value):
    found = build_value(expected, parse_yaml(text, "t"), "k")
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("expected", "text", "message"),
    [
        (int | float | None, "'0.95'", "t:1: k: expected int or float, found str ('0.95')"),
        (Sequence[int] | Literal["exp1"], "exp9", "expected a list of int or one of exp1, found"),
        (Sequence[int], "[1, x]", "t:1: k.1: expected int, found str ('x')"),
        (int | None, "x", "k: expected int, found str ('x')"),
        (Callable[[], int], "3", "k: expected"),
    ],
)
def test_unions_say_what_they_take(expected, text, message):
    with pytest.raises(UserError) as caught:
        build_value(expected, parse_yaml(text, "t"), "k")
    assert message in str(caught.value)


VALUES = [
    {"name": "x"},
    {"name": "a/b"},
    {"name": ".x"},
    {"name": 3},
    {},
    {"name": "x", "nme": "y"},
    {"name": "x", "inner": {"count": 9}},
    {"name": "x", "inner": {"count": 10}},
    {"name": "x", "inner": {"count": 0}},
    {"name": "x", "sizes": []},
    {"name": "x", "sizes": [1, 2.5]},
    {"name": "x", "mode": "b"},
    {"name": "x", "mode": None},
    {"name": "x", "mode": "c"},
]


@pytest.mark.parametrize("values", VALUES, ids=str)
def test_the_schema_refuses_what_reading_refuses(values):
    schema = json_schema(Outer)
    jsonschema.Draft202012Validator.check_schema(schema)
    try:
        build(Outer, from_plain(values, "here"))
        accepted = True
    except UserError:
        accepted = False
    assert jsonschema.Draft202012Validator(schema).is_valid(values) is accepted
    assert schema["properties"]["inner"]["properties"]["count"]["description"] == "how many"
    assert schema["properties"]["sizes"]["default"] == [1.0]
