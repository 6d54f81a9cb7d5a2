"""Labels and marks come from spreadsheets of all kinds."""

import pytest

from loopjax.errors import UserError
from loopjax.experiment.labels import read_labels
from loopjax.io.tables import read_table
from loopjax.library.marks import read_marks

CONTENT = 'mark,id,path,note\nreject,a-1,Büro/a.wav,"zu laut, kurz"\n\nkeep,b-2,b.wav,\n'
ENCODINGS = ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "latin-1"]


@pytest.mark.parametrize("separator", [",", ";", "\t"], ids=["comma", "semicolon", "tab"])
@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("end", ["\n", "\r\n"], ids=["unix", "windows"])
def test_marks_in_every_form(separator, encoding, end, tmp_path):
    rows = [
        ["mark", "id", "path", "note"],
        ["reject", "a-1", "Büro/a.wav", "zu laut"],
        ["keep", "b-2", "b.wav", ""],
    ]
    text = end.join(separator.join(row) for row in rows) + end
    (tmp_path / "marks.csv").write_bytes(text.encode(encoding))
    first, second = read_marks(tmp_path / "marks.csv")
    assert (first.mark, first.id, first.path, first.note) == (
        "reject",
        "a-1",
        "Büro/a.wav",
        "zu laut",
    )
    assert (second.mark, second.line) == ("keep", 3)


def test_quotes_blank_rows_and_the_note_of_a_spreadsheet(tmp_path):
    path = tmp_path / "marks.csv"
    path.write_text(f"sep=,\n{CONTENT}")
    assert [mark.note for mark in read_marks(path)] == ["zu laut, kurz", ""]
    table = read_table(path, "marks", 1000)
    assert (table.line, [line for line, _ in table.rows]) == (2, [3, 5])


def test_no_table_at_all(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text('mark,id\n"reject,a\n')
    with pytest.raises(UserError, match=r"x.csv:2: cannot be read as a table"):
        read_marks(path)
    path.write_text("")
    with pytest.raises(UserError, match=r"marks need the columns 'mark'.*found none"):
        read_marks(path)
    path.write_bytes(b"\xff\xfe" + "mark;id\n".encode("utf-16-le") + b"x")
    with pytest.raises(UserError, match="neither UTF-8 nor UTF-16"):
        read_marks(path)


def test_labels_are_read_by_the_same_reader(tmp_path):
    path = tmp_path / "labels.csv"
    path.write_bytes("file;is_anomaly\r\nBüro.wav;1\r\n".encode("utf-16"))
    (row,) = read_labels(path, lambda line: None).rows
    assert (row.path, row.value, row.line) == ("Büro.wav", 1, 2)
