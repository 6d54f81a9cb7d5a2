"""Marks in a file that the page changes and the verbs `apply`, `fit --marks` and `rerank` read."""

import csv
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from loopjax.errors import UserError
from loopjax.library.marks import HASH_DIGITS, KEEP, REJECT, plain_text
from loopjax.store.scores import write_csv

COLUMNS = ("id", "path", "mark", "note")


@dataclass(frozen=True)
class Decision:
    """What is known of one sound.

    Attributes:
        id: of a row that holds it.
        path: of that row, for people.
        mark: "keep", "reject" or "".
        note: free text.
    """

    id: str
    path: str
    mark: str
    note: str


class MarksFile:
    """Decisions by the content of their files; what the file says of other loops stays."""

    def __init__(self, path: Path):
        """Reads the file, if it is there.

        Raises:
            UserError: it cannot be read, or holds another word.
        """
        self.path = path
        self._decisions: dict[str, Decision] = {}
        if not path.exists():
            return
        try:
            with path.open(encoding="utf-8-sig", newline="") as file:
                reader = csv.DictReader(file, strict=True)
                rows = list(reader)
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise UserError(f"{path} cannot be read as marks: {error}") from None
        if missing := {"id", "mark"} - set(reader.fieldnames or ()):
            raise UserError(f"{path} has no column {min(missing)!r}: name another file (--marks)")
        for number, row in enumerate(rows, 2):
            mark = (row["mark"] or "").strip().lower()
            if mark not in (KEEP, REJECT, ""):
                raise UserError(f"{path}:{number}: mark is {mark!r}; write keep, reject or nothing")
            note, name = plain_text(row.get("note") or ""), plain_text(row.get("path") or "")
            if mark or note:
                self._decisions[key_of(row["id"])] = Decision(row["id"], name, mark, note)

    def decide(self, decisions: Iterable[Decision]) -> None:
        """Takes decisions over and writes the file.

        Raises:
            WriteError: the file cannot be written.
        """
        for decision in decisions:
            self._decisions.pop(key_of(decision.id), None)
            if decision.mark or decision.note:
                self._decisions[key_of(decision.id)] = decision
        rows = self._decisions.values()
        columns = {name: [getattr(row, name) for row in rows] for name in COLUMNS}
        write_csv(pa.table(columns, schema=pa.schema((n, pa.string()) for n in COLUMNS)), self.path)

    def by_key(self) -> dict[str, dict[str, str]]:
        """Marks and notes as the page keeps them."""
        return {key: {"mark": d.mark, "note": d.note} for key, d in self._decisions.items()}


def key_of(row_id: str) -> str:
    """The hash of the content, with which ids of a store begin; other ids stay whole."""
    content, dash, _ = row_id.partition("-")
    is_hash = dash and len(content) == HASH_DIGITS and set(content) <= set("0123456789abcdef")
    return content if is_hash else row_id
