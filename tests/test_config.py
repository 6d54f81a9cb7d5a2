"""Strict configs: located errors, overrides, every file in configs/ parses."""

import json
from pathlib import Path

import pytest

from loopjax.config import EmbedConfig, from_dict, load_config, to_dict
from loopjax.errors import UserError

CONFIGS = sorted(
    p
    for p in (Path(__file__).parent.parent / "configs").glob("*.yaml")
    if not p.name.startswith("pretrain")
)


@pytest.fixture
def write(tmp_path):
    def write(text: str, name: str = "c.yaml") -> Path:
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return write


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.name)
def test_shipped_configs_parse_and_open_with_their_command(path):
    config = load_config(path)
    assert config.name
    header = path.read_text(encoding="utf-8").split("name:")[0]
    assert "loopjax" in header, "the header holds the exact command"


def test_overrides_reach_nested_keys_and_detectors_by_name(write):
    path = write("name: x\ndetectors:\n  - {name: a, kind: pca}\n")
    config = load_config(
        path, ["detectors.a.params.n_components=3", "embed.precision=bf16", "seeds=[1, 2]"]
    )
    assert config.detectors[0].params == {"n_components": 3}
    assert config.embed.precision == "bf16"
    assert config.seeds == (1, 2)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("detectr.x=1", "did you mean 'detectors'"),
        ("embed.presicion=fp32", "did you mean 'precision'"),
        ("embed.precision=fp16", "none of fp32, bf16"),
        ("embed.batch_size=many", "expected int, found str"),
        ("seeds=3", "expected a list"),
        ("split.train_fraction=[1]", "expected float"),
        ("name", "write it as --set key.path=value"),
    ],
)
def test_wrong_overrides_name_the_key_and_the_fix(write, override, message):
    with pytest.raises(UserError, match="--set") as caught:
        load_config(write("name: x\n"), [override])
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: x\nembed:\n  batch_size: big\n", "c.yaml:3: embed.batch_size: expected int"),
        ("name: x\nembed: 3\n", "c.yaml:2: embed: expected settings"),
        ("name: [\n", "not valid YAML"),
        ("name: x\nname: y\n", "key 'name' given twice"),
        ("name: !!python/object/apply:os.system [echo]\n", "tag"),
        ("detectors: []\n", "needs the key 'name'"),
        ("- a\n", "expected a mapping"),
        ("name: x\nprimary: nope\n", "primary"),
        ("name: x\ndetectors: [{name: a, kind: pca}, {name: a, kind: knn}]\n", "share a name"),
    ],
)
def test_mistakes_in_a_file_name_the_line(write, text, message):
    with pytest.raises(UserError) as caught:
        load_config(write(text))
    assert message in str(caught.value)


def test_missing_file_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match="cannot read config"):
        load_config(tmp_path / "none.yaml")


def test_alias_bomb_is_refused_quickly(write):
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 9)]
    with pytest.raises(UserError, match="not a config file"):
        load_config(write("\n".join(lines)))


def test_extends_fills_in_what_is_left_out(write):
    write("name: base\nseeds: [7]\nembed: {precision: bf16, batch_size: 3}\n", "base.yaml")
    config = load_config(write("extends: base.yaml\nname: x\nembed: {batch_size: 5}\n"))
    assert (config.name, config.seeds, config.embed.precision) == ("x", (7,), "bf16")
    assert config.embed.batch_size == 5


def test_extends_goes_one_level_deep(write):
    write("name: a\n", "a.yaml")
    write("extends: a.yaml\nname: b\n", "b.yaml")
    with pytest.raises(UserError, match="one level"):
        load_config(write("extends: b.yaml\nname: c\n"))


def test_resolved_config_survives_json(write):
    config = load_config(write("name: x\nseeds: [1]\ndetectors: [{name: a, kind: pca}]\n"))
    again = from_dict(type(config), json.loads(json.dumps(to_dict(config))))
    assert again == config


def test_scientific_notation_without_a_dot_is_a_number(write):
    config = load_config(write("name: x\nsplit: {train_fraction: 5e-1}\n"))
    assert config.split.train_fraction == 0.5


def test_from_dict_checks_like_a_file():
    with pytest.raises(UserError, match="batch_size"):
        from_dict(EmbedConfig, {"batch_size": "x"}, "command line")
