"""Stores on object stores: whole shards, resumed runs, workers, nothing on the local disk."""

import io
import json
import tarfile
import threading
import time
import uuid

import numpy as np
import pytest
from filelock import Timeout

from loopjax.cli import main
from loopjax.config import EmbedConfig
from loopjax.embedding.chain import embed_corpus, embed_shared
from loopjax.errors import HeldError, InterruptedRunError, UserError, WriteError
from loopjax.experiment import scoring
from loopjax.experiment.scoring import score_store
from loopjax.io import locked, locks, remote, write_text
from loopjax.io.locks import create, locked_file
from loopjax.io.remote import place_of
from loopjax.model import load_model
from loopjax.store import stream
from loopjax.store.read import read_embeddings
from loopjax.store.scores import read_scores
from loopjax.store.stream import StoredEmbeddings, open_embeddings
from loopjax.store.write import ShardWriter
from tests.audio_files import write_tone
from tests.fake_encoder import FakeEncoder

pytest.importorskip("upath")
N = 12
CONFIG = EmbedConfig(batch_size=4, shard_rows=4, workers=1)


@pytest.fixture(scope="module")
def s3_server():
    """An S3 server on loopback; moto keeps the objects in memory."""
    server = pytest.importorskip("moto.server").ThreadedMotoServer(port=0)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "test")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        place_of("s3://loops").fs.mkdir("loops")  # pyright: ignore
        yield
    server.stop()


@pytest.fixture(params=["memory", "s3"])
def bucket(request, tmp_path, monkeypatch):
    """The address of an empty folder; run in an empty local folder that stays empty."""
    if request.param == "s3":
        request.getfixturevalue("s3_server")
    empty = tmp_path / "empty"
    empty.mkdir()
    monkeypatch.chdir(empty)
    yield f"{request.param}://loops/{uuid.uuid4().hex}"
    assert not list(empty.iterdir())


@pytest.fixture(scope="module")
def loops(tmp_path_factory):
    folder = tmp_path_factory.mktemp("remote") / "loops"
    folder.mkdir()
    for i in range(N):
        write_tone(folder / f"{i:02d}.wav", 0.3 + 0.05 * i, 44_100, seed=i)
    return folder


def run(loops, out, encoder=None, **options):
    return embed_corpus([loops], encoder or FakeEncoder(), out, CONFIG, progress=False, **options)


def test_a_store_is_what_a_local_one_is(loops, bucket, tmp_path):
    assert run(loops, f"{bucket}/emb").n_embedded == N
    run(loops, tmp_path / "local")
    here, there = read_embeddings(tmp_path / "local"), read_embeddings(f"{bucket}/emb")
    np.testing.assert_array_equal(here.matrix, there.matrix)
    assert here.table.equals(there.table) and here.metadata == there.metadata
    names = sorted(place.name for place in place_of(f"{bucket}/emb").iterdir())
    assert names == [f"part-{i:05d}.parquet" for i in range(3)]
    again = run(loops, f"{bucket}/emb")
    assert (again.n_embedded, again.n_skipped) == (0, N)
    with pytest.raises(UserError, match="other settings"):
        run(loops, f"{bucket}/emb", FakeEncoder(seed=1))


@pytest.fixture
def fitted(loops, bucket, tmp_path):
    """The address of a store, and a model of it on the local disk."""
    store = f"{bucket}/emb"
    assert main(["embed", str(loops), "-o", store, "--encoder", "log-mel-statistics"]) == 0
    fit = ["fit", store, "-o", str(tmp_path / "m"), "--detector", "mean-cosine"]
    assert main(fit) == 0
    return store, tmp_path / "m"


def count_as_large(monkeypatch):
    monkeypatch.setattr(stream, "RESIDENT_BYTES", 0)
    monkeypatch.setattr("loopjax.experiment.fit.RESIDENT_BYTES", 0)
    monkeypatch.setattr(scoring, "PART_ROWS", 5)


def test_the_command_line_verifies_fits_and_scores(fitted, tmp_path, monkeypatch):
    store, model = fitted
    assert main(["store", "verify", store]) == 0
    assert main(["score", str(model), store, "-o", str(tmp_path / "a.parquet")]) == 0
    count_as_large(monkeypatch)
    assert isinstance(open_embeddings(store), StoredEmbeddings)
    again = str(tmp_path / "n")
    assert main(["fit", store, "-o", again, "--detector", "mean-cosine"]) == 0
    assert main(["score", again, store, "-o", str(tmp_path / "b.parquet")]) == 0


@pytest.mark.parametrize("is_large", [False, True])
@pytest.mark.parametrize("name", ["scores.parquet", "scores"])
def test_scores_are_what_local_ones_are(fitted, bucket, tmp_path, monkeypatch, name, is_large):
    store, model = fitted
    if is_large:
        count_as_large(monkeypatch)
    assert main(["score", str(model), store, "-o", str(tmp_path / name)]) == 0
    for _ in range(2):  # the second replaces the first
        csv = f"{bucket}/out/scores.csv"
        assert main(["score", str(model), store, "-o", f"{bucket}/out/{name}", "--csv", csv]) == 0
    here, there = read_scores(tmp_path / name), read_scores(f"{bucket}/out/{name}")
    assert here.table.equals(there.table) and here.metadata == there.metadata
    assert sorted(here.table["rank"].to_pylist()) == list(range(1, N + 1))
    left = {place.name for place in place_of(f"{bucket}/out").iterdir()}
    assert left == {name, "scores.csv"}  # no parts, no locks
    assert place_of(csv).read_text().count("\n") == N + 1


def test_stopped_scoring_goes_on(fitted, bucket, monkeypatch):
    store, model = fitted
    count_as_large(monkeypatch)
    score_part, written = scoring._score_part, []

    def stops_at_the_second(model, stored, part, job):
        if len(written) == 1:
            raise InterruptedRunError("stopped", 15)
        written.append(part.name)
        score_part(model, stored, part, job)

    monkeypatch.setattr(scoring, "_score_part", stops_at_the_second)
    out = place_of(f"{bucket}/scores")
    with pytest.raises(InterruptedRunError):
        score_store(load_model(model), model, open_embeddings(store), out)
    assert not out.exists() and [p.name for p in out.with_name("scores.parts").iterdir()] == written
    again = []
    monkeypatch.setattr(
        scoring, "_score_part", lambda *args: again.append(args[2].name) or score_part(*args)
    )
    score_store(load_model(model), model, open_embeddings(store), out)
    assert written + again == [f"part-{i:05d}.parquet" for i in range(3)]
    (out / "part-00001.parquet").unlink()  # as if the process had died between two uploads
    with pytest.raises(UserError, match="2 of 3 parts"):
        read_scores(out)
    again.clear()
    score_store(load_model(model), model, open_embeddings(store), out)
    assert len(again) == 3 and len(read_scores(out).table) == N


def test_processes_share_the_parts_of_scores(fitted, bucket, monkeypatch):
    store, model = fitted
    count_as_large(monkeypatch)
    score_part, scored = scoring._score_part, []

    def slowly(model, stored, part, job):
        scored.append(part.name)
        time.sleep(0.3)
        score_part(model, stored, part, job)

    monkeypatch.setattr(scoring, "_score_part", slowly)
    out = place_of(f"{bucket}/scores.parquet")

    def work() -> None:
        score_store(load_model(model), model, open_embeddings(store), out)

    workers = [threading.Thread(target=work) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert sorted(scored) == [f"part-{i:05d}.parquet" for i in range(3)]
    assert len(read_scores(out).table) == N
    assert {place.name for place in out.parent.iterdir()} == {"emb", "scores.parquet"}


def test_a_stopped_run_goes_on(loops, bucket, monkeypatch):
    write, written = ShardWriter._write, []

    def stops_at_the_second(self, batch):
        if len(written) == 1:
            raise InterruptedRunError("stopped", 15)
        written.append(len(batch.rows))
        write(self, batch)

    monkeypatch.setattr(ShardWriter, "_write", stops_at_the_second)
    with pytest.raises(InterruptedRunError):
        run(loops, f"{bucket}/emb")
    assert len(read_embeddings(f"{bucket}/emb")) == 4
    monkeypatch.setattr(ShardWriter, "_write", write)
    again = run(loops, f"{bucket}/emb")
    assert (again.n_embedded, again.n_skipped) == (N - 4, 4)
    assert len(set(read_embeddings(f"{bucket}/emb").table["id"].to_pylist())) == N


def test_a_failed_upload_leaves_nothing(bucket, monkeypatch):
    def fails(*args, **options):
        raise RuntimeError("the connection was reset\nand more")

    file = place_of(f"{bucket}/x.txt")
    write_text(file, "old")
    with monkeypatch.context() as patch:
        patch.setattr(file.fs, "put_file", fails)  # pyright: ignore
        with pytest.raises(WriteError, match="connection was reset"):
            write_text(file, "new")
    assert file.read_text() == "old" and [p.name for p in file.parent.iterdir()] == ["x.txt"]


def test_workers_share_a_store(loops, bucket, tmp_path):
    out, found = f"{bucket}/emb", []

    def work() -> None:
        options = {"unit_files": 3, "lease_s": 30.0, "progress": False}
        found.append(embed_shared([loops], FakeEncoder(), out, CONFIG, **options))

    workers = [threading.Thread(target=work) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
    assert len(found) == 2 and sum(summary.n_embedded for summary in found) >= N
    embeddings = read_embeddings(out)
    assert len(set(embeddings.table["id"].to_pylist())) == len(embeddings) == N
    run(loops, tmp_path / "local")
    np.testing.assert_array_equal(embeddings.matrix, read_embeddings(tmp_path / "local").matrix)


def test_sources_on_the_same_file_system_keep_their_columns(loops, bucket):
    content = {path.name: path.read_bytes() for path in sorted(loops.iterdir())}
    (place_of(f"{bucket}/loops") / "kit").mkdir(parents=True, exist_ok=True)
    for name in list(content)[:2]:
        (place_of(f"{bucket}/loops") / "kit" / name).write_bytes(content[name])
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for name in list(content)[2:5]:
            side_car = json.dumps({"bpm": 90 + int(name[:2])}).encode()
            for member, data in ((name, content[name]), (f"{name[:2]}.json", side_car)):
                entry = tarfile.TarInfo(member)
                entry.size = len(data)
                tar.addfile(entry, io.BytesIO(data))
    place_of(f"{bucket}/a.tar").write_bytes(archive.getvalue())
    embed_corpus([f"{bucket}/loops"], FakeEncoder(), f"{bucket}/one", CONFIG, progress=False)
    assert set(read_embeddings(f"{bucket}/one").table["group"].to_pylist()) == {"kit"}
    embed_corpus([f"{bucket}/a.tar"], FakeEncoder(), f"{bucket}/two", CONFIG, progress=False)
    found = read_embeddings(f"{bucket}/two").table
    assert sorted(found["bpm"].to_pylist()) == ["92", "93", "94"]


def test_one_writer_at_a_time(bucket, monkeypatch):
    monkeypatch.setattr(locks, "EXPIRE_S", 0.9)
    monkeypatch.setattr(locks, "WATCH_S", 0.05)
    store = place_of(f"{bucket}/emb")
    with locked(store):
        with pytest.raises(HeldError, match="another run"), locked(store):
            pass
        assert len(list(store.iterdir())) == 1
    with locked(store):  # it was handed back
        pass


def test_a_lock_of_a_dead_holder_is_taken(bucket, monkeypatch):
    monkeypatch.setattr(locks, "EXPIRE_S", 0.3)
    monkeypatch.setattr(locks, "WATCH_S", 0.05)
    lock = place_of(f"{bucket}/lock")
    held = lock.with_name("lock.held")
    assert create(held, b"somebody 7") and not create(held, b"another 0")
    assert held.read_bytes() == b"somebody 7"
    started_s = time.monotonic()
    with locked_file(lock, waits=False):
        assert time.monotonic() - started_s >= 0.3
    assert not held.exists()


def test_where_the_system_has_no_locks_a_file_stands_in(tmp_path, monkeypatch, caplog):
    class NoLocks:
        def __init__(self, *args, **options):
            pass

        def __enter__(self):
            raise NotImplementedError("FileSystem does not appear to support flock")

        def __exit__(self, *args):
            pass

    monkeypatch.setattr(locks, "FileLock", NoLocks)
    monkeypatch.setattr(locks, "EXPIRE_S", 0.9)
    monkeypatch.setattr(locks, "WATCH_S", 0.05)
    with locked_file(tmp_path / "lock"):
        assert "Lustre" in caplog.text
        with pytest.raises(Timeout), locked_file(tmp_path / "lock", waits=False):
            pass
        monkeypatch.setattr(locks, "_read", lambda path: pytest.fail("it was watched"))
        with (
            pytest.raises(Timeout),
            locked_file(tmp_path / "lock", waits=False, takes_over=False),
        ):
            pass
        monkeypatch.undo()
    assert not list(tmp_path.iterdir())


def test_what_is_missing_is_said(monkeypatch):
    with pytest.raises(UserError, match="nosuch"):
        place_of("nosuch://bucket/emb")
    assert not remote.is_address("gs:/bucket") and remote.is_address("gs://bucket")
