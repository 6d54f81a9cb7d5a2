"""A folder of loops as a TensorFlow dataset, written without TensorFlow.

`LoopFolder` writes a versioned, split array_record dataset from a folder.
"""

import csv
import hashlib
import json
import logging
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from loopjax.audio.decode import DecodeOptions, decode_file
from loopjax.audio.loop import DecodeError, Failure, Loop, display
from loopjax.audio.sources.files import scan
from loopjax.errors import UserError

log = logging.getLogger(__name__)
SPLITS = {"train": 0.8, "validation": 0.1, "test": 0.1}


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
