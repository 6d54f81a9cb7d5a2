"""Decisions on loops, keyed by their content: kept, rejected, and why."""

import os
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from loopjax.errors import UserError
from loopjax.io.tables import TextTable, read_table
from loopjax.store.blocks import open_rows
from loopjax.store.parquet import open_parquet
from loopjax.store.scores import FORMULA

KEEP, REJECT = "keep", "reject"
WORDS = {KEEP: KEEP, "kept": KEEP, REJECT: REJECT, "rejected": REJECT, "": ""}
HASH_DIGITS = 16  # of the content's SHA-256, with which the id of a row begins
MAX_BYTES = 1 << 28


@dataclass(frozen=True)
class Mark:
    """One decision.

    Attributes:
        mark: "keep" or "reject".
        id: of the row in its store, or "".
        content: first 16 hex digits of the file's SHA-256, or "".
        path: of the file, for people.
        path_bytes: the exact path, where the marks know it.
        note: free text.
        line: where it stands, for messages.
    """

    mark: str
    id: str
    content: str
    path: str
    path_bytes: bytes | None
    note: str
    line: int


def read_marks(path: str | Path) -> tuple[Mark, ...]:
    """Reads the marks that a report exported or `dedup` wrote, as CSV or Parquet.

    Columns `mark` (keep, reject or blank), `id` or `sha256`, and optionally `path` and `note`; in
    whatever encoding and with whatever separator a spreadsheet saved them, see `read_table`.
    Rows without a mark are left out.

    Raises:
        UserError: unreadable, a column is missing, another word, or two marks for one loop.
    """
    path = Path(path)
    is_parquet = path.suffix.lower() == ".parquet"
    rows = _parquet_rows(path) if is_parquet else _csv_rows(_marks_table(path), path)
    marks = tuple(mark for mark in _marks_of(rows, path) if mark.mark)
    if not marks:
        raise UserError(f"{path}: no row is marked")
    return marks


def read_own_marks(path: Path, columns: tuple[str, ...]) -> tuple[Mark, ...]:
    """Reads a CSV file of marks to write it again: rows with a note alone count too.

    Args:
        path: of the file.
        columns: that can be written again.

    Raises:
        UserError: as `read_marks`, or there are further columns, which would be lost.
    """
    table = _marks_table(path)
    marks = _marks_of(_csv_rows(table, path), path)
    if others := [name for name in table.header if name not in columns]:
        raise UserError(
            f"{path} has the column {others[0]!r}, which would be lost when marks are written: "
            "name another file and import this one on the page"
        )
    return tuple(mark for mark in marks if mark.mark or mark.note)


def content_of(row_id: str) -> str:
    """The hash of the content, with which ids of a store begin; "" of other ids."""
    content, dash, _ = row_id.partition("-")
    is_hash = dash and len(content) == HASH_DIGITS and set(content) <= set("0123456789abcdef")
    return content if is_hash else ""


def _marks_of(rows: list[tuple[int, dict]], path: Path) -> list[Mark]:
    marks: list[Mark] = []
    seen: dict[tuple[str, str], Mark] = {}
    for line, row in rows:
        word = str(row.get("mark") or "").strip().lower()
        if word not in WORDS:
            raise UserError(f"{path}:{line}: mark is {word!r}; write keep, reject or nothing")
        row_id, sha256 = str(row.get("id") or ""), str(row.get("sha256") or "").lower()
        found = Mark(
            mark=WORDS[word],
            id=row_id,
            content=sha256[:HASH_DIGITS] or content_of(row_id),
            path=plain_text(str(row.get("path") or "")),
            path_bytes=row.get("path_bytes") or None,
            note=plain_text(str(row.get("note") or "")),
            line=line,
        )
        key = (found.id or found.content, found.path)
        if not found.mark:
            marks.append(found)
        elif key in seen and seen[key].mark != found.mark:
            raise UserError(f"{path}:{line}: marked otherwise in line {seen[key].line}")
        elif key not in seen:
            seen[key] = found
            marks.append(found)
    return marks


def marks_of_rows(marks: tuple[Mark, ...], table: pa.Table) -> np.ndarray:
    """The mark of every row of a store, "" for none; text [N].

    A mark belongs to the row of its id. If that row is gone, since the file was moved or renamed,
    the mark belongs to all rows of the same content, where marks agree on it.
    """
    ids = table["id"].to_pylist()
    of_id = {mark.id: mark.mark for mark in marks if mark.id}
    known = set(ids)
    strays = [mark for mark in marks if mark.id not in known and mark.content]
    of_content: dict[str, set[str]] = {}
    for mark in strays:
        of_content.setdefault(mark.content, set()).add(mark.mark)
    hashes = table["sha256"].to_pylist() if "sha256" in table.column_names else [None] * len(ids)
    found = []
    for row_id, sha256 in zip(ids, hashes, strict=True):
        content = (sha256 or "")[:HASH_DIGITS] or content_of(row_id)
        agreed = of_content.get(content, set())
        stray = next(iter(agreed)) if len(agreed) == 1 else ""
        found.append(of_id.get(row_id, stray))
    return np.array(found, "U6")


def found_again(marks: tuple[Mark, ...], store: str | Path) -> tuple[Mark, ...]:
    """The marks, with new places for files that were moved or renamed since.

    A store that was brought up to date (`loopjax embed`) knows where a content lies now. Where it
    lies in several places, nobody knows which is meant, and the mark stays as it is.

    Raises:
        UserError: no such store.
    """
    rows = open_rows(store)
    names = ("sha256", "path", "path_bytes")
    if missing := [name for name in names if name not in rows.columns]:
        raise UserError(f"{store} has no column {missing[0]!r}: it knows no files")
    table = rows.table(names)
    taken = {_place(mark) for mark in marks}
    places: dict[str, list[dict]] = {}
    for row in table.to_pylist():
        if row["path_bytes"] not in taken and os.path.isfile(row["path_bytes"]):  # noqa: PTH113
            places.setdefault(row["sha256"][:HASH_DIGITS], []).append(row)
    found = []
    for mark in marks:
        now = places.get(mark.content, [])
        if len(now) == 1 and not os.path.isfile(_place(mark)):  # noqa: PTH113 - bytes
            mark = replace(mark, path=now[0]["path"], path_bytes=now[0]["path_bytes"])
        found.append(mark)
    return tuple(found)


def _place(mark: Mark) -> bytes:
    """Where a mark says that its file lies."""
    return mark.path_bytes or os.fsencode(os.path.abspath(mark.path))  # noqa: PTH100 - keeps links


def count_marks(marks: tuple[Mark, ...]) -> str:
    """How many of each, for messages."""
    counts = Counter(mark.mark for mark in marks)
    return ", ".join(f"{counts[name]} {name}" for name in (KEEP, REJECT) if counts[name])


def plain_text(text: str) -> str:
    """Text without the apostrophe that keeps spreadsheets from computing it."""
    return text[1:] if text[:1] == "'" and text[1:].startswith(FORMULA) else text


def _marks_table(path: Path) -> TextTable:
    return read_table(path, "marks", MAX_BYTES)


def _csv_rows(table: TextTable, path: Path) -> list[tuple[int, dict]]:
    _require_columns(path, table.header)
    return [(line, dict(zip(table.header, cells, strict=False))) for line, cells in table.rows]


def _parquet_rows(path: Path) -> list[tuple[int, dict]]:
    table = open_parquet(path, repair="write the marks again").read()
    _require_columns(path, table.column_names)
    names = ("mark", "id", "sha256", "path", "path_bytes", "note")
    kept = table.select([name for name in names if name in table.column_names])
    return list(enumerate(kept.to_pylist(), 1))


def _require_columns(path: Path, names: list[str]) -> None:
    if "mark" not in names or not {"id", "sha256", "path"} & set(names):
        raise UserError(
            f"{path}: marks need the columns 'mark' and 'id' (or 'sha256', or 'path'); "
            f"found {', '.join(map(repr, names[:8])) or 'none'}"
        )
