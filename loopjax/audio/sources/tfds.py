"""TensorFlow Datasets without TensorFlow: a folder into a dataset, a dataset into embeddings.

`LoopFolder` writes a versioned, split array_record dataset from a folder. `open_dataset` reads any
prepared dataset with an audio feature. `tfds.features.Audio` itself cannot be constructed without
TensorFlow (it asks for a TensorFlow dtype), so its stored description is read as the plain tensor
that the records hold.
"""

import contextlib
import csv
import functools
import hashlib
import json
import logging
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core import read_only_builder

from loopjax.audio.decode import DecodeOptions, decode_array, decode_file
from loopjax.audio.decoder import Reply
from loopjax.audio.loop import DecodeError, Failure, Loop, display, make_key
from loopjax.audio.sources.files import scan
from loopjax.errors import UserError

PREFIX = "tfds:"
log = logging.getLogger(__name__)
SPLITS = {"train": 0.8, "validation": 0.1, "test": 0.1}
AUDIO_CLASS = "tensorflow_datasets.core.features.audio_feature.Audio"
TENSOR_CLASS = "tensorflow_datasets.core.features.tensor_feature.Tensor"
KNOWN_CLASSES = re.compile(r"tensorflow_datasets\.core\.features\.[a-z0-9_]+\.\w+")
RATE_FIELDS = ("sample_rate_hz", "sample_rate")
GROUP_FIELDS = ("group", "instrument/family", "family", "label", "genre")
NAME_FIELDS = ("path", "id", "filename", "name")


class LoopFolder(tfds.core.GeneratorBasedBuilder):
    """A folder of loops, with optional metadata, as a dataset split by group.

    Each example holds `audio` (float32, mono, at the file's rate), `sample_rate_hz`, `duration_s`,
    `path` (relative to the folder), `group` (parent folder), `sha256` and one text per metadata
    column. All loops of a group are in one split. Files that cannot be decoded are left out and
    listed in `rejected`.
    """

    VERSION = tfds.core.Version("1.0.0")
    name = "loop_folder"

    def __init__(
        self,
        folder: str | os.PathLike,
        *,
        metadata: str | os.PathLike | None = None,
        dataset_name: str | None = None,
        data_dir: str | os.PathLike | None = None,
        options: DecodeOptions | None = None,
    ):
        """Describes the dataset; `download_and_prepare()` writes it.

        Args:
            folder: root of the loops.
            metadata: CSV with a column `file` (path relative to the folder); every other column
                becomes a text feature; a column `split` overrides the split by group.
            dataset_name: name of the configuration; default: the folder's name.
            data_dir: where datasets live; default: TFDS's own.
            options: decoding limits and policies.

        Raises:
            UserError: the metadata cannot be read or has no column `file`, or what is prepared
                under this name holds other loops; says which.
        """
        self._arguments = {
            "folder": os.fspath(Path(folder).absolute()),
            "metadata": None if metadata is None else os.fspath(Path(metadata).absolute()),
            "dataset_name": dataset_name,
            "data_dir": None if data_dir is None else os.fspath(Path(data_dir).absolute()),
            "options": options,
        }
        self._folder = Path(folder)
        self._labels, self._columns = _read_metadata(metadata)
        self._options = options or DecodeOptions(device_rates_hz=tuple(range(1, 768_001)))
        self.rejected: list[Failure] = []
        config = tfds.core.BuilderConfig(
            name=dataset_name or self._folder.resolve().name,
            version=self.VERSION,
            description=f"Loops under {self._folder.name}",
        )
        super().__init__(
            config=config,
            data_dir=None if data_dir is None else os.fspath(data_dir),
            file_format="array_record",
        )
        if (Path(self.data_dir) / "dataset_info.json").exists():
            self._require_same_loops(self.info.metadata or {})

    def __getstate__(self) -> dict[str, Any]:
        """The arguments: worker processes construct the builder anew."""
        return self._arguments

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Constructs the builder; what is prepared is found again."""
        self.__init__(**state)

    def _contents(self) -> dict[str, Any]:
        """What the dataset is made of: files by size and time, metadata, settings."""
        loops = [row for row in scan([self._folder]) if isinstance(row, Loop)]
        metadata = self._arguments["metadata"]
        digest = "" if metadata is None else hashlib.sha256(Path(metadata).read_bytes()).hexdigest()
        return {
            "files": {self._relative(loop): [loop.size_bytes, loop.mtime_ns] for loop in loops},
            "metadata_sha256": digest,
            "options": json.loads(json.dumps(asdict(self._options))),
        }

    def _require_same_loops(self, prepared: Mapping[str, Any]) -> None:
        here = self._contents()
        if {name: prepared.get(name) for name in here} == here:
            return
        old, new = prepared.get("files") or {}, here["files"]
        changes = {
            "only here": sorted(new.keys() - old.keys()),
            "only there": sorted(old.keys() - new.keys()),
            "changed": sorted(path for path in new.keys() & old.keys() if new[path] != old[path]),
        }
        told = "; ".join(
            f"{len(paths)} {what} ({', '.join(paths[:3])})"
            for what, paths in changes.items()
            if paths
        )
        raise UserError(
            f"{self.data_dir} was prepared from other contents than {self._folder} has now "
            f"({told or 'other metadata or settings'}); delete it to prepare it anew, or give "
            "another dataset_name"
        )

    def _info(self) -> tfds.core.DatasetInfo:
        features: dict[str, Any] = {
            "audio": tfds.features.Tensor(shape=(None,), dtype=np.float32),
            "sample_rate_hz": np.int32,
            "duration_s": np.float64,
            "path": tfds.features.Text(),
            "group": tfds.features.Text(),
            "sha256": tfds.features.Text(),
        }
        features |= {name: tfds.features.Text() for name in self._columns}
        return tfds.core.DatasetInfo(
            builder=self,
            description="Audio loops from a local folder, mono, at their own sample rate.",
            metadata=tfds.core.MetadataDict(self._contents()),
            features=tfds.features.FeaturesDict(features),
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator]:
        loops = [row for row in scan([self._folder]) if isinstance(row, Loop)]
        by_split: dict[str, list[Loop]] = {}
        for loop in loops:
            given = self._labels.get(self._relative(loop), {}).get("split")
            by_split.setdefault(given or split_of_group(loop.group), []).append(loop)
        if len(by_split) == 1 and len(loops) > 1:
            log.warning(
                "all %d loops under %s are in the split %r, because all of a group go together; "
                "give metadata with a column 'split' to part them",
                len(loops), self._folder, next(iter(by_split)),
            )  # fmt: skip
        return {name: self._generate_examples(rows) for name, rows in sorted(by_split.items())}

    def _generate_examples(self, loops: list[Loop]) -> Iterator[tuple[str, dict[str, Any]]]:
        for loop in loops:
            try:
                decoded = decode_file(
                    loop.path_bytes, loop.size_bytes, loop.mtime_ns, self._options
                )
            except DecodeError as error:
                self.rejected.append(Failure.of(loop, "decode", error.reason, str(error)))
                continue
            samples = decoded.samples
            if samples.dtype == np.int16:
                samples = samples.astype(np.float32) / np.float32(32768.0)
            relative = self._relative(loop)
            labels = self._labels.get(relative, {})
            example = {
                "audio": samples,
                "sample_rate_hz": decoded.info.source_rate_hz,
                "duration_s": decoded.info.duration_s,
                "path": relative,
                "group": loop.group,
                "sha256": decoded.info.sha256,
            }
            yield loop.key, example | {name: labels.get(name, "") for name in self._columns}

    def _relative(self, loop: Loop) -> str:
        root = os.fsencode(self._folder.absolute())
        return display(loop.path_bytes.removeprefix(root).lstrip(b"/"))


def split_of_group(group: str) -> str:
    """The split of a group of loops: a fixed function of its name."""
    place = int(hashlib.sha256(group.encode()).hexdigest()[:8], 16) / 2**32
    for name, share in SPLITS.items():
        if place < share:
            return name
        place -= share
    return "test"


def _read_metadata(
    path: str | os.PathLike | None,
) -> tuple[dict[str, dict[str, str]], tuple[str, ...]]:
    if path is None:
        return {}, ()
    try:
        with Path(path).open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            columns = tuple(reader.fieldnames or ())
            rows = {row["file"]: row for row in reader} if "file" in columns else {}
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"cannot read metadata {path}: {error}") from None
    if "file" not in columns:
        raise UserError(f"{path} has no column 'file' (found: {', '.join(columns)})")
    own = {"file", "split", "audio", "path", "group", "sha256", "sample_rate_hz", "duration_s"}
    return rows, tuple(name for name in columns if name not in own)


class _PreparedDataset(read_only_builder.ReadOnlyBuilder, skip_registration=True):
    """A prepared dataset whose audio features are read as plain tensors."""

    def _info(self) -> tfds.core.DatasetInfo:
        description = Path(self.data_dir) / "features.json"
        try:
            features = json.loads(description.read_text(encoding="utf-8"))
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
                value = json.loads(value)
        _require_known_classes(value, file)


def _plain_audio(node: dict[str, Any], path: str = "") -> tuple[str, int]:
    """Replaces audio features by tensors, in place; returns the first one's path and rate."""
    found = ("", 0)
    for name, child in sorted(node.get("featuresDict", {}).get("features", {}).items()):
        inner = f"{path}/{name}".lstrip("/")
        if child.get("pythonClassName") == AUDIO_CLASS:
            audio = child.pop("audio", None) or json.loads(child.pop("jsonFeature")["json"])
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
