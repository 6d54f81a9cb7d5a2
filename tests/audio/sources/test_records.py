"""Loops in tar shards, Parquet tables, data sets of Hugging Face and on other file systems."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from loopjax.audio.sources.places import expand
from loopjax.audio.sources.source import open_source
from loopjax.config import EmbedConfig
from loopjax.embedding.chain import embed_corpus, embed_shared
from loopjax.errors import UserError
from loopjax.store.read import read_embeddings
from tests.audio_files import write_corpus
from tests.fake_encoder import FakeEncoder

N_FILES = 9
OPTIONS = EmbedConfig(workers=1, batch_size=4)


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> list[Path]:
    return write_corpus(tmp_path_factory.mktemp("records") / "corpus", N_FILES)


@pytest.fixture(scope="module")
def expected(files, tmp_path_factory) -> dict[str, bytes]:
    """Embeddings of the same loops as files, by their content."""
    out = tmp_path_factory.mktemp("expected") / "store"
    return by_content(embed([files[0].parent], out)[1])


def embed(sources, out: Path, **options):
    config = EmbedConfig(**(vars(OPTIONS) | options))
    summary = embed_corpus(list(map(str, sources)), FakeEncoder(), out, config, progress=False)
    return summary, read_embeddings(out)


def by_content(embeddings) -> dict[str, bytes]:
    hashes = embeddings.table["sha256"].to_pylist()
    return {h: row.tobytes() for h, row in zip(hashes, embeddings.matrix, strict=True)}


def write_tar(path: Path, files, mode: str = "w", first: int = 0, **members: bytes) -> Path:
    """A shard with side-cars, in the order of WebDataset."""
    with tarfile.open(path, mode) as tar:
        for number, file in enumerate(files, start=first):
            parts = {
                "json": json.dumps({"instrument": "bass", "bpm": 100 + number}).encode(),
                "txt": f"loop {number}".encode(),
                "wav": file.read_bytes(),
            }
            for suffix, content in parts.items():
                add(tar, f"drums/{number:04d}.{suffix}", content)
        for name, content in members.items():
            add(tar, name.replace("_dot_", "."), content)
    return path


def add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.mtime = len(content), 1_700_000_000
    tar.addfile(info, io.BytesIO(content))


@pytest.mark.parametrize(("suffix", "mode"), [(".tar", "w"), (".tar.gz", "w:gz"), (".tgz", "w:gz")])
def test_tar_shards_with_side_cars(files, expected, tmp_path, suffix, mode):
    for number in range(3):
        some = files[3 * number : 3 * number + 3]
        write_tar(tmp_path / f"a-{number:02d}{suffix}", some, mode, first=3 * number)
    pattern = tmp_path / f"a-{{00..02}}{suffix}"
    summary, found = embed([pattern], tmp_path / "store")
    assert summary.n_embedded == N_FILES
    assert by_content(found) == expected
    rows = found.table.to_pylist()
    assert {row["instrument"] for row in rows} == {"bass"}
    assert sorted(row["bpm"] for row in rows) == [str(100 + n) for n in range(N_FILES)]
    assert sorted(row["txt"] for row in rows) == [f"loop {n}" for n in range(N_FILES)]
    assert {row["group"] for row in rows} == {"drums"}
    again, _ = embed([tmp_path / f"a-*{suffix}"], tmp_path / "store")
    assert (again.n_embedded, again.n_skipped) == (0, N_FILES)
    whole, _ = embed([tmp_path], tmp_path / "of_folder")
    assert whole.n_embedded == N_FILES
    shared = embed_shared(str(pattern), FakeEncoder(), tmp_path / "shared", OPTIONS, progress=False)
    assert shared.n_embedded == N_FILES
    assert read_embeddings(tmp_path / "shared").table.equals(found.table)


def test_what_only_some_records_say_is_kept_together(files, tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        add(tar, "one.wav", files[0].read_bytes())
        add(tar, "one.json", b'{"label": "kick", "id": 7}')
        add(tar, "two.wav", files[1].read_bytes())
        add(tar, "two.json", b'{"label": "snare", "late": [1, 2]}')
        add(tar, "three.flac", b"")
        add(tar, "three.json", b"{damaged")
        add(tar, "lonely.json", b"{}")
    _, found = embed([tmp_path / "a.tar"], tmp_path / "store")
    one, two = found.table.sort_by("path").to_pylist()
    assert (one["label"], one["source_id"], one["group"]) == ("kick", "7", "kick")
    assert (two["label"], json.loads(two["metadata"])) == ("snare", {"late": "[1, 2]"})
    assert found.failures["reason"].to_pylist() == ["empty_file"]


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_a_shard_that_is_cut_off_is_a_row_and_the_rest_goes_on(files, tmp_path, mode):
    suffix = ".tar.gz" if mode == "w:gz" else ".tar"
    whole = write_tar(tmp_path / f"a{suffix}", files[:4], mode)
    whole.write_bytes(whole.read_bytes()[: int(whole.stat().st_size * 0.6)])
    write_tar(tmp_path / f"b{suffix}", files[4:], mode)
    summary, found = embed([tmp_path / f"{{a,b}}{suffix}"], tmp_path / "store")
    assert summary.n_embedded >= N_FILES - 4 + 1
    assert "read_error" in found.failures["reason"].to_pylist()


def test_no_container_at_all_is_a_mistake(tmp_path):
    (tmp_path / "a.tar").write_bytes(b"no tar")
    for source, words in [
        (tmp_path / "a.tar", "a.tar"),
        (tmp_path / "b.tar", "no such file"),
        (tmp_path / "c-{0..3}.tar", "c-0.tar: no such file"),
        (tmp_path / "c-{0..99999999}.tar", "range"),
    ]:
        with pytest.raises(UserError, match=words):
            embed([source], tmp_path / "store")
    assert not (tmp_path / "store").exists()


def test_names_that_repeat(files, tmp_path):
    for folder in ("x", "y"):
        (tmp_path / folder).mkdir()
        write_tar(tmp_path / folder / "a.tar", files[:1])
    with pytest.raises(UserError, match="same name"):
        embed([tmp_path / "x" / "a.tar", tmp_path / "y" / "a.tar"], tmp_path / "store")
    with tarfile.open(tmp_path / "b.tar", "w") as tar:
        for name in ("one.wav", "two.wav", "one.wav", "one.wav"):
            add(tar, name, files[0].read_bytes())
    summary, found = embed([tmp_path / "b.tar"], tmp_path / "store")
    assert summary.n_embedded == 2
    assert found.failures["reason"].to_pylist() == ["repeated_name"] * 2


def test_braces():
    assert list(expand("a-{008..011}.{tar,tgz}"))[:3] == ["a-008.tar", "a-008.tgz", "a-009.tar"]
    assert list(expand("a{b}.tar")) == ["a{b}.tar"]


@pytest.mark.parametrize("form", ["bytes", "struct", "paths"])
def test_parquet_tables(files, expected, tmp_path, form):
    column = {
        "bytes": [file.read_bytes() for file in files],
        "struct": [{"bytes": file.read_bytes(), "path": file.name} for file in files],
        "paths": [f"sound/{file.name}" for file in files],
    }[form]
    (tmp_path / "sound").mkdir()
    for file in files:
        (tmp_path / "sound" / file.name).write_bytes(file.read_bytes())
    table = {"audio": column, "label": ["a", "b", None] * 3, "bpm": list(range(N_FILES))}
    pq.write_table(pa.table(table), tmp_path / "loops.parquet")
    summary, found = embed([tmp_path / "loops.parquet"], tmp_path / "store")
    assert summary.n_embedded == N_FILES
    assert by_content(found) == expected
    rows = found.table.sort_by("path").to_pylist()
    assert [row["label"] for row in rows] == table["label"]
    assert [row["bpm"] for row in rows] == list(map(str, range(N_FILES)))
    assert rows[2]["group"] == "loops"


def test_a_table_without_audio_or_with_other_files(files, tmp_path):
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match="no column of audio"):
        embed([tmp_path / "a.parquet"], tmp_path / "store")
    paths = [str(files[0]), "/etc/passwd", "gone.wav", None]
    pq.write_table(pa.table({"audio": paths}), tmp_path / "b.parquet")
    summary, found = embed([tmp_path / "b.parquet"], tmp_path / "store")
    assert summary.n_embedded == 1
    assert found.failures["reason"].to_pylist() == ["read_error"] * 3


@pytest.mark.parametrize("form", ["parquet", "disk"])
def test_data_sets_of_hugging_face(files, expected, tmp_path, form):
    datasets = pytest.importorskip("datasets")
    rows = {
        "audio": [{"bytes": file.read_bytes(), "path": file.name} for file in files],
        "family": ["bass"] * N_FILES,
    }
    plain = datasets.Dataset.from_dict(rows)  # Audio itself would want torchcodec to encode
    dataset = plain.cast_column("audio", datasets.Audio())
    folder = tmp_path / "dataset"
    if form == "disk":
        dataset.save_to_disk(folder)
    else:
        (folder / "data").mkdir(parents=True)
        dataset.to_parquet(folder / "data" / "train-00000.parquet")
    summary, found = embed([f"hf:{folder}@train"], tmp_path / "store")
    assert summary.n_embedded == N_FILES
    assert by_content(found) == expected
    assert set(found.table["family"].to_pylist()) == {"bass"}
    with pytest.raises(UserError, match="no split 'test'"):
        open_source([f"hf:{folder}@test"])


def test_other_file_systems(files, expected, tmp_path):
    fsspec = pytest.importorskip("fsspec")
    memory = fsspec.filesystem("memory")
    for number, file in enumerate(files):
        memory.pipe_file(f"/bucket/loops/set{number % 2}/{file.name}", file.read_bytes())
    write_tar(tmp_path / "a.tar", files)
    memory.pipe_file("/bucket/a.tar", (tmp_path / "a.tar").read_bytes())
    try:
        summary, found = embed(["memory://bucket/loops"], tmp_path / "store")
        assert summary.n_embedded == N_FILES
        assert by_content(found) == expected
        assert set(found.table["group"].to_pylist()) == {"set0", "set1"}
        again, _ = embed(["memory://bucket/loops"], tmp_path / "store")
        assert again.n_skipped == N_FILES
        _, found = embed(["memory://bucket/{a,a}.tar"], tmp_path / "of_tar")
        assert by_content(found) == expected
        with pytest.raises(UserError, match="memory://bucket/nothing"):
            embed(["memory://bucket/nothing"], tmp_path / "nothing")
        with pytest.raises(UserError, match="unknown://"):
            embed(["unknown://bucket"], tmp_path / "nothing")
    finally:
        memory.rm("/bucket", recursive=True)


def test_samples_cross_in_both_directions(files, tmp_path):
    """A record larger than what was sent before, and a smaller one after it."""
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name in ("a", "b", "c"):
            content = files["abc".index(name)].read_bytes()
            add(tar, f"{name}.wav", content)
    _, found = embed([tmp_path / "a.tar"], tmp_path / "store")
    assert np.isfinite(found.matrix).all()
    assert len(found) == 3
