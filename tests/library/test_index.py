import sys

import numpy as np
import pytest

import loopjax
from loopjax.cli import main
from loopjax.errors import UserError
from loopjax.library.index import FOLDER, StoreIndex, build_index, open_index
from loopjax.store.blocks import open_rows
from loopjax.store.read import part_files
from loopjax.store.write import drop_rows
from tests.library.stores import write_store

pytest.importorskip("usearch")


def heaps(n, seed=0):
    rng = np.random.default_rng(seed)
    centers = rng.normal(size=(20, 24))
    return centers[rng.integers(20, size=n)] + 0.5 * rng.normal(size=(n, 24))


@pytest.fixture
def store(tmp_path):
    return write_store(tmp_path / "emb", heaps(900), shard_rows=200)


def test_the_index_answers_as_the_exact_search(store, caplog):
    exact = loopjax.similar(store, ["loops/000007.wav", "loops/000450.wav"], k=5).table
    done = build_index(store)
    assert (done.n_rows, done.n_added, done.n_removed) == (900, 900, 0)
    assert done.recall > 0.97
    assert open_index(open_rows(store)) is not None
    found = loopjax.similar(store, ["loops/000007.wav", "loops/000450.wav"], k=5).table
    assert found["id"] == exact["id"]
    np.testing.assert_allclose(found["cosine"], exact["cosine"], atol=1e-3)
    again = loopjax.similar(store, "loops/000007.wav", k=5, exact=True).table
    assert again["cosine"] == exact["cosine"][:5]
    assert not caplog.messages


def test_it_is_the_index_that_answers(store, monkeypatch):
    build_index(store)
    answer = np.array([[0.5]], np.float32), np.array([[3]], np.int32)
    monkeypatch.setattr(StoreIndex, "search", lambda *_: answer)
    assert loopjax.similar(store, "loops/000007.wav", k=1).table["path"][0].as_py()[-5:] == "3.wav"


def test_an_update_adds_and_removes_only_what_changed(store, caplog):
    build_index(store)
    first, last = part_files(store)[0], part_files(store)[-1]
    drop_rows(last, [f"{i:016x}" for i in range(850, 900)])
    with np.errstate(all="raise"):
        rows = open_rows(store)
        assert open_index(rows) is None
    assert "the store has changed since it was indexed" in caplog.text
    more = heaps(120, seed=1)
    write_store(
        store, more, sha256=[f"{10_000 + i:064x}"[::-1] for i in range(120)],
        path=[f"more/{i}.wav" for i in range(120)],
    )  # fmt: skip
    assert first in part_files(store)
    done = build_index(store)
    assert (done.n_rows, done.n_added, done.n_removed) == (970, 120, 50)
    assert done.recall > 0.97
    found = loopjax.similar(store, "more/5.wav", k=8).table
    exact = loopjax.similar(store, "more/5.wav", k=8, exact=True).table
    assert found["path"].to_pylist() == exact["path"].to_pylist()
    assert (lambda d: (d.n_added, d.n_removed))(build_index(store)) == (0, 0)


def test_many_holes_are_a_reason_to_build_anew(store):
    build_index(store)
    for part in part_files(store)[:2]:
        part.unlink()
    done = build_index(store)
    assert (done.n_rows, done.n_added, done.n_removed) == (500, 500, 400)


def test_few_rows(tmp_path):
    store = write_store(tmp_path / "emb", np.eye(3))
    assert build_index(store).recall == 1
    found = loopjax.similar(store, "loops/000001.wav", k=10).table
    assert set(found["path"].to_pylist()) == {"loops/000000.wav", "loops/000002.wav"}


def test_without_its_package(store, monkeypatch, capsys):
    build_index(store)
    monkeypatch.setitem(sys.modules, "usearch", None)
    assert main(["similar", str(store), "loops/000007.wav"]) == 2
    assert "pip install 'loopjax[index]'" in capsys.readouterr().err
    assert main(["similar", str(store), "loops/000007.wav", "--exact"]) == 0


@pytest.mark.parametrize("file", ["record.json", "vectors.usearch", "keys.npy"])
def test_a_damaged_index_is_named(store, file):
    build_index(store)
    (store / FOLDER / file).write_bytes(b"{}")
    with pytest.raises(UserError, match=r"\.index.* is damaged"):
        loopjax.similar(store, "loops/000007.wav")


def test_the_command_and_what_cannot_be_indexed(store, tmp_path, capsys):
    assert main(["index", str(store)]) == 0
    assert "900 rows are indexed (900 new, 0 gone); it finds" in capsys.readouterr().err
    np.save(tmp_path / "x.npy", np.eye(4, dtype=np.float32))
    assert main(["index", str(tmp_path / "x.npy")]) == 2
    assert "nothing to index" in capsys.readouterr().err
