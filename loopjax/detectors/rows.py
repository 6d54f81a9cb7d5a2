"""Rows of numbers as detectors take them: a matrix, or blocks that are read one after another."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from sklearn.utils.validation import check_array

from loopjax.errors import UserError


class DataError(UserError, ValueError):
    """The rows given to a detector cannot be used; the message names the row or the column."""


@dataclass(frozen=True)
class RowBlocks:
    """Rows that are read block by block because the whole matrix does not fit into memory.

    Attributes:
        read: blocks by their numbers, int [n], in that order: float [sizes[number], n_features];
            called once or more per pass.
        sizes: int [B], rows of each block.
        n_features: width of every block.
        origin: [n_features], what is subtracted from every row; None for nothing.
    """

    read: Callable[[np.ndarray], Iterable[np.ndarray]]
    sizes: np.ndarray
    n_features: int
    origin: np.ndarray | None = None

    @property
    def n_rows(self) -> int:
        """Rows over all blocks."""
        return int(np.sum(self.sizes))

    @property
    def starts(self) -> np.ndarray:
        """Number of the first row of each block, int [B]."""
        return np.cumsum(self.sizes) - self.sizes

    def __iter__(self) -> Iterator[np.ndarray]:
        """One pass over all blocks."""
        return self.some(np.arange(len(self.sizes)))

    def some(self, numbers: np.ndarray) -> Iterator[np.ndarray]:
        """Some blocks as float32, refusing NaN, infinity and wrong shapes."""
        starts = self.starts
        for number, block in zip(numbers, self.read(numbers), strict=True):
            rows = np.asarray(block)
            rows = rows.astype(np.result_type(rows, np.float32), copy=False)
            if rows.shape != (self.sizes[number], self.n_features):
                raise DataError(
                    f"block {number} has shape {rows.shape}; {self.sizes[number]} rows of "
                    f"{self.n_features} features are expected"
                )
            check_finite(rows, first_row=int(starts[number]))
            yield narrowed(rows, self.origin)

    def only(self, keep: np.ndarray) -> "RowBlocks":
        """The rows where `keep`, bool [n_rows], is true."""
        return self.picked(np.arange(len(self.sizes)), np.split(keep, np.cumsum(self.sizes)[:-1]))

    def picked(self, numbers: np.ndarray, masks: Sequence[np.ndarray]) -> "RowBlocks":
        """Of some blocks, by their numbers, the rows where the block's mask is true."""
        counts = np.array([np.count_nonzero(mask) for mask in masks])
        filled = np.flatnonzero(counts)

        def read(wanted: np.ndarray) -> Iterator[np.ndarray]:
            places = filled[wanted]
            for place, block in zip(places, self.read(numbers[places]), strict=True):
                yield block[masks[place]]

        return replace(self, read=read, sizes=counts[filled])


SCORED_ROWS = 8192  # of `RowBlocks`, at once
# Squares of larger values, summed over a row, may leave float32.
LARGEST = 1e15


def check_finite(rows: np.ndarray, first_row: int = 0) -> None:
    """Raise `DataError` naming the first row of [N, D] with NaN, infinity or beyond `LARGEST`."""
    # One pass without a temporary: a sum of squares bounds every value, and NaN fails.
    flat = rows.ravel(order="K")
    if np.vdot(flat, flat) <= LARGEST**2:
        return
    bad = np.flatnonzero(~(np.abs(rows) <= LARGEST).all(axis=1))
    if bad.size:
        finite = np.isfinite(rows[bad]).all()
        found = f"magnitudes above {LARGEST:.0e}" if finite else "NaN or infinity"
        raise DataError(
            f"Input X contains {found} in {bad.size} of {len(rows)} rows "
            f"(first: row {first_row + bad[0]}); drop or repair these rows"
        )


# Float32 holds a row's place relative to its like to 1e-4 up to about this many standard deviations
# from zero.
_FAR = 1e3


def far_origin(rows: np.ndarray) -> np.ndarray | None:
    """Mean row [D] of float64 rows [N, D] so far from zero that float32 would lose them.

    None where float32 is enough, and for rows that are float32 already.
    """
    if rows.dtype != np.float64 or not rows.size:
        return None
    mean = rows.mean(axis=0)
    far = np.abs(mean).max() > _FAR * np.sqrt(rows.var(axis=0).max())
    return mean if far else None


def narrowed(rows: np.ndarray, origin: np.ndarray | None) -> np.ndarray:
    """Rows [N, D] minus `origin` [D], in float32."""
    if origin is not None:
        rows = rows.astype(np.float64) - origin
    return rows.astype(np.float32, copy=False)


def as_rows(X: Any) -> np.ndarray:
    """X as finite [N, D] in its own precision, float32 or float64.

    Raises:
        DataError: no matrix, no rows, NaN or infinity.
    """
    try:
        rows = np.asarray(check_array(X, ensure_all_finite=False))
    except ValueError as error:
        raise DataError(str(error)) from error
    rows = rows.astype(np.result_type(rows, np.float32), copy=False)
    check_finite(rows)
    return rows


def len_rows(rows: np.ndarray | RowBlocks) -> int:
    """Number of rows of a matrix or of `RowBlocks`."""
    return rows.n_rows if isinstance(rows, RowBlocks) else len(rows)


def iter_blocks(rows: np.ndarray | RowBlocks, block_rows: int) -> Iterator[np.ndarray]:
    """Consecutive pieces of `block_rows` rows, the last one fewer, of a matrix or `RowBlocks`."""
    if isinstance(rows, np.ndarray):
        yield from (rows[i : i + block_rows] for i in range(0, len(rows), block_rows))
        return
    waiting: list[np.ndarray] = []
    for block in rows:
        waiting.append(block)
        if sum(map(len, waiting)) >= block_rows:
            joined = np.concatenate(waiting) if waiting[1:] else block
            whole = len(joined) - len(joined) % block_rows
            yield from (joined[i : i + block_rows] for i in range(0, whole, block_rows))
            waiting = [joined[whole:]] if whole < len(joined) else []
    if waiting:
        yield np.concatenate(waiting)


def only_rows(rows: np.ndarray | RowBlocks, keep: np.ndarray) -> Any:
    """The rows where `keep`, bool [N], is true."""
    return rows[keep] if isinstance(rows, np.ndarray) else rows.only(keep)


def take_rows(rows: np.ndarray | RowBlocks, wanted: np.ndarray) -> np.ndarray:
    """The rows of ascending numbers out of a matrix or of `RowBlocks`; reads no other blocks."""
    if isinstance(rows, np.ndarray):
        return rows[wanted]
    taken = np.empty((len(wanted), rows.n_features), np.float32)
    place = np.searchsorted(np.cumsum(rows.sizes), wanted, side="right")
    numbers, firsts = np.unique(place, return_index=True)
    starts, ends = rows.starts, [*firsts[1:], len(wanted)]
    for number, block, first, end in zip(numbers, rows.some(numbers), firsts, ends, strict=True):
        taken[first:end] = block[wanted[first:end] - starts[number]]
    return taken


def places_among(kept: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """Where each of numbers [n] stands among ascending `kept`, -1 where it does not; int [n]."""
    place = np.minimum(np.searchsorted(kept, numbers), len(kept) - 1)
    return np.where(kept[place] == numbers, place, -1)


def score_in_blocks(
    score: Callable[[np.ndarray], Any], rows: np.ndarray, small: int = 256, large: int = 4096
) -> np.ndarray:
    """Apply a jitted [B, D] -> [B] function with one padded block shape, so nothing recompiles.

    A row's score does not depend on how many rows come with it: up to `large` rows every call has
    the shape [small, D]; above, [large, D]. Returns [N].
    """
    block = small if len(rows) <= large else large
    scores = []
    for part in iter_blocks(rows, block):
        padded = part if len(part) == block else np.pad(part, ((0, block - len(part)), (0, 0)))
        scores.append(np.asarray(score(padded))[: len(part)])
    return np.concatenate(scores)
