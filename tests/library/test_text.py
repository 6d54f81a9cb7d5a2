"""Queries by text and tags, on an encoder with small random towers."""

import sys

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
from flax import nnx

import loopjax
from loopjax.cli import main
from loopjax.encoders.encoder import flatten_state, random_weights
from loopjax.encoders.load import load_encoder, load_text_encoder
from loopjax.encoders.storage import save_encoder
from loopjax.encoders.text import TextTower
from loopjax.errors import UserError
from loopjax.htsat.frontend import LogMelConfig
from loopjax.htsat.model import HtsatConfig
from loopjax.library.tags import tag
from loopjax.store.parquet import read_parquet, write_parquet
from loopjax.store.read import part_files
from loopjax.text.roberta import Roberta, RobertaConfig
from loopjax.text.tokens import tokenizer_files
from tests.text.stories import write_tokenizer

TEXT = RobertaConfig(
    width=16, depth=1, heads=2, hidden=16, vocabulary=320, positions=30, max_tokens=20,
    projection_hidden=16, projection_dim=24,
)  # fmt: skip
SOUND = HtsatConfig.nano(
    width=8, depths=(1, 1, 1), heads=(1, 2, 4), fusion=False, projection_dim=24
)
QUERIES = ["dusty upright bass", "kick"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """An encoder of both towers, and the store of eight loops in two folders."""
    pytest.importorskip("tokenizers")
    folder = tmp_path_factory.mktemp("text")
    write_tokenizer(folder / "tokenizer")
    text = flatten_state(nnx.state(Roberta(TEXT, rngs=nnx.Rngs(1))))
    tower = TextTower(TEXT, text, 10.0, tokenizer_files(folder / "tokenizer"))
    save_encoder(
        folder / "encoder", SOUND, LogMelConfig.clap_unfused(), random_weights(SOUND),
        encoder_id="both", about={}, text=tower, probe=False,
    )  # fmt: skip
    rng = np.random.default_rng(0)
    for k in range(8):
        path = folder / "loops" / "ab"[k % 2] / f"{k}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        tone = np.sin(np.arange(24_000) * (k % 2 + 1) ** 3 / 50) * 0.5
        soundfile.write(path, tone + 0.05 * rng.normal(size=24_000), 48_000)
    loopjax.embed_corpus(folder / "loops", folder / "encoder", folder / "emb", progress=False)
    return folder


def by_hand(corpus, queries):
    """Cosines [Q, N] and paths, by the encoder's own outputs."""
    rows = loopjax.read_embeddings(corpus / "emb")
    encoder = load_encoder(corpus / "encoder")
    joint = encoder.project(rows.matrix)
    texts = load_text_encoder(corpus / "encoder").embed(queries)
    return texts @ joint.T, rows.table["path"].to_pylist()


def test_projections_are_those_of_the_network(corpus):
    encoder = load_encoder(corpus / "encoder")
    samples = np.random.default_rng(1).uniform(-0.5, 0.5, (2, 48_000)).astype(np.float32)
    views = encoder.front_end(samples, np.array([48_000, 20_000]), 48_000)
    wanted = np.asarray(encoder.outputs(*views)["projection"])
    np.testing.assert_allclose(encoder.project(encoder.encode(*views)), wanted, atol=1e-6)


def test_projections_are_stored_beside_the_embeddings(corpus):
    (part,) = part_files(corpus / "emb")
    table = pq.read_table(part)
    joint = np.stack(table["projection"].to_pylist())
    embeddings = np.stack(table["embedding"].to_pylist())
    np.testing.assert_allclose(
        joint, load_encoder(corpus / "encoder").project(embeddings), atol=1e-6
    )
    assert "projection" not in loopjax.read_embeddings(corpus / "emb").table.column_names


def test_a_text_finds_the_loops_nearest_to_it(corpus):
    cosines, paths = by_hand(corpus, QUERIES)
    found = loopjax.similar(corpus / "emb", text=QUERIES, k=3).table
    for query, row in zip(QUERIES, cosines, strict=True):
        mine = found.filter(np.asarray(found["query"]) == query)
        assert mine["path"].to_pylist() == [paths[i] for i in np.argsort(-row)[:3]]
        np.testing.assert_allclose(mine["cosine"], -np.sort(-row)[:3], atol=1e-6)


def test_shards_without_projections_are_projected_now(corpus, tmp_path):
    (part,) = part_files(corpus / "emb")
    table = read_parquet(part)
    older = table.drop_columns(["projection"])
    write_parquet(older.slice(0, 3), tmp_path / "emb" / "part-00000.parquet")
    write_parquet(table.slice(3), tmp_path / "emb" / "part-00001.parquet")
    found = loopjax.similar(tmp_path / "emb", text=QUERIES, k=8).table
    wanted = loopjax.similar(corpus / "emb", text=QUERIES, k=8).table
    assert found["path"] == wanted["path"]
    np.testing.assert_allclose(found["cosine"], wanted["cosine"], atol=1e-6)
    assert len(loopjax.read_embeddings(tmp_path / "emb")) == 8
    ids = found["id"].to_pylist()[:1]
    assert len(loopjax.similar(tmp_path / "emb", ids, k=8).table) == 7


def test_the_command(corpus, capsys):
    assert main(["similar", str(corpus / "emb"), "--text", "dusty upright bass", "-k", "2"]) == 0
    printed = capsys.readouterr().out
    cosines, paths = by_hand(corpus, QUERIES[:1])
    assert all(paths[i] in printed for i in np.argsort(-cosines[0])[:2])


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--text", " "], "a text query needs words"),
        ([], "no query: give an audio file"),
        (["x.wav", "--text", "kick"], "give either sounds"),
        (["--text", "kick", "--encoder", "loopjax-nano"], "knows sounds only"),
    ],
)
def test_mistakes_are_named(corpus, capsys, arguments, sentence):
    assert main(["similar", str(corpus / "emb"), *arguments]) == 2
    assert sentence in capsys.readouterr().err


def test_without_the_package_of_tokenizers(corpus, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    assert main(["similar", str(corpus / "emb"), "--text", "kick"]) == 2
    assert "pip install 'loopjax[text]'" in capsys.readouterr().err


def test_the_bundled_encoder_refuses_texts(corpus, tmp_path, capsys):
    loopjax.embed_corpus(corpus / "loops" / "a", "loopjax-nano", tmp_path / "emb", progress=False)
    assert main(["similar", str(tmp_path / "emb"), "--text", "kick"]) == 2
    assert "encoder loopjax-nano knows sounds only, no texts" in capsys.readouterr().err
    assert "projection" not in pq.read_table(part_files(tmp_path / "emb")[0]).column_names


def test_embeddings_of_others_know_no_texts(tmp_path):
    np.save(tmp_path / "x.npy", np.eye(4, dtype=np.float32))
    with pytest.raises(UserError, match="texts cannot be compared"):
        loopjax.similar(tmp_path / "x.npy", text="kick")


def test_folders_get_the_words_nearest_to_their_middle(corpus, tmp_path, capsys):
    words = ["kick", "warm pad", "upright bass"]
    out = tmp_path / "tags.csv"
    assert main(["tag", str(corpus / "emb"), *words, "-o", str(out)]) == 0
    printed = capsys.readouterr().out
    found = tag(corpus / "emb", words).table
    rows = loopjax.read_embeddings(corpus / "emb")
    joint = load_encoder(corpus / "encoder").project(rows.matrix)
    sentences = [f"This is a sound of {word}." for word in words]
    texts = load_text_encoder(corpus / "encoder").embed(sentences)
    folders = np.array(rows.table["group"].to_pylist())
    for folder in ("a", "b"):
        middle = joint[folders == folder].mean(axis=0)
        cosines = texts @ middle / np.linalg.norm(middle)
        mine = found.filter(np.asarray(found["label"]) == folder)
        order = np.argsort(-cosines)
        assert mine["tag"].to_pylist() == [words[i] for i in order]
        np.testing.assert_allclose(mine["cosine"], cosines[order], atol=1e-6)
        weights = np.exp(10 * cosines[order])
        np.testing.assert_allclose(mine["probability"], weights / weights.sum(), atol=1e-5)
        assert set(mine["n_loops"].to_pylist()) == {4}
        assert mine["example"][0].as_py() in printed
        nearest = np.argmax(np.where(folders == folder, joint @ middle, -np.inf))
        assert mine["example"][0] == rows.table["path"][int(nearest)]
    assert len(out.read_text().splitlines()) == 7


def test_heaps_of_alike_loops_get_words(corpus):
    found = tag(corpus / "emb", ["kick", "pad"], clusters=2).table
    assert set(found["label"].to_pylist()) == {"cluster 1", "cluster 2"}
    assert sorted(set(found["n_loops"].to_pylist())) == [4]  # the two tones
    with pytest.raises(UserError, match="9 clusters of 8 loops"):
        tag(corpus / "emb", ["kick"], clusters=9)
    with pytest.raises(UserError, match="no empty one"):
        tag(corpus / "emb", ["kick", ""])
    with pytest.raises(UserError, match="no column 'nothing'"):
        tag(corpus / "emb", ["kick"], column="nothing")
