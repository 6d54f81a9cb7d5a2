"""Fault matrix rows 23 to 29: names, links, permissions and files that change."""

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from loopjax.audio.decode import decode_file
from loopjax.audio.loop import Failure, Loop
from loopjax.audio.sources.files import scan
from loopjax.config import EmbedConfig
from loopjax.embedding.chain import embed_corpus
from loopjax.errors import UserError
from loopjax.library import marks
from loopjax.store.read import read_embeddings
from loopjax.store.scores import write_csv
from tests.audio_files import write_tone
from tests.faults.conftest import assert_healthy_rows_equal, run_and_read

pytestmark = pytest.mark.faults

STRANGE_NAMES = [
    b"line\nbreak.wav",
    b"quote'\".wav",
    b"<script>alert(1)</script>.wav".replace(b"/", b"_"),
    "\N{GUITAR} groove.wav".encode(),
    b"x" * 251 + b".wav",
    b"-rf.wav",
    b"semi;colon,comma.wav",
    b" .wav",
    b"%s%n.WAV",
]


@pytest.fixture(scope="module")
def strange(encoder, healthy, tmp_path_factory):
    folder = tmp_path_factory.mktemp("strange") / "names"
    folder.mkdir()
    plain = write_tone(folder / "plain.wav", seed=5)
    for i, name in enumerate([b"\xff.wav", *STRANGE_NAMES]):
        write_tone(plain, seed=100 + i)
        shutil.copy(plain, os.path.join(os.fsencode(folder), name))  # noqa: PTH118
    plain.unlink()
    return folder, run_and_read(encoder, [healthy, folder], folder.parent / "store")


def test_row_23_name_that_is_not_utf8(strange, clean):
    folder, outcome = strange
    (row,) = [r for r in outcome.embeddings.table.to_pylist() if b"\xff" in r["path_bytes"]]
    assert row["path_bytes"] == os.fsencode(folder) + b"/\xff.wav"
    assert Path(os.fsdecode(row["path_bytes"])).exists()
    assert row["path"].endswith("\\xff.wav")
    assert_healthy_rows_equal(outcome, clean)


def test_row_24_names_that_break_shells_and_tables(strange, tmp_path):
    import csv

    folder, outcome = strange
    assert not outcome.reasons
    names = {
        r["path_bytes"].removeprefix(os.fsencode(folder) + b"/") for r in outcome.rows.values()
    }
    assert names >= set(STRANGE_NAMES)
    write_csv(outcome.embeddings.table.select(["id", "path"]), tmp_path / "rows.csv")
    with (tmp_path / "rows.csv").open(newline="", encoding="utf-8") as file:
        back = list(csv.DictReader(file))
    assert [row["path"] for row in back] == outcome.embeddings.table["path"].to_pylist()


def test_row_25_link_loops_are_walked_once(tmp_path):
    inner = tmp_path / "corpus" / "inner"
    inner.mkdir(parents=True)
    write_tone(inner / "a.wav")
    (inner / "up").symlink_to(tmp_path / "corpus")
    (tmp_path / "corpus" / "again").symlink_to(inner)
    rows = list(scan([tmp_path / "corpus"]))
    assert len(rows) == 1
    assert isinstance(rows[0], Loop)


@pytest.mark.timeout(30)
def test_row_26_what_is_not_a_regular_file(encoder, healthy, clean, tmp_path):
    folder = tmp_path / "odd"
    folder.mkdir()
    os.mkfifo(folder / "pipe.wav")
    (folder / "endless.wav").symlink_to("/dev/zero")
    (folder / "folder.wav").mkdir()
    write_tone(folder / "folder.wav" / "inside.wav")
    (folder / "nowhere.wav").symlink_to(folder / "missing")
    with socket.socket(socket.AF_UNIX) as listener:
        old = Path.cwd()
        os.chdir(folder)  # socket names are limited to about 100 bytes
        listener.bind("socket.wav")
        os.chdir(old)
        outcome = run_and_read(encoder, [healthy, folder], tmp_path / "store")
    expected = dict.fromkeys(
        ("pipe.wav", "endless.wav", "folder.wav", "socket.wav"), "not_regular_file"
    )
    assert outcome.reasons == expected | {"nowhere.wav": "not_found"}
    assert "inside.wav" in outcome.rows
    assert_healthy_rows_equal(outcome, clean)


def test_row_26_a_pipe_that_appears_after_the_walk_does_not_hang(tmp_path):
    from loopjax.audio.loop import DecodeError

    os.mkfifo(tmp_path / "late.wav")
    with pytest.raises(DecodeError) as caught:
        decode_file(os.fsencode(tmp_path / "late.wav"), -1, 0)
    assert caught.value.reason == "not_regular_file"


PERMISSION_SCRIPT = """
import os, sys
from loopjax.audio.loop import DecodeError
from loopjax.audio.decode import decode_file
from loopjax.audio.sources.files import scan
if os.getuid() == 0:  # permissions do not bind root
    os.setgroups([]); os.setgid(65534); os.setuid(65534)
for row in scan([sys.argv[1]]):
    print(type(row).__name__, os.path.basename(row.path), getattr(row, "reason", ""))
try:
    decode_file(os.fsencode(sys.argv[1] + "/locked.wav"), -1, 0)
except DecodeError as error:
    print("decode", error.reason)
"""


def test_row_27_no_permission(tmp_path):
    import tempfile

    with tempfile.TemporaryDirectory() as name:  # pytest's own folders are closed to others
        folder = Path(name)
        folder.chmod(0o755)
        write_tone(folder / "open.wav").chmod(0o644)
        write_tone(folder / "locked.wav").chmod(0)
        (folder / "closed").mkdir(mode=0o000)
        (folder / "zz_after").mkdir(mode=0o755)
        write_tone(folder / "zz_after" / "last.wav").chmod(0o644)
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        done = subprocess.run(
            [sys.executable, "-c", PERMISSION_SCRIPT, name],
            capture_output=True,
            text=True,
            env=environment,
            check=False,
        )
        (folder / "closed").chmod(0o755)
    lines = set(done.stdout.splitlines())
    assert {"Loop open.wav ", "Failure closed permission", "Loop last.wav "} <= lines, done.stderr
    assert "decode permission" in lines


def test_row_28_files_that_change_after_the_walk(encoder, healthy, clean, tmp_path, monkeypatch):
    folder = tmp_path / "moving"
    folder.mkdir()
    for name in ("deleted.wav", "grown.wav", "touched.wav"):
        write_tone(folder / name)

    def scan_then_change(*args):
        rows = list(scan(*args))
        (folder / "deleted.wav").unlink()
        with (folder / "grown.wav").open("ab") as file:
            file.write(b"more")
        os.utime(folder / "touched.wav", ns=(1, 1))
        return iter(rows)

    monkeypatch.setattr("loopjax.audio.sources.files.scan", scan_then_change)
    outcome = run_and_read(encoder, [healthy, folder], tmp_path / "store")
    names = ("deleted.wav", "grown.wav", "touched.wav")
    assert outcome.reasons == dict.fromkeys(names, "changed")
    assert_healthy_rows_equal(outcome, clean)


def test_row_28_a_changed_file_is_embedded_again_by_the_next_run(encoder, tmp_path):
    folder = tmp_path / "corpus"
    folder.mkdir()
    for i in range(4):
        write_tone(folder / f"{i}.wav", seed=i)
    first = run_and_read(encoder, [folder], tmp_path / "store")
    write_tone(folder / "1.wav", seed=50)
    os.utime(folder / "2.wav", ns=(1, 1))  # same content: nothing to do
    (folder / "3.wav").write_bytes(b"RIFF")  # was good, is broken now
    second = run_and_read(encoder, [folder], tmp_path / "store")
    assert sorted(second.rows) == ["0.wav", "1.wav", "2.wav"]
    assert second.reasons == {"3.wav": "unsupported_format"}
    np.testing.assert_array_equal(second.vectors["2.wav"], first.vectors["2.wav"])
    assert not np.array_equal(second.vectors["1.wav"], first.vectors["1.wav"])
    write_tone(folder / "3.wav", seed=3)
    third = run_and_read(encoder, [folder], tmp_path / "store")
    assert not third.reasons
    np.testing.assert_array_equal(third.vectors["3.wav"], first.vectors["3.wav"])


def test_row_29_equal_bytes_are_computed_once_and_get_a_row_each(encoder, tmp_path):
    folder = tmp_path / "twins"
    folder.mkdir()
    original = write_tone(folder / "a.wav", seed=7)
    shutil.copy(original, folder / "b.wav")
    (folder / "c.wav").hardlink_to(original)
    for i in range(8):
        shutil.copy(original, folder / f"more_{i}.wav")
    calls = len(encoder.calls)
    options = EmbedConfig(batch_size=4, workers=1)
    summary = embed_corpus([folder], encoder, tmp_path / "store", options, progress=False)
    assert len(encoder.calls) - calls == 1
    assert (summary.n_embedded, summary.n_duplicates) == (11, 10)
    embeddings = read_embeddings(tmp_path / "store")
    assert len(set(embeddings.table["id"].to_pylist())) == 11
    assert len(set(embeddings.table["sha256"].to_pylist())) == 1
    assert (embeddings.matrix == embeddings.matrix[0]).all()


def test_failures_name_the_stage(encoder, tmp_path):
    folder = tmp_path / "corpus"
    folder.mkdir()
    write_tone(folder / "good.wav")
    (folder / "bad.wav").write_bytes(b"junk")
    (folder / "dir.wav").mkdir()
    rows = {Path(f.path).name: f for f in scan([folder]) if isinstance(f, Failure)}
    assert rows["dir.wav"].stage == "scan"
    outcome = run_and_read(encoder, [folder], tmp_path / "store")
    stages = {
        r["path"].rsplit("/", 1)[1]: r["stage"] for r in outcome.embeddings.failures.to_pylist()
    }
    assert stages == {"dir.wav": "scan", "bad.wav": "decode"}


@pytest.mark.parametrize("ending", ["csv", "npy", "parquet", "safetensors", "pkl"])
def test_endless_files_are_no_embeddings(tmp_path, ending):
    (tmp_path / f"a.{ending}").symlink_to("/dev/zero")
    with pytest.raises(UserError, match=f"a.{ending} is a device or pipe"):
        read_embeddings(tmp_path / f"a.{ending}")


def test_endless_files_are_no_marks(monkeypatch):
    monkeypatch.setattr(marks, "MAX_BYTES", 1 << 20)
    with pytest.raises(UserError, match="/dev/zero: larger than 1 MiB; these are no marks"):
        marks.read_marks("/dev/zero")
