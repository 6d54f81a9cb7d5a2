"""Marks in a file that the page changes and the verbs `apply`, `fit --marks` and `rerank` read."""

import threading
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa

from loopjax.io.locks import locked_file
from loopjax.library.marks import Mark, content_of, read_own_marks
from loopjax.store.scores import write_csv

COLUMNS = ("id", "path", "mark", "note")


@dataclass(frozen=True)
class Change:
    """What the page decides.

    Attributes:
        row: of the loop on the page.
        mark: "keep", "reject" or "" for none; None: as it is.
        note: free text; None: as it is.
    """

    row: int
    mark: str | None
    note: str | None


class MarksFile:
    """Decisions on the loops of a page; others may write the same file meanwhile.

    The file is read again whenever it has changed, and what it says of other loops stays. Several
    servers read, change and write it one at a time: a hidden file beside it is their lock.
    """

    def __init__(self, path: Path, ids: Sequence[str], paths: Sequence[str]):
        """Reads the file, if it is there.

        Args:
            path: of the file.
            ids: of the loops on the page.
            paths: of their files, for people.

        Raises:
            UserError: it cannot be read, or holds what could not be written again.
        """
        self.path = path
        self._ids, self._paths = ids, paths
        self._row_of = {row_id: row for row, row_id in enumerate(ids)}
        self._alike: dict[str, list[int]] = defaultdict(list)
        for row, row_id in enumerate(ids):
            self._alike[content_of(row_id) or row_id].append(row)
        self._threads = threading.Lock()
        self._lock_file = path.with_name(f".{path.name}.lock")
        self._version: tuple[int, ...] | None = None
        self._marks: tuple[Mark, ...] = ()
        self._read()

    def decide(self, changes: Iterable[Change]) -> None:
        """Takes decisions over and writes the file.

        Raises:
            UserError: somebody has written what cannot be read as marks.
            WriteError: the file cannot be written.
        """
        with self._threads, locked_file(self._lock_file):
            self._read()
            decided = self._by_row()
            touched: set[int] = set()
            for change in changes:
                row = change.row
                touched.update(self._alike[content_of(self._ids[row]) or self._ids[row]])
                mark = decided.get(row) or self._new(row)
                decided[row] = replace(
                    mark,
                    mark=mark.mark if change.mark is None else change.mark,
                    note=mark.note if change.note is None else change.note,
                )
            # A mark of another file of the same content is from now on that of these rows.
            ids = {self._ids[row] for row in touched}
            contents = {content_of(row_id) for row_id in ids} - {""}
            marks = [m for m in self._marks if m.id not in ids and m.content not in contents]
            marks += [decided[row] for row in sorted(touched) if row in decided]
            marks = [mark for mark in marks if mark.mark or mark.note]
            columns = {name: [getattr(mark, name) for mark in marks] for name in COLUMNS}
            write_csv(pa.table(columns, pa.schema((n, pa.string()) for n in COLUMNS)), self.path)
            self._read()

    def by_row(self) -> dict[int, dict[str, str]]:
        """Marks and notes of the loops of the page.

        Raises:
            UserError: as `decide`.
        """
        with self._threads:
            self._read()
            return {row: {"mark": m.mark, "note": m.note} for row, m in self._by_row().items()}

    def _read(self) -> None:
        try:
            found = self.path.stat()
            version = (found.st_mtime_ns, found.st_size, found.st_ino)
        except (FileNotFoundError, NotADirectoryError):
            self._version, self._marks = None, ()
            return
        if version != self._version:
            self._marks = read_own_marks(self.path, COLUMNS)
            self._version = version

    def _by_row(self) -> dict[int, Mark]:
        """A mark belongs to the row of its id, and without that to all rows of its content.

        Where marks of the same content disagree, nobody knows which is meant, and they wait.
        """
        found: dict[int, Mark] = {}
        strays: dict[str, list[Mark]] = defaultdict(list)
        for mark in self._marks:
            if mark.id in self._row_of:
                found[self._row_of[mark.id]] = mark
            else:
                strays[mark.content].append(mark)
        for content, marks in strays.items():
            if content and len({mark.mark for mark in marks}) == 1:
                for row in self._alike.get(content, ()):
                    known = replace(self._new(row), mark=marks[0].mark, note=marks[0].note)
                    found.setdefault(row, known)
        return found

    def _new(self, row: int) -> Mark:
        row_id = self._ids[row]
        return Mark("", row_id, content_of(row_id), self._paths[row], None, "", 0)
