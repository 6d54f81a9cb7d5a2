"""Carrying out decisions: marked files are moved or copied, never deleted or overwritten.

Everything is checked before the first file moves. A journal in the target folder names every file
before it is touched, so that an interrupted run can be continued or taken back.
"""

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from loopjax.errors import UserError, WriteError
from loopjax.io import file_sha256, locked, write_atomically, write_text
from loopjax.json_files import parse_json
from loopjax.library.marks import Mark

JOURNAL = "loopjax-moved.jsonl"
NAMED = 3  # examples in a message

Kind = Literal["move", "copy"]
State = Literal["ready", "done", "missing", "changed"]


@dataclass(frozen=True)
class Step:
    """One file.

    Attributes:
        source: where it lies.
        target: where it shall lie.
        state: "ready"; "done" by an earlier run; "missing"; "changed": another content than the
            one that was marked.
    """

    source: Path
    target: Path
    state: State


def plan(marks: tuple[Mark, ...], mark: str, out: str | Path, kind: Kind) -> tuple[Step, ...]:
    """What would be done to the files with one mark; touches nothing.

    Files keep their folders below the one that all marked files share.

    Args:
        marks: all marks.
        mark: "keep" or "reject".
        out: the target folder.
        kind: "move" or "copy".

    Raises:
        UserError: no such mark, marks without paths, or a target that holds another file.
    """
    chosen = {}
    for found in marks:
        if found.mark == mark:
            if not found.path and found.path_bytes is None:
                raise UserError(f"the mark in line {found.line} has no path: no file to {kind}")
            place = os.fsdecode(found.path_bytes) if found.path_bytes else found.path
            chosen[Path(os.path.abspath(place))] = found.content  # noqa: PTH100 - keeps links
    if not chosen:
        raise UserError(f"no loop is marked {mark!r}")
    common = Path(os.path.commonpath([source.parent for source in chosen]))
    out = Path(out).absolute()
    steps = []
    for source, content in sorted(chosen.items()):
        target = out / source.relative_to(common)
        steps.append(Step(source, target, _state(source, target, content, kind)))
    collisions = [step for step in steps if step.state == "ready" and _is_taken(step)]
    if collisions:
        names = ", ".join(str(step.target) for step in collisions[:NAMED])
        raise UserError(
            f"{len(collisions)} targets hold other files already ({names}): choose another folder"
        )
    return tuple(steps)


def carry_out(steps: tuple[Step, ...], out: str | Path, kind: Kind) -> int:
    """Moves or copies what is ready; returns the number of files.

    A file has its new name before it loses the old one. The same plan again continues after a kill.

    Raises:
        UserError: a target appeared meanwhile, or another run uses the folder.
        WriteError: a file cannot be written or moved; those before it are done.
    """
    out = Path(out)
    ready = [step for step in steps if step.state == "ready"]
    with locked(out):
        if kind == "move":
            _note(out / JOURNAL, ready)
        for step in ready:
            _place(step, kind)
    return len(ready)


def undo_plan(folder: str | Path) -> tuple[Step, ...]:
    """The way back of all files that were moved into a folder.

    Raises:
        UserError: nothing was moved there, or a file's old place is taken.
    """
    steps = []
    for source, target in _read_journal(Path(folder) / JOURNAL).items():
        is_there = os.path.lexists(target)
        step = Step(target, source, "ready" if is_there else "missing")
        if not is_there and os.path.lexists(source):
            step = Step(target, source, "done")
        elif is_there and _is_taken(step):
            raise UserError(f"{source} is taken: {target} cannot be moved back there")
        steps.append(step)
    if not steps:
        raise UserError(f"{folder}: no files were moved there by `loopjax apply`")
    return tuple(steps)


def _state(source: Path, target: Path, content: str, kind: Kind) -> State:
    if not source.is_file():
        return "done" if target.is_file() and _is(target, content) else "missing"
    if not _is(source, content):
        return "changed"
    if kind == "copy" and target.is_file() and file_sha256(target) == file_sha256(source):
        return "done"
    return "ready"


def _is_taken(step: Step) -> bool:
    """Whether another file has the target's name; a killed move leaves one file with two names."""
    return os.path.lexists(step.target) and not (
        step.target.exists() and step.target.samefile(step.source)
    )


def _is(path: Path, content: str) -> bool:
    return not content or file_sha256(path).startswith(content)


def _place(step: Step, kind: Kind) -> None:
    source, target = step.source, step.target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if _is_taken(step):
            raise UserError(f"{target} appeared meanwhile; nothing was overwritten")
        if kind == "copy":
            write_atomically(target, lambda temporary: shutil.copy2(source, temporary))
            return
        if not target.exists():
            _give_name(source, target)
        source.unlink()
    except OSError as error:
        raise WriteError(f"cannot {kind} {source} to {target}: {error.strerror or error}") from None


def _give_name(source: Path, target: Path) -> None:
    """A second name for a file, or a copy on another disk; never in place of another file."""
    try:
        target.hardlink_to(source)
    except FileExistsError:
        raise UserError(f"{target} appeared meanwhile; nothing was overwritten") from None
    except OSError:  # another disk, or a file system without links
        write_atomically(target, lambda temporary: shutil.copy2(source, temporary))
        if file_sha256(target) != file_sha256(source):
            raise WriteError(f"{target} is not what {source} is; both are left") from None


def _note(journal: Path, steps: list[Step]) -> None:
    known = _read_journal(journal) if journal.exists() else {}
    known |= {step.source: step.target for step in steps}
    lines = [json.dumps({"from": str(a), "to": str(b)}) + "\n" for a, b in known.items()]
    write_text(journal, "".join(lines))


def _read_journal(journal: Path) -> dict[Path, Path]:
    try:
        rows = [parse_json(line) for line in journal.read_text(encoding="utf-8").splitlines()]
        return {Path(row["from"]): Path(row["to"]) for row in rows}
    except FileNotFoundError:
        raise UserError(f"{journal}: not there, so nothing was moved into this folder") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{journal} cannot be read: {error}") from None
