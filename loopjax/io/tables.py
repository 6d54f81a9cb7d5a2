"""Tables as people and spreadsheets write them: CSV in some encoding, with some separator."""

import csv
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from loopjax.errors import UserError

SEPARATORS = ",;\t"


@dataclass(frozen=True)
class TextTable:
    """A header and the rows below it; blank rows are left out.

    Attributes:
        header: names of the columns, in lower case.
        line: of the header, from 1.
        rows: line and cells of each row, as many cells as the row has.
    """

    header: list[str]
    line: int
    rows: list[tuple[int, list[str]]]


def read_table(
    path: Path, what: str, max_bytes: int, log: Callable[[str], None] = lambda line: None
) -> TextTable:
    """Reads a table: UTF-8 with or without a mark, UTF-16 or Latin-1; commas, semicolons or tabs.

    Args:
        path: of the file.
        what: is in it, for messages: "labels".
        max_bytes: a larger file holds something else.
        log: is told when the file is not UTF-8.

    Raises:
        UserError: unreadable, no table, or nothing in it; names the line.
    """
    lines = list(io.StringIO(_decoded(path, what, max_bytes, log), newline=None))
    if lines and lines[0].lower().startswith("sep="):  # a spreadsheet's note to itself
        lines[0] = ""
    start = next((i for i, line in enumerate(lines) if line.strip()), None)
    if start is None:
        return TextTable([], 1, [])
    separator = max(SEPARATORS, key=lines[start].count)
    reader = csv.reader(lines[start:], delimiter=separator, strict=True)
    try:
        header = [name.strip().lower() for name in next(reader)]
        rows = [(start + reader.line_num, cells) for cells in reader]
    except csv.Error as error:
        line = start + reader.line_num
        raise UserError(f"{path}:{line}: cannot be read as a table: {error}") from None
    return TextTable(header, start + 1, [row for row in rows if any(c.strip() for c in row[1])])


def _decoded(path: Path, what: str, max_bytes: int, log: Callable[[str], None]) -> str:
    try:
        with path.open("rb") as file:  # of a pipe, nobody knows the size before
            content = file.read(max_bytes + 1)
    except (OSError, ValueError) as error:
        raise UserError(
            f"cannot read {what} {path}: {getattr(error, 'strerror', None) or error}"
        ) from None
    if len(content) > max_bytes:
        raise UserError(f"{path}: larger than {max_bytes >> 20} MiB; these are no {what}")
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        encoding, name = "utf-16", "UTF-16"
    elif b"\0" in content[:4]:  # UTF-16 of plain letters without its mark
        encoding, name = ("utf-16-be" if content[:1] == b"\0" else "utf-16-le"), "UTF-16"
    else:
        try:
            return content.decode("utf-8-sig")
        except UnicodeDecodeError:
            encoding, name = "latin-1", "Latin-1"
    log(f"{path}: read as {name}")
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: neither UTF-8 nor {name} ({error.reason})") from None
