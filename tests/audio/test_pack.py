"""Packed shards feed the same samples, ids and columns as the files they were made of."""

import io
import json
import os
import tarfile

import numpy as np
import pytest
import soundfile

from loopjax.audio import pack as packing
from loopjax.audio.decode import DecodeOptions, decode_file
from loopjax.audio.pack import pack
from loopjax.audio.sources.packed import PackedShards
from loopjax.audio.sources.source import open_source
from loopjax.cli import main
from loopjax.config import EmbedConfig
from loopjax.embedding.chain import embed_corpus, embed_shared
from loopjax.errors import UserError
from loopjax.store.read import read_embeddings
from tests.audio_files import write_tone
from tests.fake_encoder import FakeEncoder

N = 11


@pytest.fixture(scope="module")
def loops(tmp_path_factory):
    """16-bit loops of several rates, one of 24 bits, and one broken file."""
    folder = tmp_path_factory.mktemp("pack") / "loops"
    (folder / "kit").mkdir(parents=True)
    for i in range(N - 1):
        rate_hz = (44_100, 48_000, 37_800)[i % 3]
        write_tone(folder / "kit" / f"{i:02d}.wav", 0.2 + 0.1 * i, rate_hz, seed=i, channels=2)
    samples, rate_hz = soundfile.read(folder / "kit" / "00.wav")
    soundfile.write(folder / "deep.wav", 0.7 * samples, rate_hz, "PCM_24")
    (folder / "broken.wav").write_bytes(b"RIFF....")
    return folder


@pytest.fixture(scope="module")
def packed(loops, tmp_path_factory):
    out = tmp_path_factory.mktemp("packed") / "shards"
    summary = pack(open_source([loops]), out, DecodeOptions(), 2, 4)
    assert (summary.n_packed, summary.n_failed, summary.n_shards) == (N, 1, 3)
    assert summary.failures[0].path.endswith("broken.wav")
    return out


def rows(store):
    found = read_embeddings(store)
    return found.matrix, found.table


def test_embedding_shards_is_embedding_files(loops, packed, tmp_path):
    config = EmbedConfig(batch_size=4)
    embed_corpus([loops], FakeEncoder(), tmp_path / "files", config, progress=False)
    embed_corpus([packed], FakeEncoder(), tmp_path / "shards", config, progress=False)
    (of_files, here), (of_shards, there) = rows(tmp_path / "files"), rows(tmp_path / "shards")
    assert here.equals(there)
    deep = np.array([path.endswith("deep.wav") for path in here["path"].to_pylist()])
    np.testing.assert_array_equal(of_files[~deep], of_shards[~deep])
    np.testing.assert_allclose(of_files[deep], of_shards[deep], atol=1e-3)  # to 16 bits


def test_a_shard_is_a_tar_of_wav_files_for_everybody(loops, packed):
    with tarfile.open(packed / "pack-000000.tar") as tar:
        names = tar.getnames()
        assert names[-2:] == ["index.parquet", "loopjax-pack.json"] and len(names) == 3 + 2
        content = tar.extractfile(names[0])
        assert content is not None
        samples, rate_hz = soundfile.read(io.BytesIO(content.read()), dtype="int16")
    (first, *_) = open_source([packed]).loops()
    options = DecodeOptions(keep_rate=True)
    decoded = decode_file(os.fsencode(first.path_bytes), -1, 0, options)
    assert rate_hz == decoded.info.source_rate_hz and names[0] == f"{first.key}.wav"
    if decoded.samples.dtype == np.int16:
        np.testing.assert_array_equal(samples, decoded.samples)


def test_a_killed_pack_goes_on(loops, packed, tmp_path, monkeypatch):
    write, written = packing._write, []

    def dies_at_the_second(path, **rest):
        if len(written) == 1:
            raise KeyboardInterrupt
        written.append(path)
        write(path, **rest)

    monkeypatch.setattr(packing, "_write", dies_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        pack(open_source([loops]), tmp_path / "out", DecodeOptions(), 1, 4)
    monkeypatch.setattr(packing, "_write", write)
    summary = pack(open_source([loops]), tmp_path / "out", DecodeOptions(), 1, 4)
    assert (summary.n_kept, summary.n_shards) == (1, 2)
    for shard in packed.glob("*.tar"):
        assert (tmp_path / "out" / shard.name).read_bytes() == shard.read_bytes()


def test_damaged_samples_cost_one_row(packed, tmp_path):
    shards = tmp_path / "shards"
    shards.mkdir()
    for shard in packed.glob("*.tar"):
        (shards / shard.name).write_bytes(shard.read_bytes())
    (first, *_) = open_source([shards]).loops()
    with (shards / "pack-000000.tar").open("r+b") as file:
        file.seek(first.offset + 100)
        file.write(b"\x55\xaa")
    summary = embed_corpus([shards], FakeEncoder(), tmp_path / "emb", progress=False)
    assert (summary.n_embedded, summary.reasons) == (N - 1, {"read_error": 1})


def test_workers_take_a_shard_each(packed, tmp_path):
    for i in range(2):
        embed_shared(
            [packed], FakeEncoder(), tmp_path / "emb", slice_of=(i, 2), progress=False
        )  # fmt: skip
    assert len(read_embeddings(tmp_path / "emb")) == N


def test_columns_ride_along(loops, tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for i in range(3):
            tar.add(loops / "kit" / f"{i:02d}.wav", f"{i}.wav")
            side_car = json.dumps({"bpm": 90 + i}).encode()
            member = tarfile.TarInfo(f"{i}.json")
            member.size = len(side_car)
            tar.addfile(member, io.BytesIO(side_car))
    assert main(["pack", str(tmp_path / "a.tar"), "-o", str(tmp_path / "out")]) == 0
    embed_corpus([tmp_path / "out"], FakeEncoder(), tmp_path / "emb", progress=False)
    assert read_embeddings(tmp_path / "emb").table["bpm"].to_pylist() == ["90", "91", "92"]


def test_what_does_not_fit_is_said(loops, packed, tmp_path):
    corpus = open_source([packed])
    assert isinstance(corpus, PackedShards) and corpus.n_loops == N
    with pytest.raises(UserError, match="--mono mean, not left"):
        corpus.decoder(DecodeOptions(mono="left"), 1.0)
    with tarfile.open(tmp_path / "plain.tar", "w") as tar:
        tar.add(loops / "kit" / "00.wav", "00.wav")
    with pytest.raises(UserError, match=r"plain\.tar is no packed shard"):
        open_source([packed, tmp_path / "plain.tar"])
