"""Experiment files with their detectors: recipes by name, typed hyper-parameters, the schema."""

from pathlib import Path

import jsonschema
import pytest
import yaml

from loopjax.config import to_dict
from loopjax.config.finetuning import read_finetuning
from loopjax.errors import UserError
from loopjax.experiment.load import TRAININGS, find_config, load_config, recipes, schema, trainings

SHIPPED = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))
CONFIGS = [path for path in SHIPPED if not path.name.startswith(TRAININGS)]


@pytest.fixture
def detector(tmp_path):
    """Loads a config with one detector, written on line 3."""

    def load(text: str):
        path = tmp_path / "c.yaml"
        path.write_text(f"name: a\ndetectors:\n  - {{name: d, {text}}}\n", encoding="utf-8")
        return load_config(path).detectors[0]

    return load


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.name)
def test_shipped_configs_load_and_open_with_their_command(path):
    config = load_config(path)
    assert config == load_config(path.stem)
    first, _, rest = path.read_text(encoding="utf-8").partition("\n")
    assert recipes()[path.stem] == first.removeprefix("# ")
    assert first.endswith((".", "?"))
    assert "#   loopjax " in rest.split("name:")[0], "the header holds the exact command"


@pytest.mark.parametrize(
    "path", [path for path in SHIPPED if path not in CONFIGS], ids=lambda path: path.name
)
def test_shipped_trainings_load_and_open_with_their_command(path):
    assert path.stem not in recipes()
    assert read_finetuning(find_config(path.stem, trainings())) == read_finetuning(path)
    first, _, rest = path.read_text(encoding="utf-8").partition("\n")
    assert trainings()[path.stem] == first.removeprefix("# ")
    assert first.endswith((".", "?"))
    assert "#   loopjax finetune " in rest.split("name:")[0], "the header holds the exact command"


@pytest.mark.parametrize(
    ("text", "name", "value"),
    [
        ("kind: deep-svdd, params: {learning_rate: 1e-4}", "learning_rate", 1e-4),
        ("kind: deep-svdd, params: {weight_decay: 1e-5}", "weight_decay", 1e-5),
        ("kind: deep-svdd, params: {hidden_dims: [16, 8]}", "hidden_dims", (16, 8)),
        ("kind: deep-svdd, params: {bn_shift: off}", "bn_shift", False),
        ("kind: pca, params: {contamination: 5e-2}", "contamination", 0.05),
        ("kind: pca, params: {n_components: 9e-1}", "n_components", 0.9),
        ("kind: pca, params: {n_components: 9}", "n_components", 9),
    ],
)
def test_hyper_parameters_have_the_constructors_types(detector, text, name, value):
    found = detector(text).params[name]
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("kind: deep-svdd, params: {bn_shift: 'false'}", "params.bn_shift: expected bool"),
        ("kind: deep-svdd, params: {epochs: '2'}", "params.epochs: expected int, found str"),
        ("kind: deep-svdd, params: {epochs: 2.0}", "params.epochs: expected int, found float"),
        ("kind: deep-svdd, params: {epochs: -1}", "epochs must"),
        ("kind: deep-svdd, params: {hidden_dims: '32,16'}", "hidden_dims"),
        ("kind: deep-svdd, params: {hidden_dims: []}", "hidden_dims"),
        ("kind: deep-svdd, params: {hidden_dims: [8, 0]}", "hidden_dims"),
        ("kind: deep-svdd, params: {learning_rate: .inf}", "learning_rate: expected a finite"),
        ("kind: deep-svdd, params: {learning_rate: -1}", "learning_rate"),
        ("kind: deep-svdd, params: {dropout: 1.5}", "dropout"),
        ("kind: deep-svdd, params: {activation: x}", "activation"),
        ("kind: deep-svdd, params: {on_epoch: x}", "no such parameter"),
        ("kind: pca, params: {n_components: '0.95'}", "params.n_components: expected"),
        ("kind: knn, params: {n_neighbors: 5.0}", "params.n_neighbors: expected int"),
        ("kind: knn, params: {n_neighbors: -5}", "n_neighbors must be"),
        ("kind: knn, params: {n_neighbrs: 5}", "did you mean 'n_neighbors'"),
        ("kind: isolation-forest, params: {n_estimators: 010}", "may mean octal"),
        ("kind: knm", "detectors.d.kind: 'knm' is none of deep-svdd, "),
        ("kind: knn, params: 3", "detectors.d.params: expected a mapping"),
    ],
)
def test_mistakes_in_detectors_name_the_line_and_the_key(detector, text, message):
    with pytest.raises(UserError) as caught:
        detector(text)
    assert message in str(caught.value)
    assert "c.yaml:3: detectors.d" in str(caught.value)


def test_the_schema_takes_every_shipped_config_and_its_resolved_form():
    validator = jsonschema.Draft202012Validator(schema())
    validator.check_schema(schema())
    for path in CONFIGS:
        validator.validate(yaml.safe_load(path.read_text("utf-8")))
        validator.validate(to_dict(load_config(path)))
    for wrong in ({"kind": "knm"}, {"kind": "knn", "params": {"n_neighbrs": 3}}):
        assert not validator.is_valid({"name": "x", "detectors": [{"name": "d"} | wrong]})


def test_a_wrong_name_is_told_the_nearest_recipe():
    with pytest.raises(UserError, match="did you mean 'baselines'"):
        load_config("baselins")
