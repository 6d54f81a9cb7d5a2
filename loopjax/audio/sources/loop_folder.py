"""A folder of loops as a TensorFlow dataset, written without TensorFlow.

`LoopFolder` writes a versioned, split array_record dataset from a folder.
"""

import csv
import hashlib
import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from os import PathLike, fsencode, fspath
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core.utils.lazy_imports_utils import tensorflow as tf

from loopjax.audio.decode import DecodeOptions, decode_file
from loopjax.audio.loop import DecodeError, Failure, Loop, display
from loopjax.audio.sources.files import scan
from loopjax.errors import UserError

log = logging.getLogger(__name__)
FILE_FORMAT = "array_record"  # read without TensorFlow, at random
SPLITS = {"train": 0.8, "validation": 0.1, "test": 0.1}


class LoopFolder(tfds.core.GeneratorBasedBuilder):
    """A folder of loops, with optional metadata, as a dataset split by group.

    Each example holds `audio` (float32, mono, at the file's rate), `sample_rate_hz`, `duration_s`,
    `path` (relative to the folder), `group` (parent folder), `sha256` and one text per metadata
    column. All loops of a group are in one split. Files that cannot be decoded are left out and
    listed in `rejected`. `as_dataset` needs TensorFlow, `as_data_source` does not.
    """

    VERSION = tfds.core.Version("1.0.0")
    name = "loop_folder"

    def __init__(
        self,
        folder: str | PathLike[str],
        *,
        metadata: str | PathLike[str] | None = None,
        dataset_name: str | None = None,
        data_dir: str | PathLike[str] | None = None,
        options: DecodeOptions | None = None,
        config: str | tfds.core.BuilderConfig | None = None,
        version: str | tfds.core.Version | None = None,
        file_format: str | tfds.core.FileFormat | None = None,
    ):
        """Describes the dataset; `download_and_prepare()` writes it.

        Args:
            folder: root of the loops.
            metadata: CSV with a column `file` (path relative to the folder); every other column
                becomes a text feature; a column `split` overrides the split by group.
            dataset_name: name of the configuration; default: the folder's name.
            data_dir: where datasets live; default: TFDS's own.
            options: decoding limits and policies.
            config: how TFDS passes `dataset_name`: `tfds.load("loop_folder/NAME", folder=...)`.
            version: as TFDS passes it; there is one.
            file_format: default: what is prepared, else `array_record`. Only of `tfrecord` does
                `tfds.load` make a `tf.data.Dataset` where this class is not imported.

        Raises:
            UserError: two names, or the metadata cannot be read or has no column `file`, or what is
                prepared under this name holds other loops; says which.
        """
        name = config.name if isinstance(config, tfds.core.BuilderConfig) else config
        if name and dataset_name and name != dataset_name:
            raise UserError(f"dataset_name is {dataset_name!r} and config {name!r}; give one")
        self._arguments = {
            "folder": fspath(Path(folder).absolute()),
            "metadata": None if metadata is None else fspath(Path(metadata).absolute()),
            "dataset_name": dataset_name or name,
            "data_dir": None if data_dir is None else fspath(Path(data_dir).absolute()),
            "options": options,
            "version": version,
            "file_format": file_format,
        }
        self._folder = Path(folder)
        self._labels, self._columns = _read_metadata(metadata)
        self._options = options or DecodeOptions(device_rates_hz=tuple(range(1, 768_001)))
        self.rejected: list[Failure] = []
        super().__init__(
            config=tfds.core.BuilderConfig(
                name=dataset_name or name or self._folder.resolve().name,
                version=self.VERSION,
                description=f"Loops under {self._folder.name}",
            ),
            data_dir=self._arguments["data_dir"],
            version=self._arguments["version"],
            file_format=self._arguments["file_format"],
        )
        if (Path(self.data_dir) / "dataset_info.json").exists():
            self._require_same_loops(self.info.metadata or {})
        elif file_format is None:
            self.info.set_file_format(FILE_FORMAT, override=True)

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

    def _as_dataset(
        self,
        split: Any,
        decoders: Any = None,
        read_config: tfds.ReadConfig | None = None,
        shuffle_files: bool = False,
    ) -> Any:
        """A `tf.data.Dataset` of array records too, which TFDS itself only reads at random."""
        read_config = read_config or tfds.ReadConfig()
        if self.info.file_format != tfds.core.FileFormat.ARRAY_RECORD:
            return super()._as_dataset(split, decoders, read_config, shuffle_files)
        features: Any = self.info.features
        source: Any = self.as_data_source(split, decoders=decoders)  # pyright: ignore[reportCallIssue]

        def examples() -> Iterator[Any]:
            random = np.random.default_rng(read_config.shuffle_seed)
            order = random.permutation(len(source)) if shuffle_files else range(len(source))
            for i in order:
                yield source[int(i)]

        signature = tf.nest.map_structure(
            lambda info: tf.TensorSpec(info.shape, info.tf_dtype),
            features.get_tensor_info(),
        )
        dataset = tf.data.Dataset.from_generator(examples, output_signature=signature)
        return dataset.apply(tf.data.experimental.assert_cardinality(len(source)))

    def _relative(self, loop: Loop) -> str:
        root = fsencode(self._folder.absolute())
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
    path: str | PathLike[str] | None,
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
