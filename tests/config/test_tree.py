"""YAML as a tree that knows its lines: strict, bounded, by the rules of YAML 1.2."""

import time

import pytest

from loopjax.config.tree import MAX_BYTES, parse_yaml, read_yaml, to_plain
from loopjax.errors import UserError


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("-.5", -0.5),
        ("7.", 7.0),
        ("+3", 3),
        ("0o17", 15),
        ("0x1F", 31),
        (".inf", float("inf")),
        ("~", None),
        ("True", True),
        ("yes", "yes"),
        ("NO", "NO"),
        ("010", "010"),
        ("1_000", "1_000"),
        ("12:30", "12:30"),
        ("2026-11-22", "2026-11-22"),
        ("'1'", "1"),
        ("{a: [1, x]}", {"a": [1, "x"]}),
        ("<<: 1", {"<<": 1}),
    ],
)
def test_words_mean_what_yaml_1_2_says(text, value):
    found = to_plain(parse_yaml(text, "t"))
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: [\n", "not valid YAML"),
        ("name: x\nname: y\n", "c.yaml:2: key 'name' given twice"),
        ("name: !!python/object/apply:os.system [echo]\n", "tag"),
        ("name: !!binary aGk=\n", "tag"),
        ("name: !x y\n", "tag"),
        ("? [a]\n: b\n", "a key must be a word"),
        ("- a\n", "expected a mapping"),
        ("a:\n\tb: c\n", "c.yaml:2: not valid YAML: found character '\\t'"),
        ("a: b\n--- \nc: d\n", "not valid YAML"),
        ("a: \x07\n", "not valid YAML"),
        ("a: &a [*a]\n", "nested too deeply"),
        ("a: " + "[" * 5000 + "\n", "nested too deeply"),
        ("a: " + "x" * MAX_BYTES + "\n", f"longer than {MAX_BYTES} bytes"),
    ],
    ids=lambda value: value[:20],
)
def test_what_is_no_config_is_refused_with_its_place(tmp_path, text, message):
    path = tmp_path / "c.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError) as caught:
        read_yaml(path)
    assert message in str(caught.value)
    assert str(caught.value).splitlines() == [str(caught.value)]


@pytest.mark.parametrize("name", ["/dev/zero", ".", "none.yaml", "nul\0byte.yaml"])
def test_what_is_no_file_is_refused_at_once(tmp_path, name):
    start = time.monotonic()
    with pytest.raises(UserError, match="cannot read config"):
        read_yaml(tmp_path / name)
    assert time.monotonic() - start < 1


def test_other_encodings_are_named(tmp_path):
    (tmp_path / "latin.yaml").write_bytes("name: Baß\n".encode("latin-1"))
    (tmp_path / "bom.yaml").write_bytes("name: Baß\n".encode("utf-8-sig"))
    with pytest.raises(UserError, match="not UTF-8"):
        read_yaml(tmp_path / "latin.yaml")
    assert to_plain(read_yaml(tmp_path / "bom.yaml")) == {"name": "Baß"}


def test_alias_bomb_is_refused_quickly(tmp_path):
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 9)]
    (tmp_path / "c.yaml").write_text("\n".join(lines))
    with pytest.raises(UserError, match="not a config file"):
        read_yaml(tmp_path / "c.yaml")
