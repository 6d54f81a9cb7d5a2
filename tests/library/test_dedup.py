import csv

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
import soxr
from scipy import signal

import loopjax
from loopjax.cli import main
from loopjax.errors import UserError
from loopjax.library.dedup import copy_cosine
from loopjax.library.likeness import RATE_HZ, SAME, correlation
from loopjax.library.neighbors import nearest_neighbors
from loopjax.store.blocks import open_rows
from tests.library.stores import write_store

RATE = 44_100


def pattern(seed, semitones=0.0, seconds=1.5):
    """A few decaying notes over a noise; unlike for every seed."""
    rng = np.random.default_rng(seed)
    t = np.arange(int(seconds * RATE)) / RATE
    loop = 0.02 * signal.lfilter([1], [1, -0.9], rng.normal(size=len(t)))
    for start in rng.uniform(0.1, seconds - 0.2, 6):
        hz = 220 * 2 ** ((rng.integers(24) + semitones) / 12)
        age = np.maximum(t - start, 0)
        loop += 0.2 * np.sin(2 * np.pi * hz * age) * np.exp(-6 * age) * (t >= start)
    return loop.astype(np.float32)


def write_copies(folder, seed):
    """One loop in the forms in which a library holds it twice, and a semitone higher."""
    loop, name = pattern(seed), f"{seed:02d}"
    folder.mkdir(exist_ok=True)
    shifted = np.concatenate([np.zeros(int(0.05 * RATE) + 7, np.float32), loop])
    forms = {"quiet": (loop / 2, RATE), "shift": (shifted, RATE)}
    forms["rate"] = (soxr.resample(loop, RATE, 48_000), 48_000)
    forms["semitone"] = (pattern(seed, semitones=1), RATE)
    soundfile.write(folder / f"{name}-loop.wav", loop, RATE, "PCM_24")
    for form, (samples, rate) in forms.items():
        soundfile.write(folder / f"{name}-{form}.wav", samples, rate, "PCM_16")
    soundfile.write(
        folder / f"{name}-mp3.mp3", loop, RATE, "MPEG_LAYER_III",
        bitrate_mode="CONSTANT", compression_level=2 / 3,
    )  # fmt: skip
    (folder / f"{name}-same.wav").write_bytes((folder / f"{name}-loop.wav").read_bytes())


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dedup")
    for seed in range(4):
        write_copies(folder / "loops", seed)
    loopjax.embed_corpus(folder / "loops", "loopjax-nano", folder / "emb", progress=False)
    return folder


def test_copies_are_found_in_every_form_and_a_semitone_is_none(corpus):
    found = loopjax.dedup(corpus / "emb")
    sets = {}
    for row in found.table.to_pylist():
        sets.setdefault(row["set"], set()).add(row["path"].rpartition("/")[2].partition(".")[0])
    forms = ("loop", "same", "quiet", "shift", "rate", "mp3")
    assert list(sets.values()) == [{f"{n:02d}-{form}" for form in forms} for n in range(4)]
    assert found.n_sets == 4
    assert found.n_heard > 20
    table = found.table.to_pylist()
    kept = [row["path"] for row in table if row["mark"] == "keep"]
    assert all(path.endswith(("loop.wav", "same.wav")) for path in kept)  # 24 bits; as long as any
    assert len(kept) == 4
    evidence = {row["path"][-8:-4]: row["evidence"] for row in table}
    assert evidence["same"] == "content"
    assert evidence["uiet"] == "sound"


def test_without_the_files_embeddings_decide(tmp_path, caplog):
    rng = np.random.default_rng(0)
    matrix = rng.normal(size=(300, 24))
    matrix[200] = 3 * matrix[100] + 0.05 * rng.normal(size=24)
    hashes = [f"{i:064x}"[::-1] for i in range(300)]
    hashes[50] = hashes[60]
    matrix[50] = matrix[60]
    store = write_store(tmp_path / "emb", matrix, sha256=hashes)
    found = loopjax.dedup(store)
    rows = found.table.select(["set", "mark", "evidence", "path"]).to_pylist()
    assert [tuple(row.values()) for row in rows] == [
        (1, "keep", "content", "loops/000050.wav"),
        (1, "reject", "content", "loops/000060.wav"),
        (2, "keep", "cosine", "loops/000100.wav"),
        (2, "reject", "cosine", "loops/000200.wav"),
    ]
    assert "could not be heard" in caplog.text
    assert 0.9 <= found.cosine < 1
    assert loopjax.dedup(store, cosine=1.0, max_heard=0).n_sets == 1


def test_the_longest_copy_that_lost_least_is_kept(tmp_path):
    columns = {
        "duration_s": [4.0, 4.05, 1.0, 4.0],
        "subtype": ["PCM_16", "MPEG_LAYER_III", "FLOAT", "PCM_24"],
        "sha256": [f"{i}" * 64 for i in range(4)],
    }
    store = write_store(tmp_path / "emb", np.ones((4, 3)), **columns)
    table = loopjax.dedup(store, cosine=0.99, max_heard=0).table
    assert table["subtype"].to_pylist() == ["PCM_24", "PCM_16", "MPEG_LAYER_III", "FLOAT"]
    assert table["mark"].to_pylist() == ["keep", "reject", "reject", "reject"]


def test_buckets_find_what_an_exact_search_finds(tmp_path):
    rng = np.random.default_rng(3)
    centers = rng.normal(size=(60, 32))
    matrix = centers[rng.integers(60, size=5000)] + 0.5 * rng.normal(size=(5000, 32))
    matrix[2500:2900] = matrix[:400] + 0.02 * rng.normal(size=(400, 32))
    rows = open_rows(write_store(tmp_path / "emb", matrix, shard_rows=2000))
    everything = np.ones(5000, bool)
    exact = nearest_neighbors(rows.matrices(everything), 3)
    quick = nearest_neighbors(rows.matrices(everything), 3, exact_rows=1000)
    assert (exact.rows[:400, 0] == np.arange(2500, 2900)).all()
    assert (quick.rows[:400, 0] == exact.rows[:400, 0]).mean() > 0.99
    assert (quick.rows == exact.rows).mean() > 0.8
    same = quick.rows == exact.rows
    np.testing.assert_allclose(quick.cosines[same], exact.cosines[same], atol=1e-6)
    assert (quick.rows != np.arange(5000)[:, None]).all()


def test_correlation_knows_shifted_copies_and_silence():
    sound = soxr.resample(pattern(1), RATE, RATE_HZ)
    assert correlation(sound, sound[300:] / 4) > 0.999
    assert correlation(sound, -sound) > 0.999
    finer = soxr.resample(pattern(1)[5:], RATE, RATE_HZ)  # a shift of 1.8 samples
    assert correlation(sound, finer) > 0.99
    assert correlation(sound, soxr.resample(pattern(2), RATE, RATE_HZ)) < SAME / 2
    assert correlation(sound, np.zeros(100, np.float32)) == 0
    assert np.isnan(correlation(np.zeros(5, np.float32), np.zeros(0, np.float32)))


def test_few_rows_and_equal_rows_have_a_threshold():
    assert copy_cosine(np.full((5, 8), 0.3)) == 0.999
    assert copy_cosine(np.ones((100, 8))) <= 1
    assert copy_cosine(np.full((100, 8), 0.95)) == pytest.approx(0.95)
    assert copy_cosine(np.full((100, 8), 0.5)) == 0.9


def test_the_command_writes_marks(corpus, tmp_path, capsys):
    out = tmp_path / "copies.csv"
    assert main(["dedup", str(corpus / "emb"), "-o", str(out), "--top", "3"]) == 0
    captured = capsys.readouterr()
    assert "in 4 sets of copies" in captured.err
    with out.open() as file:
        rows = list(csv.DictReader(file))
    assert [row["mark"] for row in rows].count("keep") == 4
    assert all(len(row["sha256"]) == 64 for row in rows)


def test_mistakes_are_named(tmp_path):
    store = write_store(tmp_path / "emb", np.eye(3))
    with pytest.raises(UserError, match="between -1 and 1"):
        loopjax.dedup(store, cosine=2)
    with pytest.raises(UserError, match="at least 0"):
        loopjax.dedup(store, max_heard=-1)
    pq.write_table(pq.read_table(store / "part-00000.parquet"), store / "part-00001.parquet")
    with pytest.raises(UserError, match="more than once"):
        loopjax.dedup(store)


@pytest.mark.parametrize("n", [1, 2, 30])
def test_a_store_without_copies_has_none(tmp_path, n):
    found = loopjax.dedup(write_store(tmp_path / "emb", np.eye(n, 40)))
    assert (found.n_sets, len(found.table)) == (0, 0)


def test_a_large_set_of_copies_is_one_set(tmp_path):
    rng = np.random.default_rng(0)
    matrix = rng.normal(size=(400, 24))
    matrix[:60] = matrix[0] + 1e-3 * rng.normal(size=(60, 24))
    found = loopjax.dedup(write_store(tmp_path / "emb", matrix), max_heard=0)
    assert found.n_sets == 1
    assert sorted(found.table["path"].to_pylist()) == [f"loops/{i:06d}.wav" for i in range(60)]
