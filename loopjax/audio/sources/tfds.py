"""Prepared TensorFlow datasets as a source, without TensorFlow.

`open_dataset` reads any prepared dataset with an audio feature. `tfds.features.Audio` itself cannot
be constructed without TensorFlow (it asks for a TensorFlow dtype), so its stored description is
read as the plain tensor that the records hold.
"""

import contextlib
import functools
import hashlib
import itertools
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core import read_only_builder

from loopjax.audio.decode import DecodeOptions, decode_array
from loopjax.audio.decoder import Reply, one_by_one
from loopjax.audio.loop import DecodeError, Loop, make_key
from loopjax.audio.sources.unit import Unit
from loopjax.errors import UserError
from loopjax.json_files import parse_json, read_json

PREFIX = "tfds:"
AUDIO_CLASS = "tensorflow_datasets.core.features.audio_feature.Audio"
TENSOR_CLASS = "tensorflow_datasets.core.features.tensor_feature.Tensor"
KNOWN_CLASSES = re.compile(r"tensorflow_datasets\.core\.features\.[a-z0-9_]+\.\w+")
RATE_FIELDS = ("sample_rate_hz", "sample_rate")
GROUP_FIELDS = ("group", "instrument/family", "family", "label", "genre")
NAME_FIELDS = ("path", "id", "filename", "name")


class _PreparedDataset(read_only_builder.ReadOnlyBuilder, skip_registration=True):
    """A prepared dataset whose audio features are read as plain tensors."""

    def _info(self) -> tfds.core.DatasetInfo:
        description = Path(self.data_dir) / "features.json"
        try:
            features = read_json(description)
        except (OSError, ValueError) as error:
            raise UserError(f"cannot read {description}: {error}") from None
        _require_known_classes(features, description)
        self.audio_field, self.audio_rate_hz = _plain_audio(features)
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeatureConnector.from_json(features)
        )


def _require_known_classes(node: object, file: Path) -> None:
    """Refuses classes outside TFDS: their modules would be imported, whatever they hold.

    Raises:
        UserError: names the class.
    """
    if isinstance(node, list):
        for child in node:
            _require_known_classes(child, file)
    if not isinstance(node, dict):
        return
    named = [node.get(key) for key in ("pythonClassName", "python_class_name")]
    if "content" in node:  # as older versions wrote it
        named.append(node.get("type"))
    for name in named:
        if isinstance(name, str) and not KNOWN_CLASSES.fullmatch(name):
            raise UserError(f"{file} asks for the class {name!r}, which is none of TFDS's own")
    for key, value in node.items():
        if key == "json" and isinstance(value, str):
            with contextlib.suppress(ValueError):
                value = parse_json(value)
        _require_known_classes(value, file)


def _plain_audio(node: dict[str, Any], path: str = "") -> tuple[str, int]:
    """Replaces audio features by tensors, in place; returns the first one's path and rate."""
    found = ("", 0)
    for name, child in sorted(node.get("featuresDict", {}).get("features", {}).items()):
        inner = f"{path}/{name}".lstrip("/")
        if child.get("pythonClassName") == AUDIO_CLASS:
            audio = child.pop("audio", None) or parse_json(child.pop("jsonFeature")["json"])
            if audio.get("lazyDecode"):
                raise UserError(f"the audio feature {inner!r} is stored undecoded; prepare it anew")
            rate = int(audio.pop("sampleRate", 0) or 0)
            audio.pop("fileFormat", None)
            child.update(pythonClassName=TENSOR_CLASS, tensor=audio)
            found = found if found[0] else (inner, rate)
        else:
            deeper = _plain_audio(child, inner)
            found = found if found[0] else deeper
    if not found[0] and not path and "audio" in node.get("featuresDict", {}).get("features", {}):
        return "audio", 0
    return found


@dataclass(frozen=True)
class AudioDataset:
    """A prepared dataset: its records are loops."""

    name: str  # name/config/version
    splits: dict[str, Any]  # split -> random-access source of examples
    audio_field: str
    rate_hz: int  # 0: each example says
    label_names: dict[str, list[str]]  # of the class labels that may serve as group

    columns = ()

    @property
    def n_loops(self) -> int:
        """Number of records."""
        return len(self)

    def __len__(self) -> int:
        return sum(len(source) for source in self.splits.values())

    def loops(self, process_index: int = 0, process_count: int = 1) -> Iterator[Loop]:
        """The manifest: one row per record; groups come with the records."""
        for split, source in self.splits.items():
            for i in range(len(source)):
                path = f"{PREFIX}{self.name}/{split}/{i}"
                key = make_key(path.encode())
                if int(key, 16) % process_count == process_index:
                    yield Loop(key, path, path.encode(), 0, 0, split)

    def units(self, n_loops: int) -> Iterator[Unit]:
        """Stretches of the manifest."""
        loops = self.loops()
        number = 0
        while some := list(itertools.islice(loops, n_loops)):
            digest = hashlib.sha256("".join(loop.key for loop in some).encode()).hexdigest()
            yield Unit(number, digest, functools.partial(iter, some))
            number += 1

    def decoder(self, options: DecodeOptions, timeout_s: float) -> "RecordDecoder":
        """A reader with the decoders' interface; records need no timeout."""
        return RecordDecoder(self, options)


class RecordDecoder:
    """Reads records in this process: there is no codec that could crash."""

    missing_limits: tuple[str, ...] = ()

    def __init__(self, dataset: AudioDataset, options: DecodeOptions):
        self._dataset, self._options = dataset, options
        self._samples = np.zeros(0, np.float32)

    def decode(self, loop: Loop) -> Reply:
        """Reads one record.

        Raises:
            DecodeError: the record's audio was rejected.
        """
        split, index = loop.path_bytes.decode().rsplit("/", 2)[1:]
        try:
            example = self._dataset.splits[split][int(index)]
        except (MemoryError, KeyboardInterrupt):
            raise
        except Exception as error:  # noqa: BLE001 - array_record and TFDS raise what they like
            message = f"the record cannot be read: {error}".splitlines()[0][:300]
            raise DecodeError("read_error", message) from None
        field = functools.partial(_field, example)
        rate_hz = self._dataset.rate_hz or next(
            (int(value) for value in map(field, RATE_FIELDS) if value is not None), 0
        )
        if rate_hz == 0:
            raise DecodeError("bad_header", "the dataset does not say its sample rate")
        values = field(self._dataset.audio_field)
        if values is None:
            raise DecodeError("no_samples", "the record holds no audio")
        samples = np.asarray(values)
        decoded = decode_array(samples, rate_hz, self._options)
        self._samples = np.ascontiguousarray(decoded.samples)
        group = next(filter(None, (self._group(example, path) for path in GROUP_FIELDS)), split)
        name = next((_text(v) for v in map(field, NAME_FIELDS) if v is not None), "")
        named = replace(loop, path=f"{loop.path}#{name}" if name else loop.path, group=group)
        return Reply(named, decoded.info, self._samples.dtype, self._samples.size, self)

    def decode_each(self, loops: Sequence[Loop]) -> Iterator[Reply | DecodeError]:
        """Reads records one after the other."""
        return one_by_one(self.decode, loops)

    def _group(self, example: dict[str, Any], path: str) -> str:
        value = _field(example, path)
        names = self._dataset.label_names.get(path)
        if value is None or (names and not 0 <= int(value) < len(names)):
            return ""  # TFDS writes -1 where a label is unknown
        return names[int(value)] if names else _text(value)

    def copy_samples(self, out: np.ndarray) -> None:
        """Copies the samples of the latest record."""
        out[:] = self._samples

    def interrupt(self) -> None:
        """Records are read at once."""

    def close(self) -> None:
        """Nothing to release."""


def _field(example: dict[str, Any], path: str) -> Any:
    value: Any = example
    for part in path.split("/"):
        if not isinstance(value, dict) or part not in value:
            return None
        value = value[part]
    return None if isinstance(value, dict) else value


def _text(value: Any) -> str:
    return value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else str(value)


def open_dataset(source: str) -> AudioDataset:
    """Opens `tfds:NAME[/CONFIG][:VERSION][@SPLIT]` or `tfds:FOLDER[@SPLIT]`.

    Names are looked up below `TFDS_DATA_DIR` (default `~/tensorflow_datasets`); the newest
    version and all splits are the default. Nothing is downloaded.

    Raises:
        UserError: not prepared, not in array_record format, no audio feature, unknown split.
    """
    name, _, split = source.removeprefix(PREFIX).partition("@")
    folder = _prepared_folder(name)
    builder = _PreparedDataset(folder)
    field = builder.audio_field
    if not field:
        raise UserError(f"{source}: the dataset has no audio feature")
    wanted = [split] if split else sorted(builder.info.splits)
    unknown = [s for s in wanted if s not in builder.info.splits]
    if unknown:
        raise UserError(f"{source}: no split {split!r}; there are {sorted(builder.info.splits)}")
    try:
        sources: Any = builder.as_data_source()
    except NotImplementedError:
        raise UserError(
            f"{source} is stored as {builder.info.file_format}; prepare it with "
            "download_and_prepare(file_format='array_record') for random access"
        ) from None
    labels = {path: _label_names(builder.info.features, path) for path in GROUP_FIELDS}
    return AudioDataset(
        builder.info.full_name,
        {name: sources[name] for name in wanted},
        field,
        builder.audio_rate_hz,
        {path: names for path, names in labels.items() if names},
    )


def _label_names(features: Any, path: str) -> list[str]:
    for part in path.split("/"):
        if not hasattr(features, "keys") or part not in features:
            return []
        features = features[part]
    return list(features.names) if isinstance(features, tfds.features.ClassLabel) else []


def _prepared_folder(name: str) -> Path:
    path = Path(name).expanduser()
    if (path / "features.json").is_file():
        return path
    root = Path(os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()
    name, _, version = name.partition(":")
    prepared = [
        file.parent
        for base in (path, root / name)
        for pattern in ("*/features.json", "*/*/features.json")
        for file in base.glob(pattern)
        if not version or file.parent.name == version
    ]
    configs = {folder.parent for folder in prepared}
    if not prepared:
        raise UserError(
            f"no prepared dataset {name!r} in {root} (set TFDS_DATA_DIR, or give its folder)"
        )
    if len(configs) > 1:
        names = ", ".join(sorted(f"{config.parent.name}/{config.name}" for config in configs))
        raise UserError(f"{name!r} has several configurations, name one of: {names}")
    return max(prepared, key=_version_order)


def _version_order(folder: Path) -> list[int]:
    return [int(part) if part.isdigit() else -1 for part in folder.name.split(".")]
