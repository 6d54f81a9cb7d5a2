"""files.txt: what loopjax wrote into a run folder, so that a restart deletes that and nothing else.

One pattern a line, relative to the folder. A finished step has listed its files by name; while a
step is at work, the names that it may leave behind stand there as patterns.
"""

import contextlib
import fnmatch
import glob
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from loopjax.errors import HeldError, UserError, WriteError
from loopjax.io import write_text

MANIFEST = "files.txt"
RECORD = "run.json"

STORE = ("part-*.parquet", "failures*.parquet", "store.json", ".*")
# Step of a run -> the files that it may write.
STEPS = {
    "embed": (*(f"embeddings/{name}" for name in STORE), "embeddings.damaged/*"),
    "fit": ("models/*/seed-*/*", "metrics.jsonl", "tb/*", "wandb/*"),
    "score": ("scores.parquet", "scores.csv"),
    "evaluate": (
        *("evaluation.json", "robustness.json", "robustness/*.npy", "figures/*.svg"),
        *(f"compare/*/{name}" for name in STORE),
        *("compare/*.damaged/*", "protocols-*.jsonl"),
    ),
    "report": ("report/index.html", "report/index_files/*", "reasons.json"),
}
# What stands in for other settings than those of run.json is of no use to anybody.
RESULTS = (
    *STEPS["score"],
    *("evaluation.json", "robustness.json", "figures/*.svg"),
    *STEPS["report"],
)
_LOCKS = (".loopjax.*",)


@contextlib.contextmanager
def step(run: Path, name: str) -> Iterator[None]:
    """Lists what a step writes: its patterns while it works, its files once it is done.

    Raises:
        WriteError: the list cannot be written.
    """
    listed = _listed(run)
    _write(run, listed | set(STEPS[name]))
    yield
    mine = [file for file in _files(run) if _matches(file, STEPS[name])]
    _write(run, (listed - set(STEPS[name])) | {glob.escape(file) for file in mine})


@contextlib.contextmanager
def gone_if_refused(run: Path) -> Iterator[None]:
    """A run folder that is begun here and refused before it holds anything is gone afterwards."""
    existed, had_record = run.exists(), (run / RECORD).exists()
    try:
        yield
    except HeldError:
        raise
    except UserError:
        if not had_record and all(_matches(f, (RECORD, MANIFEST, *_LOCKS)) for f in _files(run)):
            for name in (RECORD, MANIFEST):
                (run / name).unlink(missing_ok=True)
            if not existed:
                shutil.rmtree(run, ignore_errors=True)
        raise


def discard(run: Path) -> None:
    """Deletes what loopjax wrote into a run folder.

    Raises:
        UserError: the folder holds something else as well; nothing has been deleted then.
        WriteError: something cannot be deleted.
    """
    # A run of before there was a list may have left anything that a run writes.
    has_list = (run / MANIFEST).is_file()
    patterns = _listed(run) if has_list else {p for names in STEPS.values() for p in names}
    # Cut off in between, the folder can be discarded again.
    discard_files(run, (*patterns, RECORD, MANIFEST), last=(RECORD, MANIFEST))


def discard_files(folder: Path, patterns: tuple[str, ...], last: tuple[str, ...] = ()) -> None:
    """Deletes all files of a folder, if each is one that loopjax writes; locks stay.

    Args:
        folder: may be missing.
        patterns: of what loopjax writes there, relative to it.
        last: patterns of those that go when all others have gone.

    Raises:
        UserError: the folder holds something else as well; nothing has been deleted then.
        WriteError: something cannot be deleted.
    """
    files = [file for file in _files(folder) if not _matches(file, _LOCKS)]
    foreign = [file for file in files if not _matches(file, patterns)]
    if foreign:
        named = ", ".join(foreign[:3]) + (" ..." if len(foreign) > 3 else "")
        raise UserError(
            f"{folder} holds {len(foreign)} files that no run has written ({named}); "
            "move them away, or choose another -o"
        )
    try:
        for file in sorted(files, key=lambda file: (_matches(file, last), file)):
            (folder / file).unlink()
            _remove_empty(folder, (folder / file).parent)
    except OSError as error:
        raise WriteError(f"cannot clear {folder}: {error.strerror or error}") from None


def discard_results(run: Path) -> None:
    """Deletes scores, tables, figures and the page; embeddings, models and caches stay.

    Raises:
        WriteError: something cannot be deleted.
    """
    mine = tuple(_listed(run))
    try:
        for file in _files(run):
            if _matches(file, RESULTS) and _matches(file, mine):
                (run / file).unlink()
    except OSError as error:
        raise WriteError(f"cannot clear {run}: {error.strerror or error}") from None


def _remove_empty(run: Path, folder: Path) -> None:
    while folder != run and not any(folder.iterdir()):
        folder.rmdir()
        folder = folder.parent


def _listed(run: Path) -> set[str]:
    try:
        return set((run / MANIFEST).read_text(encoding="utf-8").splitlines())
    except (OSError, UnicodeDecodeError):
        return set()


def _write(run: Path, patterns: set[str]) -> None:
    write_text(run / MANIFEST, "".join(f"{pattern}\n" for pattern in sorted(patterns)))


def _files(run: Path) -> list[str]:
    """Everything that is no folder, relative; links are not followed."""
    found = []
    for place, folders, files in os.walk(run):
        links = [name for name in folders if (Path(place) / name).is_symlink()]
        found += [(Path(place) / name).relative_to(run).as_posix() for name in (*files, *links)]
    return found


def _matches(file: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch.fnmatchcase(file, pattern) for pattern in patterns)
