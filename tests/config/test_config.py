"""Experiment files: located errors, overrides, and no setting that nothing reads."""

import ast
import dataclasses
import json
from pathlib import Path

import pytest

import loopjax
from loopjax import config as settings
from loopjax.config import EmbedConfig, ExperimentConfig, from_dict, read_experiment, to_dict
from loopjax.config.settings import fields
from loopjax.errors import UserError

PACKAGE = Path(loopjax.__file__).parent
CLASSES = [
    cls
    for cls in vars(settings).values()
    if isinstance(cls, type) and cls.__name__.endswith("Config") and dataclasses.is_dataclass(cls)
]


@pytest.fixture
def write(tmp_path):
    def write(text: str, name: str = "c.yaml") -> Path:
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return write


def test_overrides_reach_nested_keys_and_detectors_by_name(write):
    path = write("name: x\ndetectors:\n  - {name: a, kind: pca}\n")
    config = read_experiment(
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
        ("embed.precision=fp16", "none of auto, fp32"),
        ("embed.batch_size=many", "expected int, found str"),
        ("embed.batch_size=-1", "embed.batch_size: expected a number at least 0, found -1"),
        ("embed.crops=seeded", "seeded:K with K draws"),
        ("embed.buckets_s=[1, 0]", "embed.buckets_s.1: expected a number above 0"),
        ("seeds=3", "expected a list"),
        ("seeds=[]", "seeds: expected at least one item"),
        ("seeds=[1, 1]", "given twice"),
        ("split.train_fraction=[1]", "expected float"),
        ("split.train_fraction=1.5", "above 0 and at most 1"),
        ("evaluate.target_fpr=.nan", "expected a finite number"),
        ("evaluate.ladder=quick", "it is now called 'robustness'"),
        ("evaluate.protocols=[P2]", "none of P1, P3, P2-1, P2-5, P2-10, unlabeled"),
        ("name=../up", "name: expected a name of at most"),
        ("name", "write it as --set key.path=value"),
        ("name=[", "not valid YAML"),
        ("detectors.0.name=a", "no index or name in a list of 0"),
    ],
)
def test_wrong_overrides_name_the_key_and_the_fix(write, override, message):
    with pytest.raises(UserError, match="--set") as caught:
        read_experiment(write("name: x\ndetectors: []\n"), [override])
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: x\nembed:\n  batch_size: big\n", "c.yaml:3: embed.batch_size: expected int"),
        ("name: x\nembed: 3\n", "c.yaml:2: embed: expected settings"),
        ("detectors: []\n", "needs the key 'name'"),
        ("name: x\nprimary: nope\n", "primary"),
        ("name: x\ndetectors: [{name: a, kind: pca}, {name: A, kind: knn}]\n", "share a name"),
        ("name: 2026\n", "c.yaml:1: name: expected str, found int (2026); put it in quotes"),
        ("name: x\nembed: {strict: 'yes'}\n", "c.yaml:2: embed.strict: expected bool"),
        ("name: x\nembed: {workers: true}\n", "embed.workers: expected int, found bool"),
        ("name: x\nembed: {workers: 2.0}\n", "embed.workers: expected int, found float"),
        ("name: x\nembed: {workers: 010}\n", "may mean octal: write 10, or 0o10"),
        ("name: x\nseeds: 0..2\n", "c.yaml:2: seeds: expected a list of int, found str"),
        ("name: x\ndata: {labels: [a]}\n", "data.labels: expected str, found a list"),
        ("name: x\ndata: {sets: {a/b: x.npy}}\n", "data.sets.a/b: expected a name"),
        ("name: x\ndetectors: [{name: ../../a, kind: pca}]\n", "expected a name"),
        ('name: x\ndetectors: [{name: "a\\nb", kind: pca}]\n', "expected a name"),
        ('name: "\\u202egpj"\n', "expected a name"),
        ("extends: 3\nname: x\n", "c.yaml:1: extends: expected the path"),
        ("extends: /dev/zero\nname: x\n", "c.yaml:1: extends: cannot read config /dev/zero"),
        ("extends: none.yaml\nname: x\n", "c.yaml:1: extends: cannot read config"),
    ],
)
def test_mistakes_in_a_file_name_the_line(write, text, message):
    with pytest.raises(UserError) as caught:
        read_experiment(write(text))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("text", "path", "value"),
    [
        ("split: {train_fraction: 5e-1}", "split.train_fraction", 0.5),
        ("split: {train_fraction: 1}", "split.train_fraction", 1.0),
        ("embed: {strict: yes}", "embed.strict", True),
        ("embed: {strict: Off}", "embed.strict", False),
        ("report: {audio: none}", "report.audio", "none"),
        ("report: {title: on}", "report.title", "on"),
        ("report: {title: 2026-11-22}", "report.title", "2026-11-22"),
        ("report: {title: 010}", "report.title", "010"),
        ("report: {title: '7'}", "report.title", "7"),
        ("data: {labels: }", "data.labels", None),
        ("embed: {workers: 0x10}", "embed.workers", 16),
    ],
)
def test_words_get_the_type_of_their_setting(write, text, path, value):
    found = read_experiment(write(f"name: x\n{text}\n"))
    for part in path.split("."):
        found = getattr(found, part)
    assert found == value
    assert type(found) is type(value)


def test_extends_fills_in_what_is_left_out(write):
    write("name: base\nseeds: [7]\nembed: {precision: bf16, batch_size: 3}\n", "base.yaml")
    config = read_experiment(write("extends: base.yaml\nname: x\nembed: {batch_size: 5}\n"))
    assert (config.name, config.seeds, config.embed.precision) == ("x", (7,), "bf16")
    assert config.embed.batch_size == 5


def test_extends_goes_one_level_deep(write):
    write("name: a\n", "a.yaml")
    write("extends: a.yaml\nname: b\n", "b.yaml")
    with pytest.raises(UserError, match="one level"):
        read_experiment(write("extends: b.yaml\nname: c\n"))


def test_resolved_config_survives_json(write):
    text = "name: x\nseeds: [1]\ndetectors: [{name: a, kind: pca, params: {n: [1, 2]}}]\n"
    config = read_experiment(write(text))
    again = from_dict(ExperimentConfig, json.loads(json.dumps(to_dict(config))))
    assert again == config


def test_from_dict_checks_like_a_file():
    with pytest.raises(UserError, match="command line: batch_size: expected int"):
        from_dict(EmbedConfig, {"batch_size": "x"}, "command line")


def test_every_setting_is_read_somewhere():
    read = set()
    for file in PACKAGE.rglob("*.py"):
        if (PACKAGE / "config") not in file.parents:
            tree = ast.parse(file.read_text(encoding="utf-8"))
            read |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    declared = {f"{cls.__name__}.{f.name}" for cls in CLASSES for f in dataclasses.fields(cls)}
    assert len(declared) > 40
    assert {name for name in declared if name.split(".")[1] not in read} == set()


@pytest.mark.parametrize("cls", CLASSES)
def test_every_setting_has_one_line_of_help(cls):
    for field in fields(cls):
        assert 3 < len(field.setting.help) < 90, field.name
