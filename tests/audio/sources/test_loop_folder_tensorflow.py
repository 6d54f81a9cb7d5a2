"""TFDS's own tests of a builder, and what TensorFlow makes of prepared folders."""

from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds

from loopjax.audio.sources.loop_folder import LoopFolder
from tests.audio_files import write_tone

pytest.importorskip("tensorflow", reason="pip install tensorflow: only TFDS's own tests need it")
EXAMPLES = {"train": 4, "validation": 1, "test": 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Loops whose metadata name their splits."""
    root = tmp_path_factory.mktemp("folder") / "pack"
    lines = ["file,split,key"]
    for split, n_loops in EXAMPLES.items():
        for i in range(n_loops):
            name = f"{split}_group/{i}.wav"
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            write_tone(root / name, 0.1, 44_100, seed=len(lines))
            lines.append(f"{name},{split},C")
    (root / "metadata.csv").write_text("\n".join(lines))
    return root


@pytest.fixture(scope="class")
def of_the_class(request, folder):
    request.cls.folder, request.cls.EXAMPLE_DIR = folder, str(folder)


@pytest.mark.usefixtures("of_the_class")
class TestArrayRecord(tfds.testing.DatasetBuilderTestCase):
    """TFDS's contract, with records as they are written by default."""

    DATASET_CLASS = LoopFolder
    SPLITS = EXAMPLES
    FORMAT = None

    def _make_builder(self, config=None):
        return LoopFolder(
            self.folder,
            metadata=self.folder / "metadata.csv",
            data_dir=self.tmp_dir,
            config=config,
            version=self.VERSION,
            file_format=self.FORMAT,
        )


class TestTfRecord(TestArrayRecord):
    """The same with TensorFlow's records."""

    FORMAT = "tfrecord"


@pytest.mark.parametrize("shuffle_files", [False, True])
def test_array_records_are_a_tensorflow_dataset(folder, tmp_path, shuffle_files):
    builder = LoopFolder(folder, metadata=folder / "metadata.csv", data_dir=tmp_path)
    builder.download_and_prepare()
    config = tfds.ReadConfig(shuffle_seed=2)
    found = builder.as_dataset(split="train", shuffle_files=shuffle_files, read_config=config)
    assert len(found) == EXAMPLES["train"]
    source = {example["path"]: example for example in builder.as_data_source("train")}
    paths = []
    for example in tfds.as_numpy(found):
        paths.append(example["path"])
        np.testing.assert_array_equal(example["audio"], source[example["path"]]["audio"])
    assert sorted(paths) == sorted(source)
    assert (paths == list(source)) is not shuffle_files
    assert len(list(builder.as_dataset(split="train[:50%]"))) == 2


def test_tfds_loads_by_name(folder, tmp_path):
    made = tfds.load(
        "loop_folder/mine",
        data_dir=tmp_path,
        builder_kwargs={"folder": folder, "metadata": folder / "metadata.csv"},
    )
    assert {name: len(part) for name, part in made.items()} != {}
    other = tmp_path / "tfrecord"
    builder = LoopFolder(folder, metadata=folder / "metadata.csv", data_dir=other)
    builder.download_and_prepare(file_format="tfrecord")
    found = tfds.load("loop_folder/pack", data_dir=other)
    assert {name: len(part) for name, part in found.items()} == EXAMPLES
    again = LoopFolder(folder, metadata=folder / "metadata.csv", data_dir=other)
    assert len(list(again.as_dataset(split="test"))) == EXAMPLES["test"]
