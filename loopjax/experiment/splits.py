"""Which loops fit the detectors, and the folds in which they are scored without having been seen.

Equal and nearly equal loops are never parted: a copy on the other side of a split would look known.
"""

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from loopjax.config import SplitConfig
from loopjax.detectors.rows import SCORED_ROWS, RowBlocks, iter_blocks, take_rows
from loopjax.errors import UserError
from loopjax.evaluation.folds import (
    SAMPLE,
    center_of,
    copy_groups,
    fit_folds,
    fold_numbers,
    like_groups,
    linked_groups,
    near_duplicates,
)
from loopjax.evaluation.folds_blocks import near_duplicates_in_blocks
from loopjax.evaluation.splits import MIN_TRAIN
from loopjax.model import rows_of
from loopjax.store.read import Embeddings
from loopjax.store.stream import StoredEmbeddings


@dataclass(frozen=True)
class Split:
    """How the loops of an experiment are divided.

    Attributes:
        train: bool [N], the loops that the final detectors are fitted on.
        folds: int [N], the fold in which each is scored by detectors that saw no loop of it.
        held_out: bool [N], loops taken as normal that fit nothing at all.
        n_moved: loops that changed sides so as not to be parted from their like.
        n_alike: loops that have their like in the corpus.
        cosine: from which loops count as alike: that of the settings; where chains of like loops
            would hold more than a fold, a stricter one, or, where all loops point the same way,
            that of their differences from the mean loop.
    """

    train: np.ndarray
    folds: np.ndarray
    held_out: np.ndarray
    n_moved: int
    n_alike: int
    cosine: float


def split_rows(
    embeddings: Embeddings | StoredEmbeddings, split: SplitConfig, labels: np.ndarray | None = None
) -> Split:
    """Divides loops into those that fit and those that are held out, and all of them into folds.

    Of more loops than `max_rows`, so many are drawn and divided; the rest neither fits nor counts
    as normal.

    The side of a loop follows from its id (or folder) alone, so it survives additions to the
    corpus, unless one of its like comes first. Loops flagged as silence never fit: a corpus with
    many broken files would call them normal.

    Args:
        embeddings: the loops.
        split: the settings.
        labels: int [N], 1 anomaly, 0 normal, -1 unknown; with `train_on: normal`, anomalies never
            fit and are never taken as normal.

    Raises:
        UserError: `train_on: normal` without labels, too few loops to fit, or nearly all alike.
    """
    if split.train_on == "normal" and labels is None:
        raise UserError("split.train_on: normal needs labels; give data.labels")
    n = len(embeddings)
    if n <= split.max_rows:
        return _split(embeddings, split, labels)
    drawn = np.zeros(n, bool)
    rng = np.random.default_rng([split.seed, 7])
    drawn[rng.choice(n, split.max_rows, replace=False)] = True
    own = _split(embeddings.only(drawn), split, None if labels is None else labels[drawn])
    train, held_out, folds = np.zeros(n, bool), np.zeros(n, bool), np.zeros(n, int)
    train[drawn], held_out[drawn], folds[drawn] = own.train, own.held_out, own.folds
    return replace(own, train=train, held_out=held_out, folds=folds)


def _split(
    embeddings: Embeddings | StoredEmbeddings, split: SplitConfig, labels: np.ndarray | None
) -> Split:
    alike, cosine = _alike(embeddings, split)
    table = embeddings.columns(["id", "group", "flags"])
    ids = _Texts(table["id"])
    by_folder = split.by == "group" and "group" in table.column_names
    folders = _codes(table.select(["group"])) if by_folder else []
    groups = linked_groups(len(ids), np.column_stack([np.arange(len(ids)), alike]), folders)
    own = _Texts(table["group"]) if by_folder else ids
    fraction = split.train_fraction
    drawn = np.fromiter((_uniform(f"{split.seed}:{key}") < fraction for key in own), bool, len(own))
    fits = drawn[groups]
    usable = audible(table)
    if split.train_on == "normal" and labels is not None:
        usable &= labels != 1
    train = fits & usable
    if train.sum() < MIN_TRAIN:
        raise UserError(
            f"{int(train.sum())} of {len(train)} embeddings are left for training and at least "
            f"{MIN_TRAIN} are needed; embed more loops or raise split.train_fraction"
        )
    _, sizes = np.unique(alike, return_counts=True)
    return Split(
        train=train,
        folds=fold_numbers(groups, ids, min(split.folds, int(train.sum())), split.seed, train),
        held_out=~fits & usable,
        n_moved=int((fits != drawn).sum()),
        n_alike=int(sizes[sizes > 1].sum()),
        cosine=cosine,
    )


def audible(table: pa.Table) -> np.ndarray:
    """Which rows are not flagged as silence, bool [N]."""
    if "flags" not in table.column_names:
        return np.ones(len(table), bool)
    found = ("silence" not in (flags or ()) for flags in _values(table["flags"]))
    return np.fromiter(found, bool, len(table))


def _alike(
    embeddings: Embeddings | StoredEmbeddings, split: SplitConfig
) -> tuple[np.ndarray, float]:
    """Groups of loops that are alike, int [N], and the cosine that makes them so."""
    n, content = len(embeddings), _codes(embeddings.columns(["sha256"]))
    rows, cosine, folds = rows_of(embeddings), split.near_duplicate_cosine, split.folds
    pairs_at = partial(_near_duplicates, rows)
    groups, stricter = like_groups(pairs_at, n, cosine, folds, content)
    if fit_folds(groups, folds):
        return groups, stricter
    # Far from zero all point the same way: what counts is how loops differ from the mean one.
    if isinstance(rows, np.ndarray):
        return copy_groups(rows, folds, cosine, content)
    sample = take_rows(rows, np.arange(0, n, -(-n // SAMPLE)))
    centered = replace(rows, origin=center_of(sample))
    return like_groups(partial(_near_duplicates, centered), n, cosine, folds, content)


def _near_duplicates(rows: np.ndarray | RowBlocks, cosine: float) -> np.ndarray:
    """Pairs of rows that are alike, int [P, 2], or pairs that link the same rows."""
    if isinstance(rows, np.ndarray):
        return near_duplicates(rows, cosine)
    passes, take = partial(iter_blocks, rows, SCORED_ROWS), partial(take_rows, rows)
    return near_duplicates_in_blocks(passes, take, rows.n_rows, cosine)


def _codes(table: pa.Table) -> list[np.ndarray]:
    """Per column of texts a number for every text, int [N]; -1 where it is missing or empty."""
    found = []
    for column in table.columns:
        chunks = column.dictionary_encode().chunks  # of one dictionary; long texts are not copied
        codes = np.concatenate([np.asarray(pc.fill_null(c.indices, -1), np.int64) for c in chunks])
        empty = chunks[0].dictionary.index("").as_py()
        found.append(np.where(codes == empty, -1, codes))
    return found


class _Texts(Sequence[str]):
    """A column of texts, missing ones empty, of which few exist as Python's at a time."""

    def __init__(self, column: pa.ChunkedArray):
        self._column = column.combine_chunks()

    def __len__(self) -> int:
        return len(self._column)

    def __getitem__(self, number: Any) -> Any:
        return self._column[int(number)].as_py() or ""

    def __iter__(self) -> Iterator[str]:
        return (value or "" for value in _values(self._column))


def _values(column: pa.Array | pa.ChunkedArray) -> Iterator[Any]:
    """The values of a column; at most `SCORED_ROWS` exist as Python's at a time."""
    for start in range(0, len(column), SCORED_ROWS):
        yield from column.slice(start, SCORED_ROWS).to_pylist()


def _uniform(text: str) -> float:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / math.pow(2, 64)
