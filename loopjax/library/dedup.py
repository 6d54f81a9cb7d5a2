"""Which loops of a store are the same recording, and which copy to keep."""

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from scipy import stats

from loopjax.config.library import DedupConfig
from loopjax.errors import UserError
from loopjax.evaluation.folds import linked_groups
from loopjax.library.likeness import SAME, hear_pairs
from loopjax.library.neighbors import Neighbors, nearest_neighbors
from loopjax.store.blocks import open_rows
from loopjax.store.columns import repeated_values

N_NEIGHBORS = 8
FEW_PAIRS = 500  # a small store hears so many, whatever its embeddings say: seconds
FEW_ROWS, FEW_ROWS_COSINE = 20, 0.999  # too few rows to choose from
NORMAL = 1.4826  # standard deviation over median deviation of a normal distribution
LEAST_COSINE = 0.9  # below, no two loops are copies
MAX_COSINE = 1 - 1e-6  # beyond, float32 tells nothing apart
AS_LONG = 0.95  # of the longest copy's duration: counts as equally long
COLUMNS = (
    *("id", "path", "duration_s", "sample_rate_hz", "channels", "subtype", "size_bytes"),
    *("group", "sha256", "path_bytes"),
)
# Bits per sample of libsndfile's formats that lose nothing more; all others are lossy.
BITS = {
    **{"DOUBLE": 64, "FLOAT": 32, "PCM_32": 32, "ALAC_32": 32, "PCM_24": 24, "ALAC_24": 24},
    **{"ALAC_20": 20, "PCM_16": 16, "ALAC_16": 16, "PCM_S8": 8, "PCM_U8": 8},
}

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Duplicates:
    """Sets of loops that are one recording.

    Attributes:
        table: a row per loop that has a copy: set (its number), mark ("keep" for one of each set,
            "reject" for the others), evidence ("content": a file with equal bytes; "sound": heard;
            "cosine": embeddings alone), cosine and correlation of the closest other loop of the
            set where known, then the columns of the store.
        n_sets: how many sets.
        cosine: unheard pairs from this cosine on are copies.
        n_heard: pairs that were compared by listening.
    """

    table: pa.Table
    n_sets: int
    cosine: float
    n_heard: int


def dedup(
    store: str | Path, cosine: float | None = None, max_heard: int = DedupConfig.max_heard
) -> Duplicates:
    """Finds exact and near-duplicates, also across formats, gain, shifts and resampling.

    Equal bytes are copies. Every other loop and its nearest neighbors are decoded and compared (see
    `loopjax.library.likeness`), the most similar pairs first. Pairs beyond `max_heard`, or whose
    files are gone, are copies if their cosine alone says so.

    Args:
        store: folder of `loopjax embed` or of a run, or a file of embeddings.
        cosine: from which on unheard pairs are copies; default: chosen from the distribution of
            the store's nearest neighbors.
        max_heard: pairs to compare by listening; 0: none.

    Raises:
        UserError: no such store, a loop that is in it twice, or an option out of range.
    """
    if cosine is not None and not -1 <= cosine <= 1:
        raise UserError(f"cosine {cosine}: expected between -1 and 1")
    if max_heard < 0:
        raise UserError(f"{max_heard} pairs to hear: expected at least 0")
    rows = open_rows(store)
    table = rows.table([name for name in COLUMNS if name in rows.columns])
    if repeated := repeated_values(table["id"]):
        raise UserError(f"{store} holds loop {repeated[0]} more than once: remove a shard")
    contents = _texts(table, "sha256") or [""] * len(table)
    first = np.arange(len(table)) == linked_groups(len(table), np.empty((0, 2)), [contents])
    n_first = int(first.sum())
    n_near = max(N_NEIGHBORS, 2 * FEW_PAIRS // max(1, n_first))
    near = nearest_neighbors(rows.matrices(first), min(n_near, max(1, n_first - 1)))
    threshold = copy_cosine(near.cosines[:, :N_NEIGHBORS]) if cosine is None else cosine
    pairs, cosines = _pairs(near, threshold, max_heard)
    pairs = np.flatnonzero(first)[pairs]
    files = table["path_bytes"].to_pylist() if "path_bytes" in table.schema.names else None
    heard = _hear(files, pairs, cosines, max_heard)
    is_copy = np.where(np.isnan(heard), cosines >= threshold, heard >= SAME)
    sets = linked_groups(len(table), pairs[is_copy], [contents])
    found = _table(table, sets, contents, pairs[is_copy], cosines[is_copy], heard[is_copy])
    return Duplicates(
        table=found,
        n_sets=len(set(found["set"].to_pylist())),
        cosine=threshold,
        n_heard=int(np.isfinite(heard).sum()),
    )


def copy_cosine(nearest: np.ndarray) -> float:
    """From which cosine on two loops of a store are copies, as far as embeddings can tell.

    Few loops have as many copies as neighbors are looked at, so the last of these shows how alike
    different loops of this store are. Copies lie four deviations above its median, and three times
    as far as second neighbors usually do: of different loops, about one in a hundred gets there by
    chance. Medians do not mind that some loops have more copies. Cosines are compared on the scale
    of Fisher's transform, on which those near 1 do not crowd.

    Args:
        nearest: [N, k] falling cosines of every loop and its neighbors.
    """
    nearest = nearest[np.isfinite(nearest).all(axis=1)].astype(np.float64)
    if len(nearest) < FEW_ROWS:
        return FEW_ROWS_COSINE
    spread = np.arctanh(np.clip(nearest, -MAX_COSINE, MAX_COSINE))
    second, last = np.median(spread[:, [min(1, spread.shape[1] - 1), -1]], axis=0)
    deviation = NORMAL * stats.median_abs_deviation(spread[:, -1])
    return max(LEAST_COSINE, float(np.tanh(last + 4 * deviation + 3 * (second - last))))


def _pairs(near: Neighbors, cosine: float, max_heard: int) -> tuple[np.ndarray, np.ndarray]:
    """Pairs int [P, 2] to judge, most similar first, the smaller number first; their cosines."""
    values = near.cosines.ravel()
    usable = np.flatnonzero(np.isfinite(values))
    n_alike = int((values[usable] >= cosine).sum())
    n = min(len(usable), max(n_alike, 2 * max_heard))  # most pairs are there from both sides
    chosen = usable[np.argpartition(-values[usable], n - 1)[:n]] if n else usable[:0]
    ends = np.sort(np.stack([chosen // near.rows.shape[1], near.rows.ravel()[chosen]]), axis=0)
    n_rows = len(near.rows)
    keys, once = np.unique(ends[0].astype(np.int64) * n_rows + ends[1], return_index=True)
    pairs, cosines = np.stack([keys // n_rows, keys % n_rows], axis=1), values[chosen[once]]
    order = np.argsort(-cosines, kind="stable")
    order = order[: max(max_heard, int((cosines >= cosine).sum()))]
    return pairs[order], cosines[order]


def _hear(
    files: list[bytes | None] | None, pairs: np.ndarray, cosines: np.ndarray, max_heard: int
) -> np.ndarray:
    """Correlations of the first pairs, NaN for those that were not heard."""
    heard = np.full(len(pairs), np.nan)
    n = min(max_heard, len(pairs))
    if files is None or n == 0:
        return heard
    order = np.lexsort((pairs[:n, 1], pairs[:n, 0]))  # a file's pairs follow one another
    heard[order] = hear_pairs([file or b"" for file in files], pairs[order])
    if len(pairs) >= max_heard:
        told = logging.WARNING if max_heard >= DedupConfig.max_heard else logging.INFO  # asked for
        log.log(
            told,
            "%d pairs were compared by listening, down to a cosine of %.4f; of less similar ones "
            "embeddings alone decide",
            *(n, float(cosines[n - 1])),
        )
    unreadable = int(np.isnan(heard[:n]).sum())
    if unreadable:
        log.warning("%d pairs could not be heard; their embeddings decide", unreadable)
    return heard


def _table(
    table: pa.Table,
    sets: np.ndarray,
    contents: list[str],
    pairs: np.ndarray,
    cosines: np.ndarray,
    heard: np.ndarray,
) -> pa.Table:
    members = np.bincount(sets, minlength=len(table))[sets] > 1
    best = np.full((2, len(table)), -np.inf)
    for values, known in ((best[0], cosines), (best[1], heard)):
        usable = np.isfinite(known)
        np.maximum.at(values, pairs[usable].ravel(), np.repeat(known[usable], 2))
    rows = np.flatnonzero(members)
    quality = [_quality(row) for row in table.take(pa.array(rows)).to_pylist()]
    longest: dict[int, float] = {}
    for row, worth in zip(rows, quality, strict=True):
        longest[sets[row]] = max(longest.get(sets[row], 0.0), worth[0])
    keys = [
        (
            sets[row],
            worth[0] < AS_LONG * longest[sets[row]],
            *(-x for x in worth[1:]),
            -worth[0],
            row,
        )
        for row, worth in zip(rows, quality, strict=True)
    ]
    order = rows[sorted(range(len(rows)), key=keys.__getitem__)]
    of_set = sets[order]
    is_first = np.concatenate([[True], of_set[1:] != of_set[:-1]])[: len(order)]
    n_equal: dict[tuple[int, str], int] = {}
    for row in order:
        key = (int(sets[row]), contents[row])
        n_equal[key] = n_equal.get(key, 0) + 1
    evidence = [
        "content"
        if contents[row] and n_equal[int(sets[row]), contents[row]] > 1
        else "sound"
        if np.isfinite(best[1, row])
        else "cosine"
        for row in order
    ]
    front = {
        "set": pa.array(np.cumsum(is_first)),
        "mark": pa.array(np.where(is_first, "keep", "reject").tolist(), pa.string()),
        "evidence": pa.array(evidence, pa.string()),
        "cosine": pa.array([x if np.isfinite(x) else None for x in best[0, order]], pa.float64()),
        "correlation": pa.array(
            [x if np.isfinite(x) else None for x in best[1, order]], pa.float64()
        ),
    }
    rest = table.take(pa.array(order))
    return pa.table(front | {name: rest[name] for name in rest.column_names})


def _quality(row: dict) -> tuple[float, float, float, float]:
    """Duration, bits that were kept, rate and channels of one row."""
    return (
        float(row.get("duration_s") or 0),
        float(BITS.get(row.get("subtype") or "", 0)),
        float(row.get("sample_rate_hz") or 0),
        float(row.get("channels") or 0),
    )


def _texts(table: pa.Table, name: str) -> list[str] | None:
    return [text or "" for text in table[name].to_pylist()] if name in table.schema.names else None
