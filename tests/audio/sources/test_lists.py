"""Lists as people and programs write them: every line is a row, a named failure or an error."""

import os
import unicodedata

import pytest

from loopjax.audio.loop import Failure, Loop
from loopjax.audio.sources.files import Files, scan
from loopjax.errors import UserError
from tests.audio_files import write_tone

pytestmark = pytest.mark.cases

NAMES = ("a.wav", "b c.wav", "d.WAV", "#1 bass.wav", "trail .wav", "Übung é.wav")


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "loops").mkdir()
    for i, name in enumerate(NAMES):
        write_tone(tmp_path / "loops" / "x.wav", 0.01, seed=i).rename(tmp_path / "loops" / name)
    return tmp_path


def rows(folder, raw: bytes, name: str = "list.txt"):
    (folder / name).write_bytes(raw)
    found = list(scan([folder / name]))
    assert len(found) == len(Files([folder / name]))
    return found


def names(found) -> list[str]:
    found = list(found)
    assert all(isinstance(row, Loop) for row in found)
    return [os.path.basename(row.path) for row in found]  # noqa: PTH119


THREE = ("a.wav", "b c.wav", "d.WAV")
PLAIN = "\n".join(f"loops/{name}" for name in THREE)
WRITTEN = {
    "plain": PLAIN.encode(),
    "CRLF": PLAIN.replace("\n", "\r\n").encode(),
    "CR only": PLAIN.replace("\n", "\r").encode() + b"\r",
    "NUL as `find -print0` writes": PLAIN.replace("\n", "\0").encode() + b"\0",
    "UTF-8 with mark": PLAIN.encode("utf-8-sig"),
    "UTF-16 little": b"\xff\xfe" + PLAIN.encode("utf-16-le"),
    "UTF-16 big": b"\xfe\xff" + PLAIN.encode("utf-16-be"),
    "UTF-16 without mark": PLAIN.encode("utf-16-le"),
    "UTF-32": b"\xff\xfe\0\0" + PLAIN.encode("utf-32-le"),
    "trailing blanks": PLAIN.replace("\n", "  \t\n").encode() + b"   ",
    "leading blanks": b"  " + PLAIN.encode(),
    "quoted": "\n".join(f'"loops/{name}"' for name in THREE).encode(),
    "single quotes": "\n".join(f"'loops/{name}'" for name in THREE).encode(),
    "backslashes": PLAIN.replace("/", "\\").encode(),
    "comments and blank lines": f"# my loops\n\n{PLAIN}\n#loops/gone.wav\n".encode(),
    "repeated": f"{PLAIN}\n./{PLAIN}".encode(),
}


@pytest.mark.parametrize("kind", WRITTEN)
def test_every_way_of_writing_names_the_same_files(folder, kind):
    assert names(rows(folder, WRITTEN[kind])) == list(THREE)


def test_a_name_that_exists_is_taken_as_it_stands(folder):
    found = rows(folder, b"loops/#1 bass.wav\nloops/trail .wav\n")
    assert names(found) == ["#1 bass.wav", "trail .wav"]
    (folder / "loops" / "list.txt").write_bytes(b"#1 bass.wav\n# a comment\n")
    assert names(scan([folder / "loops" / "list.txt"])) == ["#1 bass.wav"]


def test_file_addresses(folder):
    lines = [(folder / "loops" / name).as_uri() for name in NAMES]
    assert any("%20" in line for line in lines)
    assert names(rows(folder, "\n".join(lines).encode())) == list(NAMES)


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_accents_in_either_form(folder, form):
    line = unicodedata.normalize(form, "loops/Übung é.wav")
    (row,) = rows(folder, line.encode())
    assert isinstance(row, Loop)


@pytest.mark.parametrize("name", ["list.m3u", "list.m3u8"])
def test_playlists(folder, name):
    text = b"#EXTM3U\n#EXTINF:1,bass\nloops/a.wav\n#EXTINF:2,x\nloops/b c.wav\n"
    assert names(rows(folder, text, name)) == ["a.wav", "b c.wav"]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("list.csv", "file\nloops/a.wav\nloops/b c.wav\n"),
        ("list.csv", 'n;Path\n1;"loops/a.wav"\n2;loops/b c.wav\n'),
        ("list.tsv", "filename\tbpm\nloops/a.wav\t120\nloops/b c.wav\t90\n"),
    ],
)
def test_tables(folder, name, text):
    assert names(rows(folder, text.encode(), name)) == ["a.wav", "b c.wav"]


def test_tables_without_a_column_of_paths(folder):
    with pytest.raises(UserError, match=r"list\.csv:1: no column of paths .* among bpm, key"):
        rows(folder, b"bpm,key\n120,A\n", "list.csv")
    with pytest.raises(UserError, match=r"list\.csv:3: has no column 'file'"):
        rows(folder, b"bpm,file\n120,loops/a.wav\n90\n", "list.csv")


def test_lines_that_name_nothing_are_rows(folder):
    found = rows(folder, b"loops/gone.wav\nloops/a.wav\nhttps://x.org/a.wav\nloops/a\0.wav\n")
    reasons = [getattr(row, "reason", "") for row in found]
    assert reasons == [
        "not_found",
        "",
        "bad_path",
        "bad_path",
    ]
    assert isinstance(found[3], Failure)
    assert "list.txt:4: holds a NUL byte" in found[3].message
    assert len({row.key for row in found}) == 4


def test_broken_text_names_the_line(folder):
    with pytest.raises(UserError, match=r"list\.txt:2: is not valid UTF-16"):
        rows(folder, b"\xff\xfe" + "a.wav\n".encode("utf-16-le") + b"\x00\xd8\x00")


def test_an_empty_list_has_no_rows(folder):
    assert rows(folder, b"") == []


def test_nothing_is_named_twice(folder):
    loops = folder / "loops"
    (folder / "list.txt").write_bytes(b"loops/a.wav\n")
    for sources in (
        [loops / "a.wav", loops / "a.wav"],
        [loops / "a.wav", folder / "loops" / ".." / "loops" / "a.wav"],
        [folder / "list.txt", loops / "a.wav"],
    ):
        assert names(scan(sources)) == ["a.wav"]
        assert len(Files(sources)) == 1
    assert len(list(scan([loops, loops, loops / "a.wav", folder / "list.txt"]))) == len(NAMES)
