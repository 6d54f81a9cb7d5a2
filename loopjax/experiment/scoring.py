"""A store that does not fit into memory, scored part by part.

Each part's scores are a file of their own as soon as they are there, so a killed run goes on, and
several processes that are given the same command share the parts. What needs all scores, such as
ranks, is computed at the end from three columns of these files.
"""

import contextlib
import hashlib
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from filelock import FileLock, Timeout

from loopjax.errors import UserError, WriteError
from loopjax.io import write_folder
from loopjax.model import Model, rows_of
from loopjax.store.parquet import open_footer, read_parquet, write_parquet, write_parquet_tables
from loopjax.store.schema import read_metadata, with_prefix
from loopjax.store.scores import SCORED_COLUMNS, score_files, score_table
from loopjax.store.stream import StoredEmbeddings

PART_ROWS = 65_536
_MADE_BY = "made_by"  # key in the metadata of the files: hash of model, rows and options


@contextlib.contextmanager
def scores_of_store(
    model: Model,
    model_folder: Path,
    stored: StoredEmbeddings,
    out: Path | None = None,
    target_fpr: float | None = None,
    target_fdr: float | None = None,
) -> Iterator[Path]:
    """Where the scores of all rows are; without `out`, only while the context lasts.

    See `score_store`.
    """
    with tempfile.TemporaryDirectory() as temporary:
        place = out or Path(temporary) / "scores.parquet"
        score_store(model, model_folder, stored, place, target_fpr, target_fdr)
        yield place


def score_store(
    model: Model,
    model_folder: Path,
    stored: StoredEmbeddings,
    out: Path,
    target_fpr: float | None = None,
    target_fdr: float | None = None,
) -> None:
    """Scores all rows into a file or a folder, where they stand in the order of the store.

    Args:
        model: what scores.
        model_folder: where it is saved; its `config.json` tells parts of this model from others.
        stored: what is scored.
        out: a file that ends in `.parquet`, or a folder for `part-*.parquet`. Until it is there, a
            folder `NAME.parts` beside it holds what is finished.
        target_fpr: see `Model.score`.
        target_fdr: see `Model.score`.

    Raises:
        UserError: a damaged store, or something else lies at `out`.
        WriteError: a file could not be written; finished parts stay.
    """
    if out.is_dir() and any(not name.match("part-*.parquet") for name in out.iterdir()):
        raise UserError(f"{out} is a folder of other things; choose another -o")
    config = (model_folder / "config.json").read_bytes()
    job = hashlib.sha256(config + stored.fingerprint().encode()).hexdigest()
    made_by = f"{job} {target_fpr} {target_fdr}"
    work = out.with_name(f"{out.name}.parts")
    parts = [work / f"part-{i:05d}.parquet" for i in range(-(-len(stored) // PART_ROWS))]
    if _is_of(out, made_by):
        return
    try:
        work.mkdir(parents=True, exist_ok=True)
        _score_parts(model, stored, parts, job, lambda: _is_of(out, made_by))
        with FileLock(work / ".joining.lock"):
            if not _is_of(out, made_by):
                columns = _columns_of(model, parts, target_fpr, target_fdr)
                _join(parts, columns, out, {**model.score_metadata(), _MADE_BY: made_by})
        shutil.rmtree(work, ignore_errors=True)
    except OSError as error:
        if isinstance(error, FileNotFoundError) and _is_of(out, made_by):
            return  # another process has finished, and removed the parts
        raise WriteError(f"cannot write {out}: {error.strerror or error}") from None


def most_anomalous(out: Path, count: int) -> pa.Table:
    """The rows of the first `count` ranks, in their order."""
    found = [read_parquet(file).filter(pc.field("rank") <= count) for file in score_files(out)]
    return pa.concat_tables(found).sort_by("rank")


def _score_parts(
    model: Model,
    stored: StoredEmbeddings,
    parts: Sequence[Path],
    job: str,
    all_done: Callable[[], bool],
) -> None:
    """Scores the parts that are not there; first those that no other process is at."""
    for waits in (False, True):
        for i, part in enumerate(parts):
            if _is_of(part, job) or all_done():
                continue
            try:
                with FileLock(part.with_suffix(".lock"), blocking=waits):
                    if not _is_of(part, job):
                        own = np.arange(len(stored)) // PART_ROWS == i
                        _score_part(model, stored.only(own), part, job)
            except Timeout:
                continue


def _score_part(model: Model, stored: StoredEmbeddings, part: Path, job: str) -> None:
    scored = model.score_rows(rows_of(stored))
    table = stored.columns(SCORED_COLUMNS)
    table = table.append_column("score", pa.array(scored.scores))
    table = table.append_column("is_cross_fitted", pa.array(scored.is_cross_fitted))
    write_parquet(table.replace_schema_metadata(with_prefix({_MADE_BY: job})), part)


def _columns_of(
    model: Model, parts: Sequence[Path], target_fpr: float | None, target_fdr: float | None
) -> pa.Table:
    """What follows from all scores together, in the order of the parts."""
    names = ["id", "score", "is_cross_fitted"]
    found = pa.concat_tables(
        [read_parquet(part, names).replace_schema_metadata(None) for part in parts]
    )
    scored = model.with_p_values(np.asarray(found["score"]), np.asarray(found["is_cross_fitted"]))
    return model.columns_of(found["id"], scored, target_fpr, target_fdr)


def _join(parts: Sequence[Path], columns: pa.Table, out: Path, metadata: dict[str, str]) -> None:
    """Writes the parts with these columns as one file or as a folder."""

    def tables() -> Iterator[pa.Table]:
        start = 0
        for part in parts:
            rows = read_parquet(part)
            table = score_table(rows, columns.slice(start, len(rows)))
            start += len(rows)
            yield table.replace_schema_metadata(with_prefix(metadata))

    def write(folder: Path) -> None:
        for part, table in zip(parts, tables(), strict=True):
            write_parquet(table, folder / part.name)

    if out.suffix == ".parquet":
        write_parquet_tables(tables(), out)
    else:
        write_folder(out, write)


def _is_of(path: Path, made_by: str) -> bool:
    """Whether scores are there that were made in this way."""
    files = score_files(path)
    if not files:
        return False
    try:
        return read_metadata(open_footer(files[0]).schema).get(_MADE_BY) == made_by
    except UserError:
        return False
