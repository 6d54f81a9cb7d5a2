"""Trained models as folders: `config.json` (what it is) beside `arrays/`, an Orbax tree.

One format for every detector, whoever trained it. `config.json` holds kind, hyper-parameters,
fitted numbers, the arrays' shapes and checksums, package versions, and the sections that a caller
adds, such as `model`, where `loopjax fit` keeps the embedding space.
"""

import hashlib
import importlib.metadata
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from loopjax.arrays import read_arrays, write_arrays
from loopjax.detectors import detector_class, detector_kinds, parameter_types
from loopjax.detectors.base import Detector, check_type, fitted_types
from loopjax.errors import UserError
from loopjax.forks import refuse_after_fork
from loopjax.io import check_can_write, write_folder
from loopjax.io.hub_names import is_hub_name, pulled
from loopjax.json_files import read_json

FORMAT = "loopjax-detector-1"
# Fitted attributes that a detector may lack.
_OPTIONAL = (
    *("feature_names_in_", "calibration_scores_", "origin_"),
    # What only `partial_fit` needs, and earlier versions did not save.
    *("n_samples_seen_", "left_out_", "left_out_variance_", "eigenvalues_", "third_", "fourth_"),
)
Arrays = dict[str, np.ndarray]
Members = list[Detector]


class _ArrayNote(BaseModel):
    """What `config.json` says of an array."""

    model_config = ConfigDict(strict=True)
    shape: tuple[int, ...]
    dtype: Literal["float32", "float64", "int32", "int64"]
    sha256: str


class _Description(BaseModel):
    """A detector without its arrays, which may be a member of another one."""

    kind: object
    params: dict[str, object]
    fitted: dict[str, object]


class _Sections(_Description):
    """The sections of `config.json` that make a detector; others are their makers' affair."""

    arrays: dict[str, _ArrayNote]


_MEMBERS = TypeAdapter(list[_Description])


def save_detector(
    detector: Detector,
    folder: str | Path,
    extra: Mapping[str, object] | None = None,
    write_more: Callable[[Path], None] | None = None,
) -> Path:
    """Write a fitted detector, complete or not at all; returns the folder's absolute path.

    An existing model folder is replaced; any other existing path is refused.

    Args:
        detector: fitted.
        folder: where to.
        extra: further sections of `config.json`, JSON-serializable, for `read_detector_config`.
        write_more: adds files to the folder before it appears under its name.

    Raises:
        UserError: something else is there.
        WriteError: the folder cannot be written.
    """
    folder = Path(folder).absolute()
    if folder.exists() and not _may_be_replaced(folder):
        raise UserError(f"{folder} exists and is no saved model: choose another path")
    arrays, description = _fitted_state(detector)
    check_can_write(folder, sum(array.nbytes for array in arrays.values()))
    config = {
        "format": FORMAT,
        "score_convention": "higher_is_anomalous",
        **description,
        "arrays": {
            name: {"shape": a.shape, "dtype": str(a.dtype), "sha256": _digest(a)}
            for name, a in arrays.items()
        },
        "versions": {
            package: importlib.metadata.version(package)
            for package in ("jax", "flax", "orbax-checkpoint", "numpy")
        },
        **(extra or {}),
    }
    text = json.dumps(config, indent=1, allow_nan=False, default=_plain) + "\n"

    def write(temporary: Path) -> None:
        # Orbax refuses empty arrays; their description says all there is to know.
        filled = {_on_disk(name): a for name, a in arrays.items() if a.size}
        write_arrays(temporary / "arrays", filled)
        if write_more is not None:
            write_more(temporary)
        (temporary / "config.json").write_text(text, "utf-8")

    write_folder(folder, write)
    return folder


def model_folder(folder: str | Path) -> Path:
    """Where a model lies: the folder, that of a name of the Hub, or in a run its first choice's.

    Raises:
        UserError: a run without models, or a damaged one.
    """
    folder = pulled(folder).folder if is_hub_name(folder) else Path(folder)
    record = folder / "run.json"
    if (folder / "config.json").exists() or not record.exists():
        return folder
    try:
        config = read_json(record)["config"]
        primary = config["primary"] or config["detectors"][0]["name"]
        found = folder / "models" / primary / f"seed-{config['seeds'][0]}"
    except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
        raise UserError(f"{record} is damaged ({error!r})") from None
    if not found.exists():
        raise UserError(f"{folder} is a run without models: {found} is missing")
    return found


def load_detector(folder: str | Path) -> Detector:
    """The fitted detector in a model folder, on this machine's first device whatever trained it.

    Takes what `save_detector`, `loopjax fit` and `loopjax convert` wrote.

    Raises:
        UserError: the folder is missing, damaged, or no saved model; the message names the file.
    """
    refuse_after_fork()
    folder = model_folder(folder).absolute()
    config = read_detector_config(folder)
    file = folder / "config.json"
    try:
        sections = _Sections.model_validate_json(json.dumps(config))
    except ValidationError as error:
        problem = error.errors()[0]
        place = ".".join(map(str, problem["loc"]))
        raise UserError(f"{file}: damaged ({place}: {problem['msg']})") from None
    return _restored(sections, _read_arrays(folder, sections.arrays), file)


def _restored(described: _Description, arrays: Arrays, file: Path) -> Detector:
    """The detector of a description and its arrays.

    Raises:
        UserError: they make none; names the file.
    """
    kind = described.kind
    if not isinstance(kind, str) or kind not in detector_kinds():
        known = ", ".join(detector_kinds())
        raise UserError(f"{file}: unknown detector kind {kind!r}; known: {known}")
    cls = detector_class(kind)
    detector = cls(**_checked(described.params, parameter_types(kind), file, "params"))
    types = fitted_types(cls)
    as_arrays = {n: t for n, t in types.items() if t is np.ndarray or t == Arrays}
    values = dict(described.fitted)
    members: dict[str, object] = {}
    for name in (n for n, t in types.items() if t == Members and n in values):
        members[name], arrays = _restored_members(name, values.pop(name), arrays, file)
    unlimited = values.get("threshold_", 0.0) is None
    if unlimited:
        values["threshold_"] = 0.0
    names = values.pop("feature_names_in_", None)
    fitted = members
    if names is not None:
        checked = _checked({"names": names}, {"names": list[str]}, file, "feature_names_in_")
        fitted["feature_names_in_"] = np.array(checked["names"], object)
    fitted |= _checked(
        values, {n: t for n, t in types.items() if n not in as_arrays}, file, "fitted"
    )
    if unlimited:
        fitted["threshold_"] = float("inf")
    fitted |= _grouped(arrays, as_arrays)
    unknown = sorted(fitted.keys() - types.keys())
    missing = sorted(types.keys() - fitted.keys() - set(_OPTIONAL))
    if unknown or missing:
        raise UserError(
            f"{file}: damaged (missing {', '.join(missing) or 'nothing'}, "
            f"unknown {', '.join(unknown) or 'nothing'})"
        )
    return detector.set_fitted(fitted)


def _restored_members(
    name: str, notes: object, arrays: Arrays, file: Path
) -> tuple[Members, Arrays]:
    """The detectors of a fitted attribute, and the arrays that are not theirs."""
    try:
        described = _MEMBERS.validate_json(json.dumps(notes))
    except ValidationError as error:
        raise UserError(f"{file}: damaged ({name}: {error.errors()[0]['msg']})") from None
    members = []
    for i, member in enumerate(described):
        prefix = f"{name}/{i}/"
        own = {key: array for key, array in arrays.items() if key.startswith(prefix)}
        arrays = {key: array for key, array in arrays.items() if key not in own}
        named = {key.removeprefix(prefix): array for key, array in own.items()}
        members.append(_restored(member, named, file))
    return members, arrays


def read_detector_config(folder: str | Path) -> dict[str, Any]:
    """`config.json` of a model folder, with the sections that its maker added.

    Raises:
        UserError: missing, damaged, or not of this format; the message names the file.
    """
    file = Path(folder).absolute() / "config.json"
    try:
        config = read_json(file)
    except FileNotFoundError as error:
        raise UserError(f"{file.parent}: no saved model here (config.json is missing)") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: damaged ({_first_line(error)})") from error
    if config.get("format") != FORMAT:
        raise UserError(f"{file} does not describe a model of format {FORMAT}")
    return config


def _may_be_replaced(folder: Path) -> bool:
    try:
        if folder.is_dir() and not any(folder.iterdir()):
            return True
        read_detector_config(folder)
    except (UserError, OSError):
        return False
    return True


def _fitted_state(detector: Detector) -> tuple[Arrays, dict[str, object]]:
    """What `fit` learned: arrays by name ("encoder_/layers/0/linear/kernel"), and the rest.

    Raises:
        UserError: the detector is not fitted.
    """
    arrays: Arrays = {}
    values: dict[str, object] = {}
    for name, annotation in fitted_types(type(detector)).items():
        if name in _OPTIONAL and not hasattr(detector, name):
            continue
        if not hasattr(detector, name):
            raise UserError(f"{type(detector).__name__} is not fitted ({name} is missing)")
        value = getattr(detector, name)
        if annotation == Arrays:
            arrays |= {f"{name}/{key}": np.asarray(array) for key, array in value.items()}
        elif annotation == Members:
            states = [_fitted_state(member) for member in value]
            values[name] = [description for _, description in states]
            for i, (own, _) in enumerate(states):
                arrays |= {f"{name}/{i}/{key}": array for key, array in own.items()}
        elif isinstance(value, np.ndarray) and value.dtype != object:
            arrays[name] = value
        else:
            values[name] = value
    if detector.threshold_ == np.inf:  # no threshold, which JSON has no number for
        values["threshold_"] = None
    params = detector.get_params(deep=False)
    kept = {name: params[name] for name in params if name not in detector.run_time_params}
    return arrays, {"kind": detector.kind, "params": kept, "fitted": values}


def _checked(
    values: Mapping[str, object], types: Mapping[str, Any], file: Path, section: str
) -> dict[str, Any]:
    """Values in the types of their annotations: a list becomes a tuple, NaN is an error.

    Raises:
        UserError: unknown name or wrong type.
    """
    checked = {}
    for name, value in values.items():
        if name not in types:
            raise UserError(f"{file}: damaged (unknown {section} {name!r})")
        try:
            checked[name] = check_type(value, types[name])
        except ValueError as error:
            raise UserError(f"{file}: {name} is {value!r}: {error}") from None
    return checked


def _read_arrays(folder: Path, notes: Mapping[str, _ArrayNote]) -> Arrays:
    """The arrays that `config.json` describes, checked against it.

    Raises:
        UserError: an array is damaged; names folder and array.
    """
    empty = {name for name, note in notes.items() if 0 in note.shape}
    shapes = {
        _on_disk(name): jax.ShapeDtypeStruct(note.shape, np.dtype(note.dtype))
        for name, note in notes.items()
        if name not in empty
    }
    tree = read_arrays(folder / "arrays", shapes)
    arrays = {
        name: np.zeros(note.shape, note.dtype) if name in empty else tree[_on_disk(name)]
        for name, note in notes.items()
    }
    for name, array in arrays.items():
        if _digest(array) != notes[name].sha256:
            raise UserError(f"{folder / 'arrays'}: array {name} does not match its checksum")
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise UserError(f"{folder / 'arrays'}: array {name} holds NaN or infinity")
    return arrays


def _grouped(arrays: Arrays, types: Mapping[str, Any]) -> dict[str, object]:
    """Arrays by fitted attribute: alone, or as a dict where the attribute holds several."""
    grouped: dict[str, Any] = {name: {} for name, kind in types.items() if kind == Arrays}
    for name, array in arrays.items():
        attribute, _, key = name.partition("/")
        if attribute in grouped and key:
            grouped[attribute][key] = array
        else:
            grouped[name] = array
    return {name: value for name, value in grouped.items() if not isinstance(value, dict) or value}


def _on_disk(name: str) -> str:
    """The tree on disk is flat, one Orbax array per name; `/` belongs to file systems."""
    return name.replace("/", ".")


def _digest(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


def _plain(value: object) -> object:
    """NumPy's numbers and arrays of text as JSON takes them."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} cannot be saved")


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
