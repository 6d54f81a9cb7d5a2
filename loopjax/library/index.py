"""An approximate index beside a store: nearly exact search without reading every row.

The index (HNSW, by the package usearch) lies in the folder `.index` of the store, in half
precision: 2 bytes per number and about 300 more per row, all of it in memory while it is built, and
mapped when it is searched. It knows rows by their ids. An update adds what is new and removes what
is gone; rows that only moved stay.
"""

import hashlib
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from loopjax.errors import UserError
from loopjax.io import write_folder, write_json
from loopjax.io.remote import is_remote, place_of
from loopjax.json_files import read_json
from loopjax.store.blocks import StoredRows, open_rows
from loopjax.store.parquet import open_footer
from loopjax.store.similar import MostSimilar, unit_rows

if TYPE_CHECKING:  # an optional package
    from usearch.index import Index

FOLDER = ".index"
FORMAT = "loopjax-index-1"
_VECTORS, _KEYS, _RECORD = "vectors.usearch", "keys.npy", "record.json"
CONNECTIVITY, EXPANSION_ADD, EXPANSION_SEARCH = 16, 128, 128
MOST_REMOVED = 0.2  # of an older index; with more holes it is built anew
N_MEASURED, K_MEASURED = 200, 10

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class IndexSummary:
    """What building or updating an index did.

    Attributes:
        n_rows: in the index now.
        n_added: of these, new.
        n_removed: rows that were in it and are gone.
        recall: fraction of the exact ten nearest rows that it finds, over a sample of rows.
    """

    n_rows: int
    n_added: int
    n_removed: int
    recall: float


@dataclass(frozen=True)
class StoreIndex:
    """An index that fits its store.

    Attributes:
        index: the graph.
        keys: uint64 [N], of every row in the order of the store.
    """

    index: "Index"
    keys: np.ndarray

    def search(
        self, queries: np.ndarray, k: int, own: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Nearly the k nearest rows, in the form of `MostSimilar.found`; cosines to about 1e-3.

        Args:
            queries: [Q, D].
            k: how many rows to find for each query.
            own: int [Q], the row that a query must not find; -1 for none.
        """
        n_rows = len(self.keys)
        order = np.argsort(self.keys)
        wanted = min(k + 1, n_rows)  # one may be the query itself
        matches = self.index.search(np.atleast_2d(unit_rows(queries)), wanted)
        found_keys = np.atleast_2d(matches.keys)
        places = np.searchsorted(self.keys, found_keys, sorter=order)
        found = order[np.minimum(places, n_rows - 1)]
        # Where fewer were found, the rest of a line holds no keys of rows.
        is_row = self.keys[found] == found_keys
        if own is not None:
            is_row &= found != np.asarray(own)[:, None]
        cosines = np.where(is_row, 1 - np.atleast_2d(matches.distances), -np.inf)
        best = np.argsort(-cosines, axis=1, kind="stable")[:, :k]
        cosines = np.take_along_axis(cosines, best, axis=1).astype(np.float32)
        found = np.where(np.isfinite(cosines), np.take_along_axis(found, best, axis=1), -1)
        short = ((0, 0), (0, k - found.shape[1]))
        return (
            np.pad(cosines, short, constant_values=-np.inf),
            np.pad(found.astype(np.int32), short, constant_values=-1),
        )


def build_index(store: str | Path, seed: int = 0) -> IndexSummary:
    """Builds the index of a store, or brings an older one up to date, and measures its recall.

    Args:
        store: folder of `loopjax embed` or of a run.
        seed: of the sample that the recall is measured on.

    Raises:
        UserError: no such store, no folder of shards, one elsewhere, or usearch is not installed.
        WriteError: the folder cannot be written.
    """
    rows = open_rows(store)
    if not rows.parts or is_remote(place_of(store)):
        raise UserError(f"{store} is no store of `loopjax embed` on this machine: nothing to index")
    indices = _package()
    folder = rows.parts[0].parent / FOLDER
    old = _read_record(folder)
    old_keys = _old_keys(folder, old) if old else np.zeros(0, np.uint64)
    old_parts = {}
    if old:
        pieces = np.split(old_keys, np.cumsum(old["rows"])[:-1])
        old_parts = dict(zip(old["parts"], pieces, strict=True))
    parts = _stamps(rows)
    per_part = [
        old_parts[stamp]
        if stamp in old_parts
        else _keys(open_footer(part).read(["id"])["id"].to_pylist())
        for part, stamp in zip(rows.parts, parts, strict=True)
    ]
    keys = np.concatenate(per_part)
    removed = np.setdiff1d(old_keys, keys)
    if old and len(removed) <= MOST_REMOVED * len(old_keys):
        index = _restored(indices, folder / _VECTORS, view=False)
        if len(removed):
            index.remove(removed)
    else:
        old_keys = np.zeros(0, np.uint64)
        index = indices.Index(
            ndim=rows.width,
            metric="cos",
            dtype="f16",
            connectivity=CONNECTIVITY,
            expansion_add=EXPANSION_ADD,
            expansion_search=EXPANSION_SEARCH,
        )
    is_new = ~np.isin(keys, old_keys)
    for block in rows.blocks():
        here = slice(block.start, block.start + len(block.matrix))
        if is_new[here].any():
            index.add(keys[here][is_new[here]], unit_rows(block.matrix[is_new[here]]))
    recall = _recall(StoreIndex(index, keys), rows, seed)

    def write(temporary: Path) -> None:
        index.save(str(temporary / _VECTORS))
        np.save(temporary / _KEYS, keys)
        counts = [len(part) for part in per_part]
        record = {"format": FORMAT, "parts": parts, "rows": counts, "recall": recall}
        write_json(temporary / _RECORD, record)

    write_folder(folder, write)
    return IndexSummary(len(keys), int(is_new.sum()), len(removed), recall)


def open_index(rows: StoredRows) -> StoreIndex | None:
    """The index of a store; None where there is none, or it does not fit the store any more."""
    folder = rows.parts[0].parent / FOLDER if rows.parts else None
    record = _read_record(folder) if folder else None
    if folder is None or record is None:
        return None
    if record["parts"] != _stamps(rows):
        log.warning(
            "the store has changed since it was indexed: every row is compared; `loopjax index` "
            "brings the index up to date"
        )
        return None
    index = _restored(_package(), folder / _VECTORS, view=True)
    return StoreIndex(index, _old_keys(folder, record))


def _package():
    try:
        from usearch import index
    except ImportError:
        raise UserError(
            "the index needs usearch: pip install 'loopjax[index]'; without it, `loopjax similar "
            "--exact` compares every row"
        ) from None
    return index


def _restored(package, file: Path, view: bool) -> "Index":
    try:
        index = package.Index.restore(str(file), view=view)
    except (RuntimeError, ValueError, OSError) as error:
        index, reason = None, str(error)
    else:
        reason = "no index"
    if index is None:
        raise UserError(f"{file} is damaged ({reason}): remove {file.parent} and index again")
    return index


def _stamps(rows: StoredRows) -> list[str]:
    """Name, size and time of every shard."""
    stats = [(part.name, part.stat()) for part in rows.parts]
    return [f"{name} {stat.st_size} {stat.st_mtime_ns}" for name, stat in stats]


def _read_record(folder: Path) -> dict | None:
    file = folder / _RECORD
    if not file.exists():
        return None
    try:
        record = read_json(file)
        parts, counts = record["parts"], record["rows"]
        if record["format"] != FORMAT or len(parts) != len(counts):
            raise ValueError("not of this version")
        if not all(isinstance(count, int) and count >= 0 for count in counts):
            raise ValueError("rows")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file} is damaged ({error}): remove {folder} and index again") from None
    return record


def _old_keys(folder: Path, record: dict) -> np.ndarray:
    """The keys that an index knows, in the order of the shards in its record."""
    try:
        keys = np.load(folder / _KEYS, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise UserError(f"{folder} is damaged ({error}): remove it and index again") from None
    if keys.shape != (sum(record["rows"]),) or keys.dtype != np.uint64:
        raise UserError(f"{folder} is damaged ({_KEYS}): remove it and index again")
    return keys


def _keys(ids: Iterable[str]) -> np.ndarray:
    """A number for every id: what the index knows a row by."""
    digests = (hashlib.blake2b(i.encode(), digest_size=8).digest() for i in ids)
    return np.frombuffer(b"".join(digests), "<u8").astype(np.uint64)


def _recall(index: StoreIndex, rows: StoredRows, seed: int) -> float:
    n = min(N_MEASURED, rows.n_rows)
    sample = np.sort(np.random.default_rng(seed).choice(rows.n_rows, n, replace=False))
    queries = rows.vectors(sample)
    exact = MostSimilar(queries, K_MEASURED, sample)
    for block in rows.blocks():
        exact.add(block.matrix)
    wanted, found = exact.found()[1], index.search(queries, K_MEASURED, sample)[1]
    is_row = wanted >= 0
    hits = (wanted[:, :, None] == found[:, None, :]).any(axis=2) & is_row
    return float(hits.sum() / max(1, is_row.sum()))
