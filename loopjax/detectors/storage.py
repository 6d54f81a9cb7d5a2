"""Fitted detectors as folders: config.json (what it is) beside an Orbax tree (its arrays)."""

import hashlib
import importlib.metadata
import json
import os
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from loopjax.detectors import detector_class, detector_kinds
from loopjax.detectors.base import Detector
from loopjax.errors import UserError, WriteError

FORMAT = "loopjax-detector-1"
_SCORES = ("decision_scores_", "calibration_scores_")


def save_detector(detector: Detector, path: Path) -> Path:
    """Write a fitted detector to `path`, complete or not at all; returns the path.

    An existing detector folder is replaced; any other existing path is refused.

    Raises:
        UserError: `path` exists and is not a detector.
        WriteError: the folder cannot be written.
    """
    path = path.absolute()
    if path.exists() and not _is_detector(path):
        raise UserError(f"{path} exists and is no saved detector: choose another path")
    arrays, scalars = _split_state(detector)
    params = detector.get_params(deep=False)
    config = {
        "format": FORMAT,
        "kind": detector.kind,
        "score_convention": "higher_is_anomalous",
        "params": {k: v for k, v in params.items() if k not in detector.run_time_params},
        "fitted": {
            "n_features_in_": detector.n_features_in_,
            "threshold_": detector.threshold_,
            **scalars,
        },
        "arrays": {
            name: {"shape": a.shape, "dtype": str(a.dtype), "sha256": _digest(a)}
            for name, a in arrays.items()
        },
        "versions": {
            package: importlib.metadata.version(package)
            for package in ("jax", "flax", "orbax-checkpoint", "numpy")
        },
    }
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(temporary, ignore_errors=True)
        with ocp.StandardCheckpointer() as checkpointer:
            filled = {name: a for name, a in arrays.items() if a.size}  # Orbax refuses empty ones
            checkpointer.save(temporary / "arrays", _nest(filled))
        (temporary / "config.json").write_text(json.dumps(config, indent=1) + "\n", "utf-8")
        if path.exists():
            shutil.rmtree(path)
        temporary.rename(path)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise WriteError(f"cannot write the detector to {path}: {error}") from error
    return path


def load_detector(path: str | Path) -> Detector:
    """The fitted detector saved in a folder, on this machine's first device whatever trained it.

    Raises:
        UserError: the folder is missing, damaged, or no saved detector; the message names it.
    """
    path = Path(path).absolute()
    config = _read_config(path)
    kind = config.get("kind")
    if kind not in detector_kinds():
        known = ", ".join(detector_kinds())
        raise UserError(f"{path}: unknown detector kind {kind!r}; known: {known}")
    try:
        detector = detector_class(kind)(**_tuples(config["params"]))
        arrays = _restore_arrays(path / "arrays", config["arrays"])
        for name, value in config["fitted"].items():
            setattr(detector, name, value)
        for name, value in nest_arrays(arrays).items():
            setattr(detector, name, value)
    except (KeyError, TypeError, ValueError, OSError, AttributeError) as error:
        raise UserError(f"{path}: damaged detector ({_first_line(error)})") from error
    return detector


def _is_detector(path: Path) -> bool:
    try:
        return _read_config(path).get("format") == FORMAT
    except UserError:
        return False


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads((path / "config.json").read_text("utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path}: no saved detector here (config.json is missing)") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: damaged detector (config.json: {_first_line(error)})") from error
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        raise UserError(f"{path}: config.json does not describe a detector of format {FORMAT}")
    return config


def _split_state(detector: Detector) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    arrays: dict[str, np.ndarray] = {}
    scalars: dict[str, Any] = {}
    for name in (*detector._fitted, *_SCORES):
        value = getattr(detector, name, None)
        if value is None:
            continue
        if isinstance(value, (np.ndarray, jax.Array)):
            arrays[name] = np.asarray(value)
        elif isinstance(value, dict) and not _is_plain(value):
            arrays |= {
                f"{name}/{key}": np.asarray(leaf) for key, leaf in flatten_arrays(value).items()
            }
        else:
            scalars[name] = value
    return arrays, scalars


def _is_plain(value: Any) -> bool:
    """Whether a value holds only lists and numbers, such as a training history."""
    if isinstance(value, dict):
        return all(_is_plain(v) for v in value.values())
    return isinstance(value, (list, int, float, str))


def flatten_arrays(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dicts as one dict with names like "layers/0/linear/kernel"."""
    flat = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= flatten_arrays(value, f"{prefix}{key}/")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def nest_arrays(flat: dict[str, np.ndarray]) -> dict[str, Any]:
    """The inverse of `flatten_arrays`."""
    tree: dict[str, Any] = {}
    for path, value in flat.items():
        *parents, leaf = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = value
    return tree


def _nest(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The on-disk tree is flat: one Orbax array per name, `.` for `/`, which file systems own."""
    return {name.replace("/", "."): a for name, a in arrays.items()}


def _restore_arrays(path: Path, described: dict[str, Any]) -> dict[str, np.ndarray]:
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    with jax.enable_x64(True):
        target = {
            name.replace("/", "."): jax.ShapeDtypeStruct(
                tuple(spec["shape"]), np.dtype(spec["dtype"]), sharding=device
            )
            for name, spec in described.items()
            if 0 not in spec["shape"]
        }
        with ocp.StandardCheckpointer() as checkpointer:
            tree = checkpointer.restore(path, target)
        arrays = {
            name: np.asarray(tree.get(name.replace("/", "."), np.zeros(spec["shape"])))
            for name, spec in described.items()
        }
    for name, spec in described.items():
        if _digest(arrays[name]) != spec["sha256"]:
            raise ValueError(f"array {name} does not match its checksum")
    return arrays


def _digest(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


def _tuples(params: dict[str, Any]) -> dict[str, Any]:
    return {k: tuple(v) if isinstance(v, list) else v for k, v in params.items()}


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
