"""Labels are read strictly, with file and line, and joined by path, never by base name."""

import unicodedata

import pytest

from loopjax.errors import UserError
from loopjax.experiment.labels import join_labels, read_labels, require_labeled, tell_unmatched

ROWS = [("corpus/bass/a.wav", "0"), ("corpus/Baß/a.wav", "1"), ("corpus/bass/b.wav", "")]
LOOPS = ["/tmp/x/corpus/bass/a.wav", "/tmp/x/corpus/Baß/a.wav", "/tmp/x/corpus/bass/b.wav"]
SOURCES = ["/tmp/x/corpus"]


def table(rows=ROWS, separator=",", end="\n") -> str:
    return end.join(separator.join(row) for row in [("file", "is_anomaly"), *rows]) + end


@pytest.fixture
def read(tmp_path):
    def read(content: str | bytes, log=None):
        path = tmp_path / "labels.csv"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return read_labels(path, [].append if log is None else log)

    return read


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (table().encode(), None),
        (table().encode("utf-8-sig"), None),
        (table().encode("utf-16"), "UTF-16"),
        (table().encode("utf-16-le"), "UTF-16"),
        (table().encode("latin-1"), "Latin-1"),
        (table(separator=";").encode(), None),
        (table(separator="\t").encode(), None),
        (table(end="\r\n").encode(), None),
        (table(end="\r").encode(), None),
        (table([(file.replace("/", "\\"), value) for file, value in ROWS]).encode(), None),
        (table([(unicodedata.normalize("NFD", f), v) for f, v in ROWS]).encode(), None),
        (table(ROWS[::-1]).encode(), None),
        (b"sep=;\n" + table(separator=";").encode(), None),
        (b"\n" + table().replace("file,is", "File, is").encode(), None),
        ('is_anomaly,note,file\n0,"a, b",corpus/bass/a.wav\n1,,corpus/Baß/a.wav\n'.encode(), None),
    ],
    ids=range(15),
)
def test_every_form_of_a_table_gives_the_same_labels(read, content, said):
    lines: list[str] = []
    joined = join_labels(read(content, lines.append), LOOPS, SOURCES)
    assert joined.values.tolist() == [0, 1, -1]
    assert joined.unmatched == ()
    assert [said] == [line.rsplit(" ", 1)[1] for line in lines] if said else not lines


@pytest.mark.parametrize(
    ("word", "value"),
    [
        *((word, 1) for word in ("1", "1.0", "YES", "True", " 1 ")),
        *((word, 0) for word in ("0", "0.0", "no", "FALSE")),
        *((word, -1) for word in ("", "  ")),
    ],
)
def test_words_for_a_label(read, word, value):
    assert read(table([("a.wav", word)])).rows[0].value == value


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (table([("a.wav", "0"), ("b.wav", "2")]), "labels.csv:3: is_anomaly is '2'; write 1 or 0"),
        (table([("a.wav", "anomalous")]), "labels.csv:2: is_anomaly is 'anomalous'"),
        (table([("a.wav", "nan")]), "labels.csv:2: is_anomaly is 'nan'"),
        (table([("a.wav", "0"), ("b.wav",)]), "labels.csv:3: the row has 1 cells"),
        (table([("", "0")]), "labels.csv:2: the cell 'file' is empty"),
        ("path,is_anomaly\na.wav,1\n", "labels.csv:1: labels need the columns 'file'"),
        (table([]), "no labels below the header"),
        ("", "no labels"),
        ('file,is_anomaly\n"a.wav,1\n', "cannot be read as a table"),
        (b"\xff\xfea", "neither UTF-8 nor UTF-16"),
    ],
)
def test_mistakes_name_the_file_and_the_line(read, content, message):
    with pytest.raises(UserError) as caught:
        read(content)
    assert message in str(caught.value)


@pytest.mark.parametrize("name", ["none.csv", ".", "/dev/zero"])
def test_what_is_no_file_is_refused(tmp_path, name):
    with pytest.raises(UserError, match="cannot read labels"):
        read_labels(tmp_path / name, print)


@pytest.mark.parametrize(
    ("written", "loops", "sources", "value"),
    [
        ("a.wav", ["/x/bass/a.wav"], [], 1),
        ("bass/a.wav", ["/x/bass/a.wav", "/x/odd/a.wav"], [], 1),
        ("./bass//a.wav", ["/x/bass/a.wav"], [], 1),
        ("/x/../x/bass/a.wav", ["/x/bass/a.wav"], [], 1),
        ("/old/corpus/bass/a.wav", ["/new/corpus/bass/a.wav"], ["/new/corpus"], 1),
        ("/old/corpus/bass/a.wav", ["corpus/bass/a.wav"], [], 1),
        ("bass_001.ogg", ["bundled:demo/bass_001.ogg"], ["bundled:demo"], 1),
        ("demo/bass_001.ogg", ["bundled:demo/bass_001.ogg"], ["bundled:demo"], -1),
        ("guitar/a.wav", ["/x/bass/a.wav"], ["/x"], -1),
        ("/other/bass/a.wav", ["/x/corpus/bass/a.wav"], ["/x/corpus"], -1),
        ("other/a.wav", ["a.wav"], [], -1),
        ("ass/a.wav", ["/x/bass/a.wav"], [], -1),
        ("A.wav", ["/x/bass/a.wav"], [], -1),
    ],
)
def test_a_row_belongs_to_the_loop_whose_path_it_ends(read, written, loops, sources, value):
    joined = join_labels(read(table([(written, "1")])), loops, sources)
    assert joined.values.tolist() == [value] + [-1] * (len(loops) - 1)


def test_a_name_that_fits_several_loops_is_refused_with_its_line(read):
    labels = read(table([("b.wav", "0"), ("a.wav", "1")]))
    with pytest.raises(UserError, match=r"labels.csv:3: 'a.wav' fits 2 loops equally well; write"):
        join_labels(labels, LOOPS, SOURCES)


def test_the_row_that_says_more_of_the_path_wins(read):
    labels = read(table([("corpus/bass/a.wav", "1"), ("other/corpus/bass/a.wav", "0")]))
    joined = join_labels(labels, ["other/corpus/bass/a.wav"])
    assert joined.values.tolist() == [0]
    assert [row.line for row in joined.unmatched] == [2]


def test_rows_that_disagree_are_refused(read):
    with pytest.raises(UserError, match=r"labels.csv:3: .* labeled otherwise in line 2"):
        join_labels(read(table([("bass/a.wav", "1"), ("bass\\a.wav", "0")])), LOOPS)


def test_rows_without_a_loop_are_counted_and_named(read):
    rows = [*ROWS, *((f"corpus/{i}.wav", "0") for i in range(5))]
    lines: list[str] = []
    labels = read(table(rows))
    tell_unmatched(labels, join_labels(labels, LOOPS, SOURCES), lines.append)
    (line,) = lines
    assert "5 of 8 label rows match no loop: corpus/0.wav, corpus/1.wav, corpus/2.wav ..." in line


def test_labels_of_other_loops_altogether_are_refused(read):
    labels = read(table([("a.wav", ""), ("other.wav", "1")]))
    with pytest.raises(UserError, match=r"none of the 2 loops is labeled; .*'other.wav' in line 3"):
        require_labeled(labels, join_labels(labels, ["x/a.wav", "x/b.wav"]))


@pytest.mark.parametrize(("value", "kind"), [("1", "anomalous"), ("0", "normal")])
def test_labels_of_one_kind_are_refused(read, value, kind):
    labels = read(table([("a.wav", ""), ("b.wav", value)]))
    with pytest.raises(UserError, match=f"all 1 labeled loops are {kind}, so nothing"):
        require_labeled(labels, join_labels(labels, ["x/a.wav", "x/b.wav"]))
