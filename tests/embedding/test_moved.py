"""Corpora that were moved, renamed, copied or thinned out: rows follow their files."""

import json
import logging
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from loopjax import parallel
from loopjax.audio.loop import make_key
from loopjax.cli import main
from loopjax.config import EmbedConfig
from loopjax.embedding.chain import embed_corpus
from loopjax.embedding.stored import StoredLoops
from loopjax.embedding.write import EmbedSummary
from loopjax.experiment.labels import join_labels, read_labels
from loopjax.store.gone import is_gone
from loopjax.store.index import DoneIndex
from loopjax.store.read import read_embeddings
from loopjax.store.verify import verify_store
from tests.audio_files import write_corpus, write_tone
from tests.fake_encoder import FakeEncoder
from tests.faults.crash import Crash, dying

OPTIONS = EmbedConfig(batch_size=4, workers=1, shard_rows=3)


class CountingEncoder(FakeEncoder):
    """Counts the loops that pass its front end."""

    n_loops = 0

    def front_end(self, samples, length_samples, *args, **kwargs):
        self.n_loops += int((np.asarray(length_samples) > 0).sum())
        return super().front_end(samples, length_samples, *args, **kwargs)


class Corpus:
    """A store, and what embedding into it does."""

    def __init__(self, folder: Path):
        self.store = folder / "store"
        self.encoder = CountingEncoder()

    def embed(self, *sources: Path, prune: bool = False) -> tuple[EmbedSummary, int]:
        """Returns the summary and the number of loops that were encoded."""
        before = self.encoder.n_loops
        summary = embed_corpus(
            sources, self.encoder, self.store, OPTIONS, prune=prune, progress=False
        )
        assert not verify_store(self.store).faults
        return summary, self.encoder.n_loops - before

    def rows(self) -> dict[Path, dict]:
        """The rows by file; no file has two."""
        found = read_embeddings(self.store)
        rows = [
            row | {"embedding": vector.tolist()}
            for row, vector in zip(found.table.to_pylist(), found.matrix, strict=True)
        ]
        by_file = {Path(os.fsdecode(row["path_bytes"])): row for row in rows}
        assert len(by_file) == len(rows)
        return by_file


@pytest.fixture
def old(tmp_path):
    """Seven loops in two folders."""
    folder = tmp_path / "old" / "loops"
    write_corpus(folder / "bass", 4)
    (folder / "kick").mkdir()
    for i in range(3):
        write_tone(folder / "kick" / f"kick_{i}.wav", seed=50 + i)
    return folder


@pytest.fixture
def corpus(old, tmp_path):
    """The loops, embedded."""
    made = Corpus(tmp_path)
    summary, n_encoded = made.embed(old)
    assert (summary.n_embedded, n_encoded) == (7, 7)
    return made


def without_place(row: dict) -> dict:
    places = ("key", "path", "path_bytes", "group", "size_bytes", "mtime_ns")
    return {name: value for name, value in row.items() if name not in places}


@pytest.mark.parametrize("name", ["loops", "samples"])
@pytest.mark.parametrize("keep_times", [True, False])
def test_a_corpus_mounted_elsewhere_keeps_its_rows(old, corpus, tmp_path, name, keep_times):
    before = corpus.rows()
    new = tmp_path / "mnt" / name
    shutil.copytree(old, new, copy_function=shutil.copy2 if keep_times else shutil.copyfile)
    shutil.rmtree(old)
    summary, n_encoded = corpus.embed(new)
    assert (summary.n_skipped, summary.n_moved, summary.n_embedded, n_encoded) == (7, 7, 0, 0)
    assert summary.n_unmet == 0
    after = corpus.rows()
    assert set(after) == {new / file.relative_to(old) for file in before}
    for file, row in before.items():
        moved = after[new / file.relative_to(old)]
        assert without_place(moved) == without_place(row)  # the id too
        assert moved["mtime_ns"] == (new / file.relative_to(old)).stat().st_mtime_ns
    shards = {p.name: p.read_bytes() for p in corpus.store.glob("*.parquet")}
    summary, n_encoded = corpus.embed(new)
    assert (summary.n_skipped, summary.n_moved, n_encoded) == (7, 0, 0)
    assert {p.name: p.read_bytes() for p in corpus.store.glob("*.parquet")} == shards


def test_after_a_move_a_store_equals_one_made_there_but_for_its_ids(old, corpus, tmp_path):
    new = old.rename(tmp_path / "elsewhere")
    corpus.embed(new)
    fresh = Corpus(tmp_path / "fresh")
    fresh.embed(new)
    rows, expected = corpus.rows(), fresh.rows()
    assert [row | {"id": ""} for row in rows.values()] == [
        row | {"id": ""} for row in expected.values()
    ]


def test_a_corpus_that_moved_in_part(old, corpus, tmp_path):
    before = corpus.rows()
    new = tmp_path / "sorted"
    new.mkdir()
    moved = (old / "bass" / "loop_00001.wav").rename(new / "low.wav")
    copied = Path(shutil.copy2(old / "kick" / "kick_0.wav", new / "copy.wav"))
    added = write_tone(new / "new.wav", seed=99)
    summary, n_encoded = corpus.embed(old, new)
    assert n_encoded == 1
    assert (summary.n_skipped, summary.n_moved, summary.n_embedded) == (7, 1, 2)
    assert (summary.n_duplicates, summary.n_unmet) == (1, 0)
    rows = corpus.rows()
    assert len(rows) == 9
    assert rows[moved]["id"] == before[old / "bass" / "loop_00001.wav"]["id"]
    original = before[old / "kick" / "kick_0.wav"]
    assert (
        rows[copied]["embedding"]
        == original["embedding"]
        == rows[old / "kick" / "kick_0.wav"]["embedding"]
    )
    assert rows[copied]["id"] != original["id"]
    assert rows[added]["id"] not in {row["id"] for row in before.values()}


def test_equal_files_follow_the_most_similar_path_and_none_is_lost(old, corpus, tmp_path):
    for name in ("bass/twin.wav", "kick/twin.wav"):
        write_tone(old / name, seed=7)
    corpus.embed(old)
    before = corpus.rows()
    new = tmp_path / "elsewhere"
    (new / "drums").mkdir(parents=True)
    (old / "kick").rename(new / "drums" / "kick")
    (old / "bass").rename(new / "bass")
    summary, n_encoded = corpus.embed(new)
    assert (summary.n_moved, summary.n_embedded, n_encoded) == (9, 0, 0)
    rows = corpus.rows()
    for then, now in {
        "bass/twin.wav": "bass/twin.wav",
        "kick/twin.wav": "drums/kick/twin.wav",
    }.items():
        assert rows[new / now]["id"] == before[old / then]["id"]


def test_a_copy_where_a_moved_file_was_gets_an_id_of_its_own(old, corpus, tmp_path):
    first = old / "bass" / "loop_00000.wav"
    new = first.rename(old / "bass" / "renamed.wav")
    corpus.embed(old)
    for _ in range(2):  # and again, from the place of the copy
        shutil.copy(new, first)
        summary, n_encoded = corpus.embed(old)
        assert (summary.n_embedded, n_encoded) == (1, 0)
        new = first.rename(old / "bass" / f"{new.stem}-again.wav")
        corpus.embed(old)
    assert len(corpus.rows()) == 9
    assert len({row["id"] for row in corpus.rows().values()}) == 9


def test_files_that_changed_places(old, corpus):
    """Contents under the keys of others: nothing is encoded, and each path has its content."""
    before = corpus.rows()
    a, b, c = (old / "bass" / f"loop_0000{i}.wav" for i in range(3))
    spare = old / "spare"
    for source, target in ((a, spare), (b, a), (c, b), (spare, c)):
        source.rename(target)
    _, n_encoded = corpus.embed(old)
    assert n_encoded == 0
    rows = corpus.rows()
    assert len(rows) == 7
    for now, then in ((a, b), (b, c), (c, a)):
        assert rows[now]["embedding"] == before[then]["embedding"]
        assert rows[now]["sha256"] == before[then]["sha256"]


def test_a_renamed_file_takes_the_place_of_another(old, corpus):
    before = corpus.rows()
    a, b = (old / "bass" / f"loop_0000{i}.wav" for i in range(2))
    a.replace(b)
    summary, n_encoded = corpus.embed(old)
    assert (summary.n_moved, n_encoded) == (1, 0)
    rows = corpus.rows()
    assert len(rows) == 6
    assert without_place(rows[b]) == without_place(before[a])


def test_rows_of_deleted_files_stay_until_they_are_pruned(old, corpus, tmp_path, caplog):
    other = tmp_path / "other"
    write_corpus(other, 1, seconds=(0.3,))
    write_tone(other / "x.wav", seed=71)
    corpus.embed(other)
    for i in range(2):
        (old / "bass" / f"loop_0000{i}.wav").unlink()
    caplog.clear()
    with caplog.at_level(logging.INFO, "loopjax"):
        summary, _ = corpus.embed(old)
    assert (summary.n_unmet, summary.n_pruned, len(corpus.rows())) == (4, 0, 9)
    assert "also holds 4 loops" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.INFO, "loopjax"):
        summary, n_encoded = corpus.embed(old, prune=True)
    assert (summary.n_pruned, n_encoded) == (2, 0)
    assert "2 loops whose files are gone were dropped" in caplog.text
    assert set(corpus.rows()) == {*old.rglob("*.wav"), *other.rglob("*.wav")}


def test_only_a_file_that_is_certainly_not_there_is_gone(tmp_path, monkeypatch):
    file = write_tone(tmp_path / "a.wav")
    assert not is_gone(os.fsencode(file))
    assert is_gone(os.fsencode(tmp_path / "b.wav"))
    assert is_gone(os.fsencode(file / "b.wav"))  # what was a folder is a file now
    assert not is_gone(b"tfds:set/split/3")

    def refuse(path):
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(os, "stat", refuse)
    assert not is_gone(os.fsencode(tmp_path / "b.wav"))


def test_a_rejected_file_that_moved_is_listed_once(old, corpus, tmp_path):
    (old / "bad.wav").write_bytes(b"junk")
    corpus.embed(old)
    new = old.rename(tmp_path / "elsewhere")
    summary, _ = corpus.embed(new)
    assert summary.n_failed == 1
    failures = read_embeddings(corpus.store).failures
    assert failures["path_bytes"].to_pylist() == [os.fsencode(new / "bad.wav")]


def test_a_missing_line_of_a_list_stays_listed(old, corpus, tmp_path):
    lines = tmp_path / "list.txt"
    lines.write_text("missing.wav\n")
    corpus.embed(lines, old)
    corpus.embed(old)
    assert read_embeddings(corpus.store).failures["reason"].to_pylist() == ["not_found"]


def test_labels_and_earlier_scores_still_fit(old, corpus, tmp_path):
    labels = tmp_path / "labels.csv"
    labels.write_text("file,is_anomaly\nloops/bass/loop_00000.wav,0\nkick/kick_1.wav,1\n")
    ids = set(read_embeddings(corpus.store).table["id"].to_pylist())
    (tmp_path / "mnt").mkdir()
    new = old.rename(tmp_path / "mnt" / "loops")
    corpus.embed(new)
    table = read_embeddings(corpus.store).table
    assert set(table["id"].to_pylist()) == ids
    joined = join_labels(read_labels(labels, print), table["path"].to_pylist(), [str(new)])
    assert not joined.unmatched
    assert sorted(joined.values.tolist()) == [-1] * 5 + [0, 1]


@pytest.mark.parametrize("prune", [False, True])
def test_killed_at_each_change_a_move_ends_the_same(old, corpus, tmp_path, monkeypatch, prune):
    """Loops are never doubled, and never lost beyond what an encoder brings back."""
    moved = tmp_path / "elsewhere"
    shutil.copytree(old, moved)
    (moved / "kick" / "kick_0.wav").unlink()
    (moved / "bass" / "loop_00000.wav").replace(moved / "bass" / "loop_00001.wav")
    shutil.rmtree(old)
    before = tmp_path / "before"
    shutil.copytree(corpus.store, before)

    def run() -> dict[Path, dict]:
        corpus.embed(moved, prune=prune)
        return corpus.rows()

    with dying(corpus.store) as point:
        expected = run()
    assert set(expected) >= set(moved.rglob("*.wav"))
    assert len(expected) == (5 if prune else 7)
    assert point.n_events > 5
    for at in range(point.n_events):
        shutil.rmtree(corpus.store)
        shutil.copytree(before, corpus.store)
        with pytest.raises(Crash), dying(corpus.store, at):
            run()
        rows = run()
        assert set(rows) == set(expected), at
        for file in rows:
            assert without_place(rows[file]) == without_place(expected[file]), at


def test_two_processes_move_no_row_twice(old, corpus, tmp_path, monkeypatch):
    """Each moves rows of its own slice; what falls to the other is shared, not encoded."""
    new = old.rename(tmp_path / "elsewhere")
    n_encoded = 0
    for index in range(2):
        monkeypatch.setattr(parallel, "process_slot", lambda index=index: (index, 2))
        monkeypatch.setattr(parallel, "first_process_does", lambda action: action())
        monkeypatch.setattr(parallel, "wait_for_all", lambda: None)
        monkeypatch.setattr(parallel, "is_stopping", lambda: False)
        monkeypatch.setattr(parallel, "gather", lambda text: [text])
        n = corpus.embed(new)[1]
        n_encoded += n
    assert n_encoded == 0
    monkeypatch.undo()
    corpus.embed(new, prune=True)
    assert set(corpus.rows()) == set(new.rglob("*.wav"))


def test_copies_whose_keys_begin_alike_have_ids_of_their_own(tmp_path):
    pack, names = tmp_path / "pack", ("35763.wav", "135136.wav")
    pack.mkdir()
    for name in names:
        write_tone(pack / name)
    first, second = (make_key(f"pack/{name}".encode()) for name in names)
    assert first[:8] == second[:8]
    corpus = Corpus(tmp_path)
    corpus.embed(pack)
    assert len(corpus.rows()) == 2  # reading refuses equal ids
    sha256 = "0" * 64
    ids = {
        StoredLoops(DoneIndex(None), index, 2).new_id(key, sha256)  # processes that see no other
        for index, key in enumerate((first, second))
    }
    assert len(ids) == 2


def test_a_copy_at_a_place_whose_row_moved_away_gets_an_id_that_is_free(tmp_path):
    corpus, pack = Corpus(tmp_path), tmp_path / "pack"
    pack.mkdir()
    write_tone(pack / "a.wav")
    corpus.embed(pack)
    (pack / "a.wav").rename(pack / "b.wav")
    corpus.embed(pack)
    write_tone(pack / "a.wav")
    corpus.embed(pack)
    rows = corpus.rows()
    assert len({row["id"] for row in rows.values()}) == 2
    assert rows[pack / "b.wav"]["id"].endswith(make_key(b"pack/a.wav"))


def test_a_renamed_tree_is_pruned_from_the_command_line(tmp_path, capsys):
    write_corpus(tmp_path / "loops", 3)
    store = tmp_path / "store"
    command = ["-o", str(store), "--encoder", "log-mel-statistics", "--workers", "1"]
    assert main(["embed", str(tmp_path / "loops"), *command]) == 0
    new = (tmp_path / "loops").rename(tmp_path / "samples")
    (new / "loop_00002.wav").unlink()
    capsys.readouterr()
    assert main(["embed", str(new), *command, "--prune", "--json"]) == 0
    out, err = capsys.readouterr()
    summary = json.loads(out)
    assert (summary["n_moved"], summary["n_pruned"], summary["n_embedded"]) == (2, 1, 0)
    assert "1 loops whose files are gone were dropped" in err
