"""Lists of audio files as people and programs write them: one path per line, or a CSV column.

Plain text in any encoding with or without a byte order mark, with line ends of any system or the
NUL of `find -print0`; M3U playlists; CSV with a column of paths. A line may be quoted, a `file://`
address, end in blanks or have backslashes. What is really on disk decides: the first reading of a
line that names something that exists is taken, so a name that begins with `#` or ends in a blank is
found as it stands.
"""

# Names that are not UTF-8 must stay bytes, which pathlib does not hold.
# ruff: noqa: PTH118, PTH120, PTH122, PTH123
import csv
import io
import os
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import unquote_to_bytes

from loopjax.audio.loop import display
from loopjax.errors import UserError

TABLES = {b".csv": None, b".tsv": "\t"}  # separator; None to find out
LIST_EXTENSIONS = frozenset([b".txt", b".lst", b".m3u", b".m3u8", *TABLES])
PATH_COLUMNS = ("file", "path", "filename", "file_name", "location", "audio")
MARKS = (  # byte order marks; UTF-32's begins with UTF-16's
    (b"\xff\xfe\0\0", "utf-32-le"),
    (b"\0\0\xfe\xff", "utf-32-be"),
    (b"\xff\xfe", "utf-16-le"),
    (b"\xfe\xff", "utf-16-be"),
    (b"\xef\xbb\xbf", "utf-8"),
)
MAX_LIST_BYTES = 1 << 30


@dataclass(frozen=True)
class Line:
    """One entry: the path to open, or why there is none."""

    number: int
    path: bytes
    problem: str = ""


def read_list(given: bytes) -> Iterator[Line]:
    """Yields the entries, relative paths joined to the list's folder.

    Raises:
        UserError: the list cannot be read, is text in no encoding, or a table without a column of
            paths; names the file and the line.
    """
    base, extension = os.path.dirname(given), os.path.splitext(given)[1].lower()
    try:
        with open(given, "rb") as file:
            raw = file.read(MAX_LIST_BYTES + 1)
    except OSError as error:
        raise UserError(f"cannot read the list {display(given)}: {error.strerror}") from None
    if len(raw) > MAX_LIST_BYTES:
        raise UserError(f"{display(given)} is too long for a list of files")
    lines = _as_utf8(raw, display(given))
    if extension in TABLES:
        entries = _column(lines, TABLES[extension], display(given))
    else:
        ends = rb"\r\n|\n|\r" if re.search(rb"[\r\n]", lines) else rb"\0"  # `find -print0`
        entries = enumerate(re.split(ends, lines), start=1)
    for number, text in entries:
        if not text.strip():
            continue
        path = _find(text, base)
        if path is not None:
            yield Line(number, path)
        elif not text.lstrip().startswith(b"#"):  # no such file: a comment
            yield _missing(number, text, base)


def _as_utf8(raw: bytes, name: str) -> bytes:
    """The text as UTF-8; bytes without a mark stay as they are, as names on disk do."""
    encoding = next((encoding for mark, encoding in MARKS if raw.startswith(mark)), "")
    if not encoding and len(raw) > 3 and raw[:4].count(0) == 2:  # UTF-16 without its mark
        encoding = "utf-16-le" if raw[1] == 0 == raw[3] else "utf-16-be"
    if not encoding or encoding == "utf-8":
        return raw.removeprefix(b"\xef\xbb\xbf")
    try:
        return raw.decode(encoding).lstrip("\ufeff").encode("utf-8")
    except UnicodeError as error:
        start = getattr(error, "start", 0)
        line = raw[:start].decode(encoding, "replace").count("\n") + 1
        raise UserError(f"{name}:{line}: is not valid {encoding.upper()}") from None


def _column(raw: bytes, separator: str | None, name: str) -> Iterator[tuple[int, bytes]]:
    text = raw.decode("utf-8", "surrogateescape")
    first = text.splitlines()[0] if text else ""
    if separator is None:
        separator = max(",;\t", key=first.count)
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=separator)
    try:
        header = [title.strip().lower() for title in next(rows, [])]
        column = next((header.index(title) for title in PATH_COLUMNS if title in header), None)
        if column is None:
            raise UserError(
                f"{name}:1: no column of paths ({', '.join(PATH_COLUMNS)}) among "
                f"{', '.join(filter(None, header)) or 'nothing'}"
            )
        for row in rows:
            if column < len(row):
                yield rows.line_num, row[column].encode("utf-8", "surrogateescape")
            elif any(row):
                raise UserError(f"{name}:{rows.line_num}: has no column {header[column]!r}")
    except csv.Error as error:
        raise UserError(f"{name}:{rows.line_num}: {error}") from None


def _readings(text: bytes) -> Iterator[bytes]:
    """What a line may mean, the most literal first."""
    stripped = text.strip()
    bare = stripped
    if len(bare) > 1 and bare[:1] == bare[-1:] and bare[:1] in (b'"', b"'"):
        bare = bare[1:-1]
    if bare[:7].lower() == b"file://":
        host, slash, path = bare[7:].partition(b"/")
        bare = unquote_to_bytes(slash + path) if host.lower() in (b"", b"localhost") else bare
    literal = (text, stripped, bare, bare.replace(b"\\", b"/"))
    yield from dict.fromkeys(literal)
    for form in ("NFC", "NFD"):  # macOS and archives write accents in either form
        for reading in dict.fromkeys(literal):
            yield unicodedata.normalize(form, reading.decode("utf-8", "surrogateescape")).encode(
                "utf-8", "surrogateescape"
            )


def _find(text: bytes, base: bytes) -> bytes | None:
    for reading in _readings(text):
        path = os.path.join(base, reading)
        if reading and b"\0" not in reading and os.path.lexists(path):
            return path
    return None


def _missing(number: int, text: bytes, base: bytes) -> Line:
    *_, plain = list(dict.fromkeys(_readings(text)))[:3]
    path = os.path.join(base, plain)
    if b"\0" in text:
        return Line(number, path.replace(b"\0", b""), "holds a NUL byte, which no path can")
    if re.match(rb"[a-zA-Z][a-zA-Z0-9+.-]+://", plain):
        return Line(number, plain, "is an address; download it and list the file")
    return Line(number, path)
