"""JSON that anybody may have written."""

import pytest

from loopjax import json_files
from loopjax.json_files import MAX_DEPTH, parse_json, read_json


def test_an_object_is_read(tmp_path):
    (tmp_path / "a.json").write_bytes(b'\xef\xbb\xbf{"a": [1, {"b": null}]}')
    assert read_json(tmp_path / "a.json") == {"a": [1, {"b": None}]}


@pytest.mark.parametrize("opening", ["[", '{"a":'])
@pytest.mark.parametrize("depth", [MAX_DEPTH, 500, 100_000])
def test_depth_is_bounded(opening, depth):
    closing = {"[": "]", "{": "}"}[opening[0]]
    with pytest.raises(ValueError, match="nested too deeply"):
        parse_json(opening * depth + "1" + closing * depth)
    shallow = MAX_DEPTH - 1
    parse_json(opening * shallow + "1" + closing * shallow)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"[1]", "no JSON object"),
        (b"null", "no JSON object"),
        (b"", "Expecting value"),
        (b"\xff\xfe", "can't decode"),
        (b'{"a": ' + b"9" * 5000 + b"}", "integer"),
        (b'{"a": "' + b"x" * 1000 + b'"}', "larger than 1000 bytes"),
    ],
)
def test_everything_else_is_a_value_error(tmp_path, monkeypatch, content, problem):
    (tmp_path / "a.json").write_bytes(content)
    if "larger" in problem:
        monkeypatch.setattr(json_files, "MAX_BYTES", 1000)
    with pytest.raises(ValueError, match=problem):
        read_json(tmp_path / "a.json")


def test_what_is_no_file(tmp_path):
    with pytest.raises(ValueError, match="not a file"):
        read_json(tmp_path)
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "nothing.json")
