import csv
import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile

import loopjax
from loopjax.cli import main
from loopjax.errors import UserError
from loopjax.store.blocks import open_rows
from loopjax.store.similar import MostSimilar, unit_rows
from tests.fake_encoder import FakeEncoder
from tests.library.stores import write_store


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    matrix = np.random.default_rng(0).normal(size=(250, 12))
    return write_store(tmp_path_factory.mktemp("similar") / "emb", matrix)


def by_hand(matrix, query, k, leave_out=()):
    unit = matrix / np.linalg.norm(matrix, axis=1, keepdims=True)
    cosines = unit @ (query / np.linalg.norm(query))
    cosines[list(leave_out)] = -2
    order = np.argsort(-cosines, kind="stable")[:k]
    return cosines[order], order


def test_the_answer_is_exact_whatever_the_blocks(store, monkeypatch):
    monkeypatch.setattr("loopjax.store.blocks.BLOCK_ROWS", 37)
    rows = open_rows(store)
    matrix = np.concatenate([block.matrix for block in rows.blocks()])
    assert (rows.n_rows, rows.width) == (250, 12)
    ids = rows.table(["id"])["id"].to_pylist()
    found = loopjax.similar(store, [ids[3], ids[240]], k=7).table
    for own, name in ((3, ids[3]), (240, ids[240])):
        cosines, order = by_hand(matrix, matrix[own], 7, [own])
        mine = found.filter(np.asarray(found["query"]) == name)
        assert mine["id"].to_pylist() == [ids[i] for i in order]
        assert mine["rank"].to_pylist() == list(range(1, 8))
        np.testing.assert_allclose(mine["cosine"], cosines, atol=1e-6)


def test_embeddings_answer_like_the_store(store):
    embeddings = loopjax.read_embeddings(store)
    row_id = embeddings.table["id"][17].as_py()
    assert embeddings.similar([row_id], 5)["id"] == loopjax.similar(store, row_id, 5).table["id"]
    by_vector = embeddings.similar(embeddings.matrix[17], 1)
    assert by_vector["id"].to_pylist() == [row_id]
    assert by_vector["query"].to_pylist() == ["0"]
    with pytest.raises(UserError, match="nobody"):
        embeddings.similar(["nobody"])
    with pytest.raises(UserError, match="3 numbers, a row 12"):
        embeddings.similar(np.ones((1, 3), np.float32))


def test_fewer_rows_than_asked_for(tmp_path):
    store = write_store(tmp_path / "emb", np.eye(3))
    found = loopjax.similar(store, "loops/000001.wav", k=10).table
    assert found["path"].to_pylist() == ["loops/000000.wav", "loops/000002.wav"]
    assert found["cosine"].to_pylist() == [0, 0]


def test_scales_and_zeros_do_not_matter():
    rows = np.array([[1e30, 1e30], [1e-30, 0], [0, 0], [-1, 0]], np.float32)
    half = 0.5**0.5
    np.testing.assert_allclose(unit_rows(rows), [[half, half], [1, 0], [0, 0], [-1, 0]], rtol=1e-6)
    best = MostSimilar(np.array([[1e-20, 0]], np.float32), 4)
    best.add(rows)
    assert best.found()[1].tolist() == [[1, 0, 2, 3]]


def test_many_queries_and_repeated_rows():
    rows = np.repeat(np.random.default_rng(1).normal(size=(700, 4)), 2, axis=0)
    best = MostSimilar(rows, 1, np.arange(1400))
    best.add(rows[:1000])
    best.add(rows[1000:])
    cosines, found = best.found()
    assert found[:, 0].tolist() == (np.arange(1400) ^ 1).tolist()  # the other copy, not itself
    np.testing.assert_allclose(cosines, 1, atol=1e-6)


def test_audio_is_embedded_as_the_store_was(tmp_path):
    encoder = FakeEncoder()
    for k in range(4):
        tone = np.sin(np.arange(24_000) * (k + 1) / 50) * np.linspace(0, 1, 24_000) ** k
        soundfile.write(tmp_path / f"{k}.wav", tone, 48_000)
    files = [tmp_path / f"{k}.wav" for k in range(4)]
    loopjax.embed_corpus(files, encoder, tmp_path / "emb", progress=False)
    found = loopjax.similar(tmp_path / "emb", files[2], k=2, encoder=encoder).table
    assert found["path"][0].as_py().endswith("2.wav")
    assert found["cosine"][0].as_py() == pytest.approx(1, abs=1e-6)
    with pytest.raises(UserError, match="is not the one that made the store: encoder"):
        loopjax.similar(tmp_path / "emb", files[2], encoder=FakeEncoder(seed=1, encoder_id="else"))


def test_the_command_prints_and_writes(store, tmp_path, capsys):
    query = "loops/000003.wav"
    for form in ("csv", "parquet", "json"):
        out = str(tmp_path / f"a.{form}")
        assert main(["similar", str(store), query, "-k", "2", "-o", out]) == 0
    paths = pq.read_table(tmp_path / "a.parquet")["path"].to_pylist()
    printed = capsys.readouterr().out
    assert all(path in printed for path in paths)
    assert [row["path"] for row in json.loads((tmp_path / "a.json").read_text())] == paths
    with (tmp_path / "a.csv").open() as file:
        assert [row["path"] for row in csv.DictReader(file)] == paths


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["no-such.wav"], "no-such.wav: neither an audio file nor"),
        (["loops/000003.wav", "-o", "a.txt"], "a.txt: expected a name that ends with"),
        (["loops/000003.wav", "-k", "0"], "expected at least 1"),
    ],
)
def test_mistakes_are_named(store, capsys, arguments, sentence):
    assert main(["similar", str(store), *arguments]) == 2
    assert sentence in capsys.readouterr().err


def test_foreign_embeddings_know_no_encoder(tmp_path):
    np.save(tmp_path / "x.npy", np.eye(4, dtype=np.float32))
    soundfile.write(tmp_path / "a.wav", np.ones(1000) / 2, 48_000)
    assert (
        loopjax.similar(tmp_path / "x.npy", "row-000002", k=1).table["id"][0].as_py()
        == "row-000000"
    )
    with pytest.raises(UserError, match="nobody knows which encoder"):
        loopjax.similar(tmp_path / "x.npy", tmp_path / "a.wav")
