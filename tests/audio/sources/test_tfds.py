"""Folders into TFDS datasets and TFDS datasets into embeddings, without TensorFlow."""

import csv
import json
import os
import pickle
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from absl import flags

from loopjax.audio.sources.loop_folder import LoopFolder, split_of_group
from loopjax.audio.sources.tfds import AUDIO_CLASS, open_dataset
from loopjax.config import EmbedConfig
from loopjax.embedding.chain import embed, embed_corpus
from loopjax.errors import UserError
from loopjax.store.read import read_embeddings
from tests.audio_files import write_tone
from tests.fake_encoder import FakeEncoder

GROUPS = ("bass", "drums", "keys", "pads", "vox", "fx")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Loops of several rates and formats in six groups, a broken one, and metadata."""
    root = tmp_path_factory.mktemp("folder") / "my_pack"
    rows = []
    for i in range(18):
        group = GROUPS[i % len(GROUPS)]
        path = root / group / f"loop_{i}{('.wav', '.flac', '.ogg')[i % 3]}"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_tone(path, 0.3, (44_100, 48_000)[i % 2], seed=i, channels=1 + i % 2)
        rows.append({"file": f"{group}/{path.name}", "key": f"C{i}", "bpm": str(100 + i)})
    (root / "bass" / "broken.wav").write_bytes(b"not audio")
    with (root / "metadata.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["file", "key", "bpm"])
        writer.writeheader()
        writer.writerows(rows)
    return root


@pytest.fixture(scope="module")
def prepared(folder, tmp_path_factory):
    data_dir = tmp_path_factory.mktemp("tfds")
    builder = LoopFolder(folder, metadata=folder / "metadata.csv", data_dir=data_dir)
    builder.download_and_prepare()
    return builder, data_dir


@pytest.mark.skipif(find_spec("tensorflow") is not None, reason="it is installed")
def test_no_tensorflow_is_needed(prepared):
    assert "tensorflow" not in sys.modules


def test_folder_becomes_a_versioned_dataset_split_by_group(prepared, folder):
    builder, _ = prepared
    assert builder.info.full_name == "loop_folder/my_pack/1.0.0"
    seen = {}
    for split, source in builder.as_data_source().items():
        for example in source:
            path = example["path"].decode()
            group, name = path.split("/")
            seen[path] = example
            assert split == split_of_group(group)
            assert example["group"].decode() == group
            assert example["bpm"].decode() == str(100 + int(name.split("_")[1].split(".")[0]))
            assert example["audio"].dtype == np.float32
            assert example["duration_s"] == pytest.approx(
                example["audio"].size / example["sample_rate_hz"]
            )
    assert len(seen) == 18
    assert [Path(f.path).name for f in builder.rejected] == ["broken.wav"]


def test_embedding_the_dataset_equals_embedding_the_folder(prepared, folder, monkeypatch, tmp_path):
    _, data_dir = prepared
    monkeypatch.setenv("TFDS_DATA_DIR", str(data_dir))
    direct = embed(folder, FakeEncoder(), batch_size=4, workers=1)
    options = EmbedConfig(batch_size=4, workers=1)
    embed_corpus(["tfds:loop_folder/my_pack"], FakeEncoder(), tmp_path / "store", options)
    through = read_embeddings(tmp_path / "store")
    by_path = {
        row["path"].split("my_pack/", 1)[1]: vector
        for row, vector in zip(direct.table.to_pylist(), direct.matrix, strict=True)
    }
    assert len(through) == 18
    for row, vector in zip(through.table.to_pylist(), through.matrix, strict=True):
        name = row["path"].partition("#")[2]
        np.testing.assert_allclose(vector, by_path[name], atol=1e-5)
        assert row["group"] == name.split("/")[0]
    again = embed_corpus(["tfds:loop_folder/my_pack"], FakeEncoder(), tmp_path / "store", options)
    assert (again.n_embedded, again.n_skipped) == (0, 18)


def test_splits_versions_and_folders_can_be_named(prepared, monkeypatch):
    builder, data_dir = prepared
    monkeypatch.setenv("TFDS_DATA_DIR", str(data_dir))
    whole = open_dataset("tfds:loop_folder/my_pack:1.0.0")
    by_folder = open_dataset(f"tfds:{builder.data_dir}")
    assert len(whole) == len(by_folder) == 18
    split = next(iter(whole.splits))
    assert len(open_dataset(f"tfds:loop_folder@{split}")) == len(whole.splits[split])
    with pytest.raises(UserError, match="no split 'dev'"):
        open_dataset("tfds:loop_folder@dev")
    with pytest.raises(UserError, match="no prepared dataset 'nothing'"):
        open_dataset("tfds:nothing")


def make_pack(root: Path, seed: int) -> Path:
    for i in range(3):
        (root / "pack" / "bass").mkdir(parents=True, exist_ok=True)
        write_tone(root / "pack" / "bass" / f"{i}.wav", 0.1, seed=seed + i)
    return root / "pack"


def test_folders_of_equal_name_are_told_apart(tmp_path):
    first, second = make_pack(tmp_path / "a", 0), make_pack(tmp_path / "b", 50)
    LoopFolder(first, data_dir=tmp_path / "tfds").download_and_prepare()
    with pytest.raises(UserError, match=r"other contents .*3 changed \(bass/0\.wav, "):
        LoopFolder(second, data_dir=tmp_path / "tfds")
    other = LoopFolder(second, dataset_name="other", data_dir=tmp_path / "tfds")
    other.download_and_prepare()
    assert other.info.full_name == "loop_folder/other/1.0.0"
    again = LoopFolder(first, data_dir=tmp_path / "tfds")
    again.download_and_prepare()
    assert sum(split.num_examples for split in again.info.splits.values()) == 3


def test_added_changed_and_removed_files_are_seen(tmp_path):
    pack = make_pack(tmp_path, 0)
    LoopFolder(pack, data_dir=tmp_path / "tfds").download_and_prepare()
    write_tone(pack / "bass" / "new.wav", 0.1)
    with pytest.raises(UserError, match=r"1 only here \(bass/new\.wav\)"):
        LoopFolder(pack, data_dir=tmp_path / "tfds")
    (pack / "bass" / "new.wav").unlink()
    (pack / "bass" / "0.wav").rename(tmp_path / "gone.wav")
    with pytest.raises(UserError, match=r"1 only there \(bass/0\.wav\)"):
        LoopFolder(pack, data_dir=tmp_path / "tfds")
    (tmp_path / "gone.wav").rename(pack / "bass" / "0.wav")
    (tmp_path / "labels.csv").write_text("file,key\nbass/0.wav,C\n")
    with pytest.raises(UserError, match="other metadata or settings"):
        LoopFolder(pack, metadata=tmp_path / "labels.csv", data_dir=tmp_path / "tfds")


def test_builders_and_data_sources_pickle(prepared):
    builder, _ = prepared
    again = pickle.loads(pickle.dumps(builder))  # noqa: S301 - our own bytes
    assert again.info.full_name == builder.info.full_name
    for split, source in builder.as_data_source().items():
        copy = pickle.loads(pickle.dumps(source))  # noqa: S301
        assert len(copy) == len(source)
        np.testing.assert_array_equal(copy[0]["audio"], source[0]["audio"])
        np.testing.assert_array_equal(again.as_data_source(split)[0]["audio"], source[0]["audio"])


@pytest.mark.slow
def test_workers_of_grain_read_what_was_prepared(prepared):
    grain = pytest.importorskip("grain", reason="the extra [interop] is not installed")
    flags.FLAGS.mark_as_parsed()  # grain is meant for programs that absl starts
    builder, _ = prepared
    split = max(builder.info.splits, key=lambda name: builder.info.splits[name].num_examples)
    source = builder.as_data_source(split)
    loader = grain.DataLoader(
        data_source=source,
        sampler=grain.samplers.SequentialSampler(len(source), grain.sharding.NoSharding()),
        worker_count=2,
    )
    paths = [example["path"] for example in loader]
    assert sorted(paths) == sorted(example["path"] for example in source)


def test_tfds_finds_a_prepared_folder_by_name(prepared):
    builder, data_dir = prepared
    found = tfds.builder("loop_folder/my_pack", data_dir=data_dir)
    assert found.info.full_name == builder.info.full_name
    split = next(iter(builder.info.splits))
    assert len(found.as_data_source(split)) == builder.info.splits[split].num_examples


def test_one_split_with_everything_is_warned_of(tmp_path, caplog):
    LoopFolder(make_pack(tmp_path, 0), data_dir=tmp_path / "tfds").download_and_prepare()
    assert "all 3 loops" in caplog.text


class NsynthLike(tfds.core.GeneratorBasedBuilder):
    """NSynth's schema in small: fixed length, the rate in the feature, class labels."""

    VERSION = tfds.core.Version("2.3.3")

    def _info(self):
        features = tfds.features.FeaturesDict(
            {
                "id": tfds.features.Text(),
                "audio": tfds.features.Tensor(shape=(6400,), dtype=np.float32),
                "pitch": tfds.features.ClassLabel(num_classes=128),
                "instrument": {
                    "family": tfds.features.ClassLabel(names=["bass", "brass", "flute"]),
                    "label": tfds.features.Text(),
                },
                "qualities": {"bright": np.bool_},
            }
        )
        return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(0), "test": self._generate_examples(9)}

    def _generate_examples(self, first):
        for i in range(first, first + 5):
            yield (
                str(i),
                {
                    "id": f"bass_synthetic_{i:03d}",
                    "audio": _wave(i),
                    "pitch": 40 + i,
                    "instrument": {"family": ["bass", "brass", "flute"][i % 3], "label": "x"},
                    "qualities": {"bright": True},
                },
            )


def _wave(i: int) -> np.ndarray:
    return np.sin(np.arange(6400) * (0.02 + 0.003 * i)).astype(np.float32) * 0.5


@pytest.fixture
def nsynth(tmp_path):
    """What TFDS writes for NSynth: the same records, described by `tfds.features.Audio`.

    That class cannot be constructed without TensorFlow, so its description is put in afterwards.
    """
    builder = NsynthLike(data_dir=os.fspath(tmp_path), file_format="array_record")
    builder.download_and_prepare()
    description = Path(builder.data_dir) / "features.json"
    features = json.loads(description.read_text())
    audio = {"shape": {"dimensions": ["6400"]}, "dtype": "float32", "sampleRate": "16000"}
    features["featuresDict"]["features"]["audio"] = {
        "pythonClassName": AUDIO_CLASS,
        "audio": audio | {"encoding": "none"},
    }
    description.write_text(json.dumps(features))
    return builder


def test_nsynth_schema_is_read(nsynth):
    dataset = open_dataset(f"tfds:{nsynth.data_dir}")
    assert (dataset.audio_field, dataset.rate_hz, len(dataset)) == ("audio", 16_000, 10)
    embeddings = embed(f"tfds:{nsynth.data_dir}", FakeEncoder(), batch_size=4)
    rows = embeddings.table.to_pylist()
    assert {row["group"] for row in rows} == {"bass", "brass", "flute"}
    assert {row["sample_rate_hz"] for row in rows} == {16_000}
    assert len({row["id"] for row in rows}) == 10
    first = next(r for r in rows if r["path"].endswith("#bass_synthetic_002"))
    assert first["group"] == "flute"
    assert first["duration_s"] == pytest.approx(0.4)


def test_a_corrupt_record_costs_one_row(nsynth):
    whole = embed(f"tfds:{nsynth.data_dir}", FakeEncoder(), batch_size=4)
    (file,) = Path(nsynth.data_dir).glob("*train*array_record*")
    raw = bytearray(file.read_bytes())
    middle = len(raw) // 2
    raw[middle : middle + 200] = bytes(200)
    file.write_bytes(bytes(raw))
    spoiled = embed(f"tfds:{nsynth.data_dir}", FakeEncoder(), batch_size=4)
    reasons = {failure["reason"] for failure in spoiled.failures.to_pylist()}
    assert reasons <= {"read_error", "bad_header", "no_samples"}
    assert reasons
    assert len(spoiled) + len(spoiled.failures) == len(whole) == 10


def test_dataset_without_audio_or_random_access_is_refused(nsynth):
    folder = Path(nsynth.data_dir)
    info = json.loads((folder / "dataset_info.json").read_text())
    (folder / "dataset_info.json").write_text(json.dumps(info | {"fileFormat": "tfrecord"}))
    with pytest.raises(UserError, match="array_record"):
        open_dataset(f"tfds:{folder}")
    features = json.loads((folder / "features.json").read_text())
    del features["featuresDict"]["features"]["audio"]
    (folder / "features.json").write_text(json.dumps(features))
    with pytest.raises(UserError, match="no audio feature"):
        open_dataset(f"tfds:{folder}")


def test_metadata_without_file_column_is_refused(folder, tmp_path):
    (tmp_path / "bad.csv").write_text("name,bpm\na,1\n")
    with pytest.raises(UserError, match="no column 'file'"):
        LoopFolder(folder, metadata=tmp_path / "bad.csv", data_dir=tmp_path)


@pytest.mark.faults
@pytest.mark.parametrize("key", ["pythonClassName", "python_class_name", "type"])
def test_a_description_cannot_name_a_module_to_import(prepared, tmp_path, monkeypatch, key):
    _, data_dir = prepared
    shutil.copytree(data_dir, tmp_path / "data")
    (description,) = (tmp_path / "data").rglob("features.json")
    features = json.loads(description.read_text())
    features["featuresDict"]["features"]["path"] = {key: "canary.Feature", "content": {}}
    description.write_text(json.dumps(features))
    (tmp_path / "canary.py").write_text("raise SystemExit('it was run')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"asks for the class 'canary\.Feature'"):
        open_dataset(f"tfds:{description.parent}")
