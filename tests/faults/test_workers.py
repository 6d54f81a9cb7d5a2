"""Workers that share a store: killed, stopped, hanging, late, and with wrong clocks."""

import os
import random
import signal
import time
from pathlib import Path

import pytest

from loopjax.config import EmbedConfig
from loopjax.embedding.chain import embed_corpus, embed_shared
from loopjax.embedding.leases import Leases
from loopjax.embedding.units import LEASES, require_no_workers
from loopjax.errors import InterruptedRunError, UserError
from loopjax.io import locked, sweep
from loopjax.store.read import Embeddings, part_files, read_embeddings
from loopjax.store.units import WORKERS
from scripts.faults.kill_workers import disturb
from tests.audio_files import write_corpus, write_tone
from tests.fake_encoder import FakeEncoder
from tests.faults.test_kills import finish, start

pytestmark = pytest.mark.faults

N_FILES = 45
OPTIONS = EmbedConfig(workers=1, batch_size=4)
UNIT_FILES = 6


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Loops of several lengths, two of equal bytes in different units, and two broken files."""
    folder = tmp_path_factory.mktemp("workers") / "corpus"
    paths = write_corpus(folder, N_FILES)
    (folder / "loop_00040_again.wav").write_bytes(paths[3].read_bytes())
    (folder / "loop_00010_broken.wav").write_bytes(b"")
    (folder / "zz_broken.wav").write_bytes(b"RIFF")
    return folder


@pytest.fixture(scope="module")
def alone(corpus, tmp_path_factory) -> Embeddings:
    """What an undisturbed run of its own makes of the corpus."""
    out = tmp_path_factory.mktemp("alone") / "store"
    embed_corpus([corpus], FakeEncoder(), out, OPTIONS, progress=False)
    return read_embeddings(out)


def work(corpus, out: Path, **settings):
    given = {"unit_files": UNIT_FILES, "lease_s": 1.0, "progress": False} | settings
    return embed_shared([corpus], FakeEncoder(), out, OPTIONS, **given)


def assert_equal(out: Path, alone: Embeddings) -> None:
    found = read_embeddings(out)
    assert found.table.equals(alone.table)
    assert found.matrix.tobytes() == alone.matrix.tobytes()
    assert found.failures.equals(alone.failures)
    assert not list(out.rglob("*.tmp"))


def leases_of(out: Path) -> set[str]:
    return {path.name for path in (out / WORKERS / LEASES).iterdir()}


def test_one_worker_equals_a_run_of_its_own(corpus, alone, tmp_path):
    summary = work(corpus, tmp_path / "store")
    assert (summary.n_embedded, summary.n_failed) == (len(alone), 2)
    assert_equal(tmp_path / "store", alone)
    assert not leases_of(tmp_path / "store")
    again = work(corpus, tmp_path / "store")
    assert (again.n_embedded, again.n_failed) == (0, 0)
    assert_equal(tmp_path / "store", alone)


def test_slices_of_an_array_job_add_up(corpus, alone, tmp_path):
    done = [work(corpus, tmp_path / "store", slice_of=(i, 3)).n_embedded for i in (2, 0, 1)]
    assert sum(done) == len(alone)
    assert all(done)
    assert_equal(tmp_path / "store", alone)


def test_a_run_of_its_own_continues_what_workers_left_and_they_what_it_left(
    corpus, alone, tmp_path
):
    work(corpus, tmp_path / "store", slice_of=(1, 3))
    before = {part.name for part in part_files(tmp_path / "store")}
    summary = embed_corpus([corpus], FakeEncoder(), tmp_path / "store", OPTIONS, progress=False)
    assert 0 < summary.n_skipped < len(alone)
    assert before < {part.name for part in part_files(tmp_path / "store")}
    assert_equal(tmp_path / "store", alone)
    assert work(corpus, tmp_path / "store").n_embedded == 0
    assert_equal(tmp_path / "store", alone)


def test_rows_of_changed_files_are_replaced_by_workers(corpus, tmp_path):
    folder = tmp_path / "corpus"
    paths = write_corpus(folder, 14)
    embed_corpus([folder], FakeEncoder(), tmp_path / "store", OPTIONS, progress=False)
    write_tone(paths[2], 0.3, seed=91)
    paths[4].write_bytes(b"")
    os.utime(paths[6], (1, 1))
    write_tone(folder / "new.wav", 0.3, seed=92)
    summary = work(folder, tmp_path / "store")
    assert (summary.n_embedded, summary.n_failed) == (2, 1)
    embed_corpus([folder], FakeEncoder(), tmp_path / "fresh", OPTIONS, progress=False)
    found, fresh = (read_embeddings(tmp_path / name) for name in ("store", "fresh"))
    assert found.table["id"].equals(fresh.table["id"])
    assert found.matrix.tobytes() == fresh.matrix.tobytes()


@pytest.mark.slow
def test_killed_stopped_hanging_and_late_workers(corpus, alone, tmp_path):
    out = tmp_path / "store"

    def one_more():
        return start(corpus, out, "unit_files=1", "lease_s=2.0", "batch_s=0.4")

    disturb(one_more, out, n_blows=20, n_workers=4, rng=random.Random(3))
    assert_equal(out, alone)


@pytest.mark.slow
def test_a_worker_that_is_told_to_stop_hands_its_units_back(corpus, alone, tmp_path):
    out = tmp_path / "store"
    worker = start(corpus, out, "unit_files=40", "lease_s=3600", "batch_s=0.3")
    while not (out / WORKERS / LEASES).exists() or len(leases_of(out)) < 2:
        assert worker.poll() is None, worker.communicate()
        time.sleep(0.02)
    worker.send_signal(signal.SIGTERM)
    code, errors = finish(worker)
    assert code == InterruptedRunError("", signal.SIGTERM).exit_code
    assert "Traceback" not in errors
    assert not leases_of(out)
    work(corpus, out, unit_files=40)  # at once, without waiting an hour
    assert_equal(out, alone)


def test_a_silent_holder_is_judged_by_the_observers_own_clock(tmp_path, monkeypatch):
    holder, observer = Leases(tmp_path, 2.0), Leases(tmp_path, 3600.0)
    assert holder.take("unit-1")
    assert not observer.take("unit-1")
    for moved_s in (-3600, 3600):  # what a wrong clock would write
        os.utime(tmp_path / "unit-1", (time.time() + moved_s,) * 2)
        assert observer.remove_expired() == {"unit-1"}
    clock_s = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: clock_s)
    for wait_s in (1.5, 1.0):  # a sign of life in between
        clock_s += wait_s
        holder.beat()
        assert observer.remove_expired() == {"unit-1"}
    clock_s += 1.9
    assert observer.remove_expired() == {"unit-1"}
    clock_s += 0.2
    observer.remove_expired()
    assert observer.take("unit-1")
    holder.beat()  # wakes up
    holder.release("unit-1")
    assert observer.present() == {"unit-1"}
    observer.release("unit-1")
    assert not observer.present()


def test_nobody_else_writes_beside_workers(corpus, tmp_path):
    out = tmp_path / "store"
    work(corpus, out, slice_of=(0, 3))
    other = Leases(out / WORKERS / LEASES, 1.0)
    assert other.take("worker-elsewhere")
    beats = iter(range(10**6))
    plain = Leases.remove_expired

    def alive(self):
        (out / WORKERS / LEASES / "worker-elsewhere").write_text(f"elsewhere {next(beats)} 1")
        return plain(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Leases, "remove_expired", alive)
        with pytest.raises(UserError, match="--worker"):
            embed_corpus([corpus], FakeEncoder(), out, OPTIONS, progress=False)
        with pytest.raises(UserError, match="--unit-files"):
            work(corpus, out, unit_files=7)
        with pytest.raises(UserError, match="other settings"):
            embed_shared(
                [corpus], FakeEncoder(seed=1), out, OPTIONS, unit_files=UNIT_FILES, progress=False
            )
    require_no_workers(out)  # it is dead now, and its lease goes
    assert not other.present()
    with locked(out), pytest.MonkeyPatch.context() as patch:
        patch.setattr("loopjax.embedding.units.JOIN_S", 0.1)
        with pytest.raises(UserError, match="being written by another run"):
            work(corpus, out)


def test_a_stretch_of_the_corpus_is_the_same_for_everybody(corpus):
    from loopjax.audio.sources.source import open_source

    source = open_source([corpus])
    units = list(source.units(UNIT_FILES))
    assert [unit.number for unit in units] == list(range(8))
    listed = [loop for unit in units for loop in unit.loops()]
    assert listed == list(source.loops())
    assert [unit.digest for unit in units] == [unit.digest for unit in source.units(UNIT_FILES)]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--shard", "3/3"), "from 0 to N-1"),
        (("--shard", "x"), "expected I/N"),
        (("--worker", "--restart"), "--restart"),
        (("--worker", "--unit-files", "0"), "at least one file"),
        (("--worker", "--lease", "nan"), "at least one second"),
        (("--worker", "--coordinator", "a:1"), "no --coordinator"),
        (("--lease", "5"), "--worker"),
    ],
)
def test_options_of_workers_are_checked_before_anything_happens(tmp_path, capsys, options, words):
    from loopjax.cli import main

    (tmp_path / "loops").mkdir()
    assert main(["embed", str(tmp_path / "loops"), "-o", str(tmp_path / "out"), *options]) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_what_dead_workers_left_half_written_goes(corpus, tmp_path):
    out = tmp_path / "store"
    work(corpus, out, slice_of=(0, 3))
    dead, other = out / ".part-u1.parquet.999999.tmp", out / ".part-u2.parquet.999999-01234567.tmp"
    dead.touch()
    other.touch()  # of another host, whose worker may be alive
    sweep(out, elsewhere=False)
    assert not dead.exists()
    assert other.exists()
