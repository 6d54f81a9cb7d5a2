"""Labels of loops: a CSV file read strictly, and joined to loops by path, never by base name."""

import os
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from loopjax.bundled import DATA
from loopjax.config import DataConfig
from loopjax.errors import UserError
from loopjax.io.tables import read_table

BUNDLED_LABELS = DATA / "demo" / "labels.csv"

UNKNOWN = -1
WORDS = {
    **dict.fromkeys(("1", "1.0", "yes", "true"), 1),
    **dict.fromkeys(("0", "0.0", "no", "false"), 0),
    "": UNKNOWN,
}
MAX_BYTES = 1 << 30
NAMED = 3  # examples in a message; the count says how many there are

Log = Callable[[str], None]
Parts = tuple[str, ...]


@dataclass(frozen=True)
class Label:
    """One row of a label file.

    Attributes:
        path: of the loop, as written.
        value: 1 anomalous, 0 normal, -1 unknown.
        line: where it stands.
    """

    path: str
    value: int
    line: int


@dataclass(frozen=True)
class LabelFile:
    """All rows of a label file."""

    path: Path
    rows: tuple[Label, ...]


@dataclass(frozen=True)
class JoinedLabels:
    """Labels beside loops.

    Attributes:
        values: int [N], 1 anomalous, 0 normal, -1 unknown.
        unmatched: rows of the file that belong to none of the loops.
    """

    values: np.ndarray
    unmatched: tuple[Label, ...]


def label_path(data: DataConfig) -> Path | None:
    """The label file of an experiment; the bundled loops bring their own."""
    if data.labels is not None:
        return Path(data.labels)
    return BUNDLED_LABELS if "bundled:demo" in data.sources else None


def read_labels(path: Path, log: Log) -> LabelFile:
    """Reads a CSV with the columns `file` and `is_anomaly`.

    UTF-8, with or without a byte order mark, UTF-16 or Latin-1; separated by commas, semicolons or
    tabs. `is_anomaly` is 0, 1, no, yes, false, true, or blank where it is not known.

    Args:
        path: of the file.
        log: is told when the file is not UTF-8.

    Raises:
        UserError: unreadable, a column is missing, or another word; names the line.
    """
    if os.path.exists(path) and not os.path.isfile(path):  # noqa: PTH110, PTH113 - never raise
        raise UserError(f"cannot read labels {path}: not a file")
    table = read_table(path, "labels", MAX_BYTES, log)
    header = table.header
    if not header:
        raise UserError(f"{path}: no labels; it needs the columns 'file' and 'is_anomaly'")
    if not {"file", "is_anomaly"} <= set(header):
        raise UserError(
            f"{path}:{table.line}: labels need the columns 'file' and 'is_anomaly'; "
            f"found {', '.join(map(repr, header[:8]))}"
        )
    at_file, at_value = header.index("file"), header.index("is_anomaly")
    rows = [_row(cells, at_file, at_value, f"{path}:{n}", n) for n, cells in table.rows]
    if not rows:
        raise UserError(f"{path}: no labels below the header")
    return LabelFile(path, tuple(rows))


def join_labels(
    labels: LabelFile, paths: Sequence[str], sources: Sequence[str] = ()
) -> JoinedLabels:
    """Gives each loop the label whose path agrees with its own, from the right, the farthest.

    A row belongs to a loop if all of the row's path ends the loop's (so a bare name does, where
    only one loop is called so), or if the row's path ends with all of the loop's, as shown or from
    its source folder on. Backslashes count as slashes, and Unicode's composed and decomposed forms
    are equal.

    Args:
        labels: from `read_labels`.
        paths: [N], as shown to people.
        sources: the folders that the loops come from, as given.

    Raises:
        UserError: a row fits several loops equally well, or rows for one loop disagree.
    """
    loops = [_parts(path) for path in paths]
    roots = [_parts(source) for source in sources]
    by_name: dict[str, list[int]] = defaultdict(list)
    for i, parts in enumerate(loops):
        if parts:
            by_name[parts[-1]].append(i)
    best: dict[int, tuple[int, Label]] = {}
    unmatched: list[Label] = []
    ambiguous: list[tuple[Label, int]] = []
    for row in labels.rows:
        written = _parts(row.path)
        agreed = {
            i: length
            for i in by_name.get(written[-1] if written else "", ())
            if (length := _agreement(written, loops[i], roots))
        }
        longest = max(agreed.values(), default=0)
        found = [i for i, length in agreed.items() if length == longest]
        if not found:
            unmatched.append(row)
        elif len(found) > 1 and row.value != UNKNOWN:
            ambiguous.append((row, len(found)))
        elif len(found) == 1:
            _keep(best, found[0], longest, row, unmatched, labels.path)
    if ambiguous:
        row, n_loops = ambiguous[0]
        raise UserError(
            f"{labels.path}:{row.line}: {row.path!r} fits {n_loops} loops equally well"
            f"{_and_others(len(ambiguous) - 1)}; write more of the path"
        )
    values = np.full(len(paths), UNKNOWN)
    for i, (_, row) in best.items():
        values[i] = row.value
    return JoinedLabels(values, tuple(unmatched))


def require_labeled(labels: LabelFile, joined: JoinedLabels) -> None:
    """Refuses labels that nothing can be measured with: none, or all of one kind.

    Raises:
        UserError: names an example.
    """
    if not (joined.values != UNKNOWN).any():
        example = next((row for row in labels.rows if row.value != UNKNOWN), labels.rows[0])
        raise UserError(
            f"{labels.path}: none of the {len(joined.values)} loops is labeled; check column "
            f"'file', which says {example.path!r} in line {example.line}"
        )
    kinds = set(joined.values[joined.values != UNKNOWN].tolist())
    if len(kinds) == 1:
        n_labeled, kind = (
            int((joined.values != UNKNOWN).sum()),
            ("normal", "anomalous")[kinds.pop()],
        )
        raise UserError(
            f"{labels.path}: all {n_labeled} labeled loops are {kind}, so nothing can be measured; "
            "label some of the other kind, or leave out data.labels"
        )


def tell_unmatched(labels: LabelFile, joined: JoinedLabels, log: Log) -> None:
    """Logs how many rows of the file belong to no loop, with examples.

    Raises:
        UserError: see `require_labeled`.
    """
    n = len(joined.unmatched)
    if n:
        named = ", ".join(row.path for row in joined.unmatched[:NAMED])
        more = " ..." if n > NAMED else ""
        log(f"{labels.path}: {n} of {len(labels.rows)} label rows match no loop: {named}{more}")
    require_labeled(labels, joined)


def _row(cells: Sequence[str], at_file: int, at_value: int, where: str, line: int) -> Label:
    if len(cells) <= max(at_file, at_value):
        raise UserError(f"{where}: the row has {len(cells)} cells, fewer than the header")
    file, word = cells[at_file].strip(), cells[at_value].strip()
    if not file:
        raise UserError(f"{where}: the cell 'file' is empty")
    if word.lower() not in WORDS:
        raise UserError(
            f"{where}: is_anomaly is {word!r}; write 1 or 0, yes or no, true or false, or nothing"
        )
    return Label(file, WORDS[word.lower()], line)


def _parts(path: str) -> Parts:
    """Names along a path, from the last `.` or `..` on; one Unicode form, one kind of slash."""
    names = unicodedata.normalize("NFC", path).replace("\\", "/").split("/")
    kept: list[str] = []
    for name in names:
        if name == "..":
            kept = kept[:-1]
        elif name not in ("", "."):
            kept.append(name)
    return tuple(kept)


def _agreement(written: Parts, shown: Parts, roots: Sequence[Parts]) -> int:
    """How many names agree from the right; 0 where neither path contains all of the other."""
    length = 0
    for ours, theirs in zip(reversed(written), reversed(shown), strict=False):
        if ours != theirs:
            break
        length += 1
    depths = [len(shown)]  # names in the loop's path, as shown or from its source folder on
    depths += [len(shown) - len(root) + 1 for root in roots if shown[: len(root)] == root]
    contains = length == len(written) or any(length >= depth > 1 for depth in depths)
    return length if contains else 0


def _keep(
    best: dict[int, tuple[int, Label]],
    loop: int,
    length: int,
    row: Label,
    unmatched: list[Label],
    file: Path,
) -> None:
    """Lets the row that agrees farther have the loop; equal ones must say the same."""
    if loop not in best:
        best[loop] = (length, row)
        return
    other_length, other = best[loop]
    if length == other_length:
        if row.value != other.value:
            raise UserError(
                f"{file}:{row.line}: {row.path!r} is labeled otherwise in line {other.line}"
            )
        return
    unmatched.append(row if length < other_length else other)
    if length > other_length:
        best[loop] = (length, row)


def _and_others(n: int) -> str:
    return f", and so do {n} more rows" if n else ""
