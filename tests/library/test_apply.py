import csv
import hashlib
import os

import numpy as np
import pytest

import loopjax
from loopjax.cli import main
from loopjax.errors import UserError, WriteError
from loopjax.library import apply
from loopjax.library.apply import JOURNAL, carry_out, plan, undo_plan
from loopjax.library.marks import marks_of_rows, read_marks
from tests.library.stores import write_store


@pytest.fixture
def loops(tmp_path):
    """Four files in two folders, all but one rejected."""
    rows = []
    for i, name in enumerate(("Bass/a.wav", "Bass/b.wav", "Drums/a.wav", "Drums/=c,'d.wav")):
        path = tmp_path / "loops" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(f"sound {i}".encode())
        sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        mark = "keep" if i == 1 else "reject"
        rows.append(
            {"id": f"{sha256[:16]}-{i:08x}", "path": str(path), "mark": mark, "note": "=x"[i % 2 :]}
        )
    write_marks(tmp_path / "marks.csv", rows)
    return tmp_path


def write_marks(path, rows):
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def files(folder):
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*.wav"))


def test_nothing_moves_without_yes_and_all_comes_back(loops, capsys):
    marks, out = str(loops / "marks.csv"), loops / "rejected"
    before = files(loops / "loops")
    assert main(["apply", marks, "--move", str(out)]) == 0
    assert "3 files would be moved: add --yes" in capsys.readouterr().err
    assert not out.exists()
    assert main(["apply", marks, "--move", str(out), "--yes"]) == 0
    assert files(loops / "loops") == ["Bass/b.wav"]
    assert files(out) == ["Bass/a.wav", "Drums/=c,'d.wav", "Drums/a.wav"]
    assert main(["apply", marks, "--move", str(out), "--yes"]) == 0  # nothing is left to do
    assert main(["apply", "--undo", str(out), "--yes"]) == 0
    assert files(loops / "loops") == before
    assert (loops / "loops" / "Drums" / "a.wav").read_bytes() == b"sound 2"


def test_copies_and_lists(loops, capsys):
    marks, out = str(loops / "marks.csv"), loops / "kept"
    assert main(["apply", marks, "--copy", str(out), "--mark", "keep", "--yes"]) == 0
    assert files(out) == ["b.wav"]
    assert len(files(loops / "loops")) == 4
    assert main(["apply", marks, "--copy", str(out), "--mark", "keep", "--yes"]) == 0
    capsys.readouterr()
    assert main(["apply", marks, "--list"]) == 0
    assert capsys.readouterr().out.splitlines()[0].endswith("loops/Bass/a.wav")


def test_a_collision_stops_everything(loops):
    (loops / "rejected" / "Drums").mkdir(parents=True)
    (loops / "rejected" / "Drums" / "a.wav").write_bytes(b"another")
    marks = read_marks(loops / "marks.csv")
    with pytest.raises(UserError, match="1 targets hold other files"):
        plan(marks, "reject", loops / "rejected", "move")
    assert len(files(loops / "loops")) == 4


def test_changed_and_missing_files_stay_alone(loops, capsys):
    (loops / "loops" / "Bass" / "a.wav").write_bytes(b"edited since")
    (loops / "loops" / "Drums" / "a.wav").unlink()
    out = loops / "rejected"
    assert main(["apply", str(loops / "marks.csv"), "--move", str(out), "--yes"]) == 3
    assert files(out) == ["Drums/=c,'d.wav"]
    assert "2 files are missing, or hold something else" in capsys.readouterr().err
    assert (loops / "loops" / "Bass" / "a.wav").read_bytes() == b"edited since"


@pytest.mark.parametrize("n_calls", range(6))
def test_a_killed_move_loses_nothing_and_is_continued(loops, monkeypatch, n_calls):
    marks, out = read_marks(loops / "marks.csv"), loops / "rejected"
    calls = iter(range(100))

    for name in ("hardlink_to", "unlink"):
        real = getattr(type(loops), name)

        def stop(self, *args, real=real, **kwargs):
            if self.suffix == ".wav" and next(calls) == n_calls:
                raise KeyboardInterrupt
            return real(self, *args, **kwargs)

        monkeypatch.setattr(type(loops), name, stop)
    with pytest.raises(KeyboardInterrupt):
        carry_out(plan(marks, "reject", out, "move"), out, "move")
    monkeypatch.undo()
    contents = {p.read_bytes() for p in loops.rglob("*.wav")}
    assert contents == {f"sound {i}".encode() for i in range(4)}
    carry_out(plan(marks, "reject", out, "move"), out, "move")
    assert files(loops / "loops") == ["Bass/b.wav"]
    assert len(files(out)) == 3
    carry_out(undo_plan(out), out, "move")
    assert len(files(loops / "loops")) == 4


def test_another_disk_gets_a_checked_copy(loops, monkeypatch):
    def no_links(self, target):
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(type(loops), "hardlink_to", no_links)
    marks, out = read_marks(loops / "marks.csv"), loops / "rejected"
    assert carry_out(plan(marks, "reject", out, "move"), out, "move") == 3
    assert len(files(out)) == 3
    back = undo_plan(out)
    monkeypatch.setattr(apply, "file_sha256", lambda path: os.urandom(4).hex())
    with pytest.raises(WriteError, match="both are left"):
        carry_out(back, out, "move")
    assert len(files(out)) == 3


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("id,mark\na,maybe\n", "marks.csv:2: mark is 'maybe'"),
        ("id,mark\na,keep\na,reject\n", "marks.csv:3: marked otherwise in line 2"),
        ("id,path\na,b\n", "marks need the columns 'mark'"),
        ("id,mark\na,\n", "no row is marked"),
        ("", "found none"),
    ],
)
def test_marks_are_read_strictly(tmp_path, text, sentence):
    (tmp_path / "marks.csv").write_text(text)
    with pytest.raises(UserError, match=sentence):
        read_marks(tmp_path / "marks.csv")


def test_a_mark_follows_its_content_when_the_file_moves(tmp_path):
    hashes = [f"{i}" * 64 for i in (1, 2, 2, 3)]
    table = loopjax.read_embeddings(write_store(tmp_path / "emb", np.eye(4), sha256=hashes)).table
    ids = table["id"].to_pylist()
    rows = [
        {"id": ids[1], "mark": "reject"},  # of two equal files, this one
        {"id": f"{'1' * 16}-feedbeef", "mark": "keep"},  # moved since
        {"id": f"{'3' * 16}-00000001", "mark": "keep"},
        {"id": f"{'3' * 16}-00000002", "mark": "reject"},  # two that disagree
    ]
    write_marks(tmp_path / "marks.csv", rows)
    marks = marks_of_rows(read_marks(tmp_path / "marks.csv"), table)
    assert marks.tolist() == ["keep", "reject", "", ""]


def test_a_store_knows_where_marked_files_lie_now(loops, capsys):
    folder = loops / "loops"
    (folder / "Bass" / "a.wav").rename(folder / "Bass" / "renamed.wav")
    (folder / "Drums" / "copy.wav").write_bytes(b"sound 2")
    now = {"Bass/renamed.wav": 0, "Bass/b.wav": 1, "Drums/a.wav": 2, "Drums/copy.wav": 2}
    paths = [str(folder / name) for name in now]
    hashes = [hashlib.sha256(f"sound {i}".encode()).hexdigest() for i in now.values()]
    store = str(write_store(loops / "emb", np.eye(4), path=paths, sha256=hashes))
    command = ["apply", str(loops / "marks.csv"), "--move", str(loops / "out"), "--store", store]
    assert main([*command, "--yes"]) == 0
    assert files(loops / "out") == ["Bass/renamed.wav", "Drums/=c,'d.wav", "Drums/a.wav"]
    assert files(folder) == ["Bass/b.wav", "Drums/copy.wav"]  # a copy that nobody marked stays
    np.save(loops / "x.npy", np.eye(4, dtype=np.float32))
    assert main([*command[:-1], str(loops / "x.npy")]) == 2
    assert "it knows no files" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["[" * 100_000, "{}", "[]", '{"from": 1, "to": 2}', "\xff"])
def test_a_damaged_journal_is_named(tmp_path, text):
    (tmp_path / JOURNAL).write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=f"{JOURNAL} cannot be read"):
        undo_plan(tmp_path)
