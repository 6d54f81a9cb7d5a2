"""Experiment files: by path, or by the name of a bundled recipe; detectors are checked as well."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from loopjax import detectors
from loopjax.bundled import folder
from loopjax.config import (
    ExperimentConfig,
    config_schema,
    experiment_from_dict,
    read_experiment,
)
from loopjax.config.settings import Schema, nearest
from loopjax.errors import UserError

TRAININGS = ("finetune_", "pretrain_")  # how their files' names begin


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> ExperimentConfig:
    """Reads an experiment from a YAML file or a bundled recipe and checks all of it.

    Args:
        path: a file, or the name of a recipe such as "demo"; `recipes` lists them. A file may say
            `extends: other.yaml` (one level, relative to the file), which fills in what it leaves
            out.
        overrides: strings `key.path=value`; the value is YAML; items of a list are addressed by
            index, detectors also by name.

    Raises:
        UserError: unreadable file, invalid YAML, unknown key, wrong type, value out of range;
            names the file, the line and the key.
    """
    return read_experiment(find_config(path), overrides, detectors=detectors)


def config_from_dict(
    values: Mapping[str, object], where: str, overrides: Sequence[str] = ()
) -> ExperimentConfig:
    """An experiment from plain values, with the checks of `load_config`; errors say `where`."""
    return experiment_from_dict(values, where, overrides, detectors=detectors)


def schema() -> Schema:
    """The JSON Schema of experiment files, with every detector's parameters."""
    return config_schema(detectors)


def recipes() -> dict[str, str]:
    """The bundled experiments: name -> the first line of the file, which says what it is."""
    return {name: what for name, what in _bundled().items() if not name.startswith(TRAININGS)}


def trainings() -> dict[str, str]:
    """The same of the bundled settings for `loopjax finetune`."""
    return {name: what for name, what in _bundled().items() if name.startswith(TRAININGS)}


def _bundled() -> dict[str, str]:
    found = {}
    for file in sorted(folder("configs").glob("*.yaml")):
        found[file.stem] = file.read_text(encoding="utf-8").split("\n", 1)[0].lstrip("# ")
    return found


def find_config(path: str | Path, known: Mapping[str, str] | None = None) -> Path:
    """The file of a recipe's name, or the path itself.

    Args:
        path: a file or a name.
        known: the names that there are; default `recipes`.

    Raises:
        UserError: neither a file nor a recipe.
    """
    known = recipes() if known is None else known
    if str(path) in known:
        return folder("configs") / f"{path}.yaml"
    if not Path(path).exists():
        raise UserError(
            f"{path}: no such file, and no bundled recipe of that name{nearest(str(path), known)}; "
            f"there are {', '.join(known)}"
        )
    return Path(path)
