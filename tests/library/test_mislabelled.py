import csv

import numpy as np
import pytest

import loopjax
from loopjax.cli import main
from loopjax.errors import UserError
from tests.library.stores import write_store

NAMES = ("Bass/Sub", "Drums/Kicks", "Drums/Hats", "Keys")


def corpus(folder, n=240, n_planted=12, **columns):
    """Loops in four folders that sound alike; the first ones lie in a wrong folder."""
    rng = np.random.default_rng(0)
    true = rng.integers(len(NAMES), size=n)
    matrix = 2 * np.eye(len(NAMES), 24)[true] + 0.7 * rng.normal(size=(n, 24)) + 3
    said = true.copy()
    said[:n_planted] = (true[:n_planted] + 1 + rng.integers(3, size=n_planted)) % 4
    groups = [NAMES[i] for i in said]
    store = write_store(folder / "emb", matrix, **{"group": groups} | columns)
    return store, true, said


def test_planted_loops_come_first_and_are_told_where_they_belong(tmp_path):
    store, true, said = corpus(tmp_path)
    found = loopjax.mislabelled(store)
    rows = found.table.to_pylist()
    planted = {f"loops/{i:06d}.wav" for i in range(12)}
    hits = [row for row in rows[:24] if row["path"] in planted]
    assert len(hits) >= 11
    assert found.n_labels == 4
    where = [int(row["path"][6:12]) for row in hits]
    assert [row["label"] for row in hits] == [NAMES[said[i]] for i in where]
    right = [row["sounds_like"] == NAMES[true[i]] for i, row in zip(where, hits, strict=True)]
    assert sum(right) >= len(hits) - 2
    assert [row["rank"] for row in rows] == list(range(1, 241))
    p_values = [row["p_value"] for row in rows]
    assert p_values == sorted(p_values)
    assert p_values[11] == pytest.approx(12 / 240)


def test_blocks_change_nothing(tmp_path, monkeypatch):
    store, *_ = corpus(tmp_path)
    whole = loopjax.mislabelled(store).table
    monkeypatch.setattr("loopjax.store.blocks.BLOCK_ROWS", 33)
    blocks = loopjax.mislabelled(store).table
    assert blocks["path"] == whole["path"]
    np.testing.assert_allclose(blocks["margin"], whole["margin"], atol=1e-4)


def test_copies_do_not_vouch_for_one_another_in_their_heads(tmp_path):
    rng = np.random.default_rng(1)
    matrix = np.repeat(rng.normal(size=(60, 16)), 2, axis=0)  # each loop twice, labels by chance
    groups = np.repeat(rng.choice(["a", "b"], 60), 2).tolist()
    store = write_store(tmp_path / "emb", matrix, group=groups)
    table = loopjax.mislabelled(store).table
    assert np.mean(table["head_probability"]) < 0.6


def test_duration_tells_what_embeddings_do_not(tmp_path):
    rng = np.random.default_rng(2)
    n = 120
    is_long = rng.random(n) < 0.5
    seconds = np.where(is_long, 4.0, 0.4) * rng.uniform(0.9, 1.1, n)
    groups = np.where(is_long, "loops", "hits").tolist()
    groups[7] = "hits" if is_long[7] else "loops"
    store = write_store(
        tmp_path / "emb", rng.normal(size=(n, 8)), group=groups, duration_s=seconds.tolist()
    )
    assert loopjax.mislabelled(store).table["path"][0].as_py() == "loops/000007.wav"


def test_depth_joins_folders_and_unlabeled_loops_are_left_out(tmp_path):
    groups = ["Drums/Kicks/Soft", "Drums/Hats", "Bass/Sub", "Bass", "", "Drums"] * 5
    matrix = np.random.default_rng(0).normal(size=(30, 8))
    store = write_store(tmp_path / "emb", matrix, group=groups)
    table = loopjax.mislabelled(store, depth=1).table
    assert set(table["label"].to_pylist()) == {"Drums", "Bass"}
    assert len(table) == 25


def test_the_command_prints_and_writes(tmp_path, capsys):
    store, *_ = corpus(tmp_path)
    out = tmp_path / "suspects.csv"
    assert main(["mislabelled", str(store), "--top", "5", "-o", str(out)]) == 0
    assert "sounds like" in capsys.readouterr().out
    with out.open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 240
    assert rows[0]["label"] != rows[0]["sounds_like"]


def test_mistakes_are_named(tmp_path):
    store = write_store(tmp_path / "emb", np.eye(4), group=["a", "a", "a", "b"])
    with pytest.raises(UserError, match="holds 2 labels; at least two with two loops"):
        loopjax.mislabelled(store)
    same = write_store(tmp_path / "same", np.ones((6, 5)), group=["a", "b"] * 3)
    with pytest.raises(UserError, match="all loops are copies of one another"):
        loopjax.mislabelled(same)
    with pytest.raises(UserError, match="no column 'family'"):
        loopjax.mislabelled(store, column="family")
