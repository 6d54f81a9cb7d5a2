"""A store that does not fit into memory, scored part by part.

Each part's scores are a file of their own as soon as they are there, so a killed run goes on, and
several processes that are given the same command share the parts. What needs all scores, such as
ranks, is computed at the end from the scores alone, some ten numbers per row for a moment.
"""

import contextlib
import hashlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from filelock import Timeout

from loopjax.errors import UserError, WriteError
from loopjax.evaluation.standing import Standing
from loopjax.io.locks import locked_file
from loopjax.io.remote import is_remote, remove_folder
from loopjax.model import Model, ScoredRows, rows_of
from loopjax.store.parquet import open_footer, open_parquet, read_parquet, write_parquet
from loopjax.store.schema import read_metadata, with_prefix
from loopjax.store.scores import (
    SCORED_COLUMNS,
    lacks_parts,
    require_scores_place,
    score_files,
    score_table,
    write_score_tables,
)
from loopjax.store.stream import StoredEmbeddings

PART_ROWS = 65_536
_SCORED = ["score", "is_cross_fitted"]  # columns of a part
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
        out: a file that ends in `.parquet`, or a folder for `part-*.parquet`, local or on another
            file system. Until it is there, a folder `NAME.parts` beside it holds what is finished.
        target_fpr: see `Model.score`.
        target_fdr: see `Model.score`.

    Raises:
        UserError: a damaged store, or something else lies at `out`.
        WriteError: a file could not be written; finished parts stay.
    """
    require_scores_place(out)
    config = (model_folder / "config.json").read_bytes()
    job = hashlib.sha256(config + stored.fingerprint().encode()).hexdigest()
    made_by = f"{job} {target_fpr} {target_fdr}"
    work = out.with_name(f"{out.name}.parts")
    parts = [work / f"part-{i:05d}.parquet" for i in range(-(-len(stored) // PART_ROWS))]
    if _is_of(out, made_by):
        return
    try:
        if not is_remote(work):
            work.mkdir(parents=True, exist_ok=True)
        _score_parts(model, stored, parts, job, lambda: _is_of(out, made_by))
        with locked_file(work / ".joining.lock"):
            if not _is_of(out, made_by):
                tables = _tables(model, parts, target_fpr, target_fdr)
                metadata = {**model.score_metadata(), _MADE_BY: made_by}
                write_score_tables(tables, len(parts), out, metadata)
        remove_folder(work)
    except OSError as error:
        if isinstance(error, FileNotFoundError) and _is_of(out, made_by):
            return  # another process has finished, and removed the parts
        raise WriteError(f"cannot write {out}: {error.strerror or error}") from None


def most_anomalous(out: Path, count: int) -> pa.Table:
    """The rows of the first `count` ranks, in their order."""
    found = [block.filter(pc.field("rank") <= count) for block in score_blocks(out)]
    return pa.concat_tables(found).sort_by("rank")


def score_blocks(out: Path) -> Iterator[pa.Table]:
    """All rows of scores, at most `PART_ROWS` in memory at a time."""
    for file in map(open_parquet, score_files(out)):
        yield from file.blocks(file.schema.names, PART_ROWS)


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
                with locked_file(part.with_suffix(".lock"), waits, takes_over=waits):
                    if not (_is_of(part, job) or all_done()):
                        own = np.arange(len(stored)) // PART_ROWS == i
                        _score_part(model, stored.only(own), part, job)
            except Timeout:
                continue


def _score_part(model: Model, stored: StoredEmbeddings, part: Path, job: str) -> None:
    scored = model.score_rows(rows_of(stored))
    table = stored.columns(SCORED_COLUMNS)
    for name, values in zip(_SCORED, (scored.scores, scored.is_cross_fitted), strict=True):
        table = table.append_column(name, pa.array(values))
    write_parquet(table.replace_schema_metadata(with_prefix({_MADE_BY: job})), part)


def _tables(
    model: Model, parts: Sequence[Path], target_fpr: float | None, target_fdr: float | None
) -> Iterator[pa.Table]:
    """The parts with what follows from all scores together."""
    found = [_scored_rows(model, read_parquet(part, _SCORED)) for part in parts]
    scores = np.concatenate([scored.scores for scored in found])
    p_values = np.concatenate([scored.p_values for scored in found])
    del found
    standing = Standing(scores, p_values)
    equals = []
    for part in parts:
        rows = read_parquet(part, ["id", "score"])
        equals.append(rows.filter(pa.array(standing.tied(np.asarray(rows["score"])))))
    tied = pa.concat_tables(equals)
    standing.order_equals(np.asarray(tied["score"]), tied["id"].to_pylist())
    for part in parts:
        rows = read_parquet(part)
        scored = _scored_rows(model, rows)
        columns = model.columns_of(rows["id"], scored, target_fpr, target_fdr, standing)
        yield score_table(rows, columns)


def _scored_rows(model: Model, table: pa.Table) -> ScoredRows:
    score, is_cross_fitted = (np.asarray(table[name]) for name in _SCORED)
    return model.with_p_values(score, is_cross_fitted)


def _is_of(path: Path, made_by: str) -> bool:
    """Whether scores are there, all of them, that were made in this way."""
    files = score_files(path)
    if not files:
        return False
    try:
        metadata = read_metadata(open_footer(files[0]).schema)
    except UserError:
        return False
    return metadata.get(_MADE_BY) == made_by and not lacks_parts(files, metadata)
