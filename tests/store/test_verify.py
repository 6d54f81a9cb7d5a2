"""What `loopjax store` says about a store."""

import os
import shutil

import pytest

from loopjax.cli import main
from loopjax.store.parquet import open_footer
from loopjax.store.read import part_files
from loopjax.store.resume import finish, prepare
from loopjax.store.verify import verify_store
from loopjax.store.write import ShardWriter
from tests.store.test_read import METADATA, make_row
from tests.store.test_write import failure


@pytest.fixture
def store(tmp_path):
    """Three shards and a rejected input."""
    folder = tmp_path / "emb"
    folder.mkdir()
    writer = ShardWriter(folder, METADATA, 2)
    for i in range(6):
        writer.add(make_row(i))
    writer.add_failure(failure(7))
    writer.flush()
    finish(folder, METADATA)
    return folder


def flip_unnoticed(path) -> None:
    """One bit in the middle, and the time that the file had."""
    before, raw = path.stat(), bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 4
    path.write_bytes(raw)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_a_sound_store(store, capsys):
    assert main(["store", "verify", str(store)]) == 0
    assert "6 loops in 3 shards and 1 rejected inputs" in capsys.readouterr().out


def test_every_damaged_file_is_named_and_redone_by_the_next_run(store, capsys):
    victims = [part_files(store)[1], store / "failures-in-footer.parquet"]
    for path in victims:
        flip_unnoticed(path)
    prepare(store, METADATA)  # reads the index only, and the list of rejected inputs
    assert not victims[1].exists()
    assert open_footer(victims[0]).is_untouched
    assert main(["store", "verify", str(store)]) == 5
    output = capsys.readouterr()
    assert f"{victims[0]} is damaged" in output.out
    assert "1 faults in 3 shards" in output.err
    prepare(store, METADATA)
    assert victims[0] not in part_files(store)
    assert {p.name.split(".")[0] for p in store.with_name("emb.damaged").iterdir()} == {
        "part-00001",
        "failures-in-footer",
    }
    assert main(["store", "verify", str(store)]) == 0


def test_shards_that_do_not_belong_together_are_told(store, tmp_path):
    shutil.copy(part_files(store)[0], store / "part-copy.parquet")
    other = tmp_path / "other"
    other.mkdir()
    writer = ShardWriter(other, {**METADATA, "weights_sha256": "c" * 64}, 2)
    writer.add(make_row(9))
    writer.flush()
    shutil.copy(part_files(other)[0], store / "part-other.parquet")
    faults = verify_store(store).faults
    assert len(faults) == 3
    assert "part-other.parquet comes from another encoder" in faults[0]
    assert all("more than once (in part-00000.parquet, part-copy" in fault for fault in faults[1:])


def test_rejected_inputs_are_listed(store, capsys):
    assert main(["store", "failures", str(store)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "key,path,stage,reason,message,size_bytes"
    assert lines[1].endswith("7.wav,decode,decode_error,message,5")


def test_no_store_there(tmp_path, capsys):
    assert main(["store", "verify", str(tmp_path)]) == 2
    assert main(["store", "verify", str(tmp_path / "nowhere")]) == 2
    assert "no such store" in capsys.readouterr().err
