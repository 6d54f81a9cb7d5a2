"""The writer: numbering, replacement, failure lists, the done index."""

import dataclasses
import os
import threading
import time

import numpy as np
import pyarrow as pa
import pytest

from loopjax.audio.loop import Failure
from loopjax.errors import WriteError
from loopjax.io import locked
from loopjax.store import index, parquet, write
from loopjax.store.failures import read_failures
from loopjax.store.index import DoneIndex
from loopjax.store.read import part_files, read_embeddings
from loopjax.store.resume import finish, prepare
from loopjax.store.write import ShardWriter, drop_rows
from tests.store.test_read import METADATA, make_row


def write_rows(folder, numbers, shard_rows=100, **kwargs) -> ShardWriter:
    writer = ShardWriter(folder, METADATA, shard_rows, **kwargs)
    for i in numbers:
        writer.add(make_row(i))
    writer.flush()
    return writer


def keys(folder) -> list[str]:
    return read_embeddings(folder).table["key"].to_pylist()


def wait_for(condition) -> None:
    end_s = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end_s
        time.sleep(0.005)


def failure(i: int, reason="decode_error") -> Failure:
    key = make_row(i).key
    return Failure(key, f"{i}.wav", f"{i}.wav".encode(), "decode", reason, "message", 5)


def test_numbering_continues_and_processes_do_not_collide(tmp_path):
    write_rows(tmp_path, range(3))
    write_rows(tmp_path, range(3, 5))
    write_rows(tmp_path, range(5, 6), process_index=1, process_count=2)
    write_rows(tmp_path, range(6, 7), process_index=1, process_count=2)
    names = [part.name for part in part_files(tmp_path)]
    assert names == [
        "part-00000.parquet",
        "part-00001.parquet",
        "part-p001-00000.parquet",
        "part-p001-00001.parquet",
    ]
    assert len(set(keys(tmp_path))) == 7


def test_rows_are_written_when_enough_or_old_enough(tmp_path, monkeypatch):
    writer = ShardWriter(tmp_path, METADATA, 3)
    writer.add(make_row(0))
    writer.add(make_row(1))
    assert not part_files(tmp_path)
    writer.add(make_row(2))
    wait_for(lambda: len(part_files(tmp_path)) == 1)
    now = write.time.monotonic()
    writer.add(make_row(3))
    monkeypatch.setattr("loopjax.store.write.time.monotonic", lambda: now + write.FLUSH_S + 5)
    writer.add(make_row(4))
    wait_for(lambda: len(part_files(tmp_path)) == 2)


def test_a_thread_writes_and_only_so_many_shards_wait(tmp_path, monkeypatch):
    """The one who adds rows goes on while the disk is slow, until `MAX_WAITING` shards wait."""
    may_write, added = threading.Event(), []
    write_parquet = write.write_parquet
    monkeypatch.setattr(
        write, "write_parquet", lambda *args: may_write.wait(60) and write_parquet(*args)
    )
    writer = ShardWriter(tmp_path, METADATA, 2)

    def add_all() -> None:
        for i in range(12):
            writer.add(make_row(i))
            added.append(i)
        writer.flush()

    adding = threading.Thread(target=add_all)
    adding.start()
    wait_for(lambda: len(added) == 2 * (write.MAX_WAITING + 1) - 1)
    adding.join(0.2)
    assert len(added) == 2 * (write.MAX_WAITING + 1) - 1 and not part_files(tmp_path)
    may_write.set()
    adding.join(60)
    assert len(set(keys(tmp_path))) == 12 and len(part_files(tmp_path)) == 6


def test_what_the_thread_cannot_write_is_told_and_the_rest_is_kept(tmp_path, monkeypatch):
    write_parquet = write.write_parquet

    def full_once(table, path):
        if path.name == "part-00000.parquet" and not failed:
            failed.append(path)
            raise WriteError("disk full")
        write_parquet(table, path)

    failed = []
    monkeypatch.setattr(write, "write_parquet", full_once)
    writer = ShardWriter(tmp_path, METADATA, 2)
    with pytest.raises(WriteError, match="disk full"):
        for i in range(100):
            writer.add(make_row(i))
        writer.flush()
    writer.add(make_row(100))
    writer.flush()
    kept = set(keys(tmp_path))
    assert kept and not kept & {make_row(0).key, make_row(1).key}


def test_done_index_finds_rows_and_notices_changes(tmp_path):
    write_rows(tmp_path, range(0, 50, 2), shard_rows=7)
    done = DoneIndex(tmp_path)
    assert len(done) == 25
    for i in range(50):
        row = make_row(i)
        at = done.find(row.key)
        assert (at is None) == bool(i % 2)
        if at is not None:
            assert done.unchanged(at, row.size_bytes, row.mtime_ns)
            assert not done.unchanged(at, row.size_bytes + 1, row.mtime_ns)
            assert done.same_content(at, row.sha256)
            assert not done.same_content(at, "f" * 64)
            stored = read_embeddings(done.part(at)).table["key"].to_pylist()
            assert row.key in stored
    assert DoneIndex(tmp_path / "empty").find("0" * 16) is None


def test_largest_keys_fit():
    digits = pa.chunked_array([["f" * 64, "0" * 64, "8" + "0" * 63]])
    expected = np.array([2**64 - 1, 0, 2**63], np.uint64)
    np.testing.assert_array_equal(index._as_uint64(digits), expected)


def test_replacing_drops_the_old_row_first(tmp_path, monkeypatch):
    write_rows(tmp_path, range(4))
    (old,) = part_files(tmp_path)
    writer = ShardWriter(tmp_path, METADATA, 100)
    writer.add(make_row(1), replaces=old)
    writer.add_failure(failure(2), replaces=old)
    order: list[str] = []
    plain = parquet.write_atomically
    monkeypatch.setattr(
        "loopjax.store.parquet.write_atomically",
        lambda path, write: (order.append(path.name), plain(path, write))[1],
    )
    writer.flush()
    assert order == ["part-00000.parquet", "part-00001.parquet", "failures-in-footer-p000.parquet"]
    assert sorted(keys(tmp_path)) == sorted(make_row(i).key for i in (0, 1, 3))


def test_a_shard_that_loses_all_rows_disappears(tmp_path):
    write_rows(tmp_path, [1, 2])
    (part,) = part_files(tmp_path)
    drop_rows(part, [make_row(1).key])
    assert keys(tmp_path) == [make_row(2).key]
    drop_rows(part, [make_row(2).key])
    assert not part_files(tmp_path)


def test_failures_of_all_processes_become_one_list_without_the_embedded(tmp_path):
    first = ShardWriter(tmp_path, METADATA, 10, 0, 2)
    second = ShardWriter(tmp_path, METADATA, 10, 1, 2)
    for i in (1, 2):
        first.add_failure(failure(i))
    second.add_failure(failure(3))
    first.flush()
    second.flush()
    finish(tmp_path, METADATA)
    assert [f.name for f in tmp_path.glob("failures*")] == ["failures-in-footer.parquet"]
    assert read_failures(tmp_path)["path"].to_pylist() == ["1.wav", "2.wav", "3.wav"]
    write_rows(tmp_path, [2])  # was repaired and embedded
    third = ShardWriter(tmp_path, METADATA, 10)
    third.add_failure(failure(3, "timeout"))  # failed again, otherwise
    third.flush()
    finish(tmp_path, METADATA)
    rows = read_failures(tmp_path).to_pylist()
    assert [(row["path"], row["reason"]) for row in rows] == [
        ("1.wav", "decode_error"),
        ("3.wav", "timeout"),
    ]


def test_prepare_cleans_up_and_restart_starts_over(tmp_path):
    prepare(tmp_path, METADATA)
    write_rows(tmp_path, range(3))
    prepare(tmp_path, METADATA)
    assert len(keys(tmp_path)) == 3
    (tmp_path / "notes.txt").write_text("mine")
    prepare(tmp_path, {**METADATA, "preprocessing_sha256": "c"}, restart=True)
    assert not part_files(tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_lock_is_not_inherited_by_children(tmp_path):
    import subprocess

    with locked(tmp_path):
        child = subprocess.Popen(["sleep", "30"], close_fds=False)
    try:
        with locked(tmp_path):
            pass
    finally:
        child.kill()
        child.wait()


@pytest.mark.skipif(os.getuid() == 0, reason="permissions do not bind root")
def test_read_only_folder_is_a_write_error(tmp_path):
    tmp_path.chmod(0o555)
    with pytest.raises(WriteError), locked(tmp_path / "store"):
        pass


def test_times_beyond_64_bits_of_nanoseconds_are_kept_apart(tmp_path):
    year_2300, year_1600 = 10_413_792_000 * 10**9, -11_676_096_000 * 10**9
    writer = ShardWriter(tmp_path, METADATA, 10)
    for i, mtime_ns in enumerate((year_2300, year_1600)):
        writer.add(dataclasses.replace(make_row(i), mtime_ns=mtime_ns))
    writer.flush()
    done = DoneIndex(tmp_path)
    for i, mtime_ns in enumerate((year_2300, year_1600)):
        at = done.find(make_row(i).key)
        assert at is not None
        assert done.unchanged(at, 1000 + i, mtime_ns)
        assert not done.unchanged(at, 1000 + i, mtime_ns + 1)
