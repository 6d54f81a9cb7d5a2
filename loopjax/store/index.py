"""Which loops a store already holds, read back from its shards."""

import hashlib
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa

from loopjax.store.parquet import open_footer
from loopjax.store.read import matrix_of, part_files
from loopjax.store.schema import EMBEDDING, as_int64

INDEX_COLUMNS = ["key", "size_bytes", "mtime_ns", "sha256", "id", "path_bytes"]
Result = tuple[np.ndarray, float | None]  # embedding [D] and crop_std
LOOK_S = 10.0  # between two looks for new shards
_OPEN_PARTS = 4  # shards whose paths or embeddings are kept: loops come in about the shards' order


class DoneIndex:
    """Which loops a store already holds: sorted numbers, so that millions stay small.

    Positions count the loops in the order of their keys. They stay what they were when rows are
    dropped or moved later; what is read from the shards then is what is left.
    """

    def __init__(self, folder: Path | None, without: Callable[[Path], bool] = lambda part: False):
        """Reads the index columns of all finished shards but some; None = there are none."""
        self.folder = folder
        parts = [] if folder is None else part_files(folder)
        self.parts = [part for part in parts if not without(part)]
        with ThreadPoolExecutor() as threads:
            columns = list(threads.map(_index_columns, self.parts))
        counts = [len(part[0]) for part in columns]
        keys, sizes, times, hashes, suffixes, places = (
            np.concatenate(column) if columns else np.zeros(0, np.uint64)
            for column in (zip(*columns, strict=True) if columns else [()] * len(INDEX_COLUMNS))
        )
        order = np.argsort(keys, kind="stable")
        self.keys, self._hashes = keys[order], hashes[order]
        self._sizes, self._mtimes = sizes[order], times[order]
        self._suffixes, self._places = suffixes[order], places[order]
        self._part_numbers = np.repeat(np.arange(len(counts)), counts)[order]
        self._by_content = np.argsort(self._hashes, kind="stable")
        self._read_paths = lru_cache(_OPEN_PARTS)(_paths)
        self._read_results = lru_cache(_OPEN_PARTS)(_Results.of)

    def __len__(self) -> int:
        return len(self.keys)

    def find(self, key: str) -> int | None:
        """Position of a key, or None."""
        value = np.uint64(int(key, 16))
        at = int(np.searchsorted(self.keys, value))
        return at if at < len(self.keys) and self.keys[at] == value else None

    def unchanged(self, at: int, size_bytes: int, mtime_ns: int) -> bool:
        """Whether the file still has the size and time it had when it was embedded."""
        return bool(self._sizes[at] == size_bytes and self._mtimes[at] == as_int64(mtime_ns))

    def same_place(self, at: int, path_bytes: bytes) -> bool:
        """Whether the file is where it was when it was embedded."""
        return int(self._places[at]) == _place(path_bytes)

    def same_content(self, at: int, sha256: str) -> bool:
        """Whether the file still has the content that was embedded."""
        return int(self._hashes[at]) == int(sha256[:16], 16)

    def with_content(self, sha256: str) -> np.ndarray:
        """Positions of all loops of this content."""
        value = np.uint64(int(sha256[:16], 16))
        sides = (
            np.searchsorted(self._hashes, value, side, sorter=self._by_content)
            for side in ("left", "right")
        )
        return self._by_content[slice(*sides)]

    def holds_id(self, sha256: str, suffix: str) -> bool:
        """Whether a loop of this content has an id that ends in these hex digits."""
        return bool((self._suffixes[self.with_content(sha256)] == int(suffix, 16)).any())

    def part(self, at: int) -> Path:
        """The shard that holds the row."""
        return self.parts[self._part_numbers[at]]

    def key(self, at: int) -> str:
        """The key of a row."""
        return f"{int(self.keys[at]):016x}"

    def path_bytes(self, at: int) -> bytes | None:
        """Where the file was when it was embedded; None for a row that is no longer there."""
        return self._read_paths(self.part(at)).get(self.key(at))

    def result(self, positions: Sequence[int], sha256: str) -> Result | None:
        """The embedding and `crop_std` of a content; None where no row of it is left.

        Args:
            positions: of rows with this content.
            sha256: the content.
        """
        for part in dict.fromkeys(map(self.part, positions)):
            if part.exists() and (found := self._read_results(part).find(sha256)) is not None:
                return found
        return None


class LaterContents:
    """Contents of the shards that came into a store after its index was read, whoever wrote them.

    Twelve bytes a row are in memory; embeddings are read from the shards.
    """

    def __init__(self, folder: Path | None, known: Iterable[Path]):
        """Reads nothing yet; None = there is no store."""
        self._folder, self._known = folder, set(known)
        self._parts: list[Path] = []
        self._hashes, self._numbers = np.zeros(0, np.uint64), np.zeros(0, np.int32)
        self._looked_s = -np.inf
        self._read_results = lru_cache(_OPEN_PARTS)(_Results.of)

    def result(self, sha256: str) -> Result | None:
        """The embedding and `crop_std` of a content; None if no shard holds it yet."""
        now_s = time.monotonic()
        if self._folder is not None and now_s - self._looked_s >= LOOK_S:
            self._looked_s = now_s
            self._read_new(self._folder)
        value = np.uint64(int(sha256[:16], 16))
        at = int(np.searchsorted(self._hashes, value))
        if at == len(self._hashes) or self._hashes[at] != value:
            return None
        part = self._parts[self._numbers[at]]
        return self._read_results(part).find(sha256) if part.exists() else None

    def _read_new(self, folder: Path) -> None:
        new = [part for part in part_files(folder) if part not in self._known]
        hashes, numbers = [self._hashes], [self._numbers]
        for part in new:
            hashes.append(_as_uint64(open_footer(part).read(["sha256"])["sha256"]))
            numbers.append(np.full(len(hashes[-1]), len(self._parts), np.int32))
            self._parts.append(part)
        self._known.update(new)
        if new:
            together = np.concatenate(hashes)
            order = np.argsort(together, kind="stable")
            self._hashes, self._numbers = together[order], np.concatenate(numbers)[order]


@dataclass(frozen=True)
class _Results:
    """Embeddings of a shard, by content."""

    rows: dict[str, int]
    matrix: np.ndarray
    crop_std: list[float | None]

    @classmethod
    def of(cls, part: Path) -> "_Results":
        table = open_footer(part).read(["sha256", "crop_std", EMBEDDING])
        rows = {sha256: row for row, sha256 in enumerate(table["sha256"].to_pylist())}
        return cls(rows, matrix_of(table, part), table["crop_std"].to_pylist())

    def find(self, sha256: str) -> Result | None:
        row = self.rows.get(sha256)
        return None if row is None else (self.matrix[row].copy(), self.crop_std[row])


def _paths(part: Path) -> dict[str, bytes]:
    if not part.exists():
        return {}
    table = open_footer(part).read(["key", "path_bytes"])
    return dict(zip(table["key"].to_pylist(), table["path_bytes"].to_pylist(), strict=True))


def _index_columns(part: Path) -> tuple[np.ndarray, ...]:
    table = open_footer(part).read(INDEX_COLUMNS)
    keys, hashes = (_as_uint64(table[name]) for name in ("key", "sha256"))
    sizes, times = (np.asarray(table[name]) for name in ("size_bytes", "mtime_ns"))
    suffixes = np.array(
        [int(text.rpartition("-")[2], 16) for text in table["id"].to_pylist()], np.uint64
    )
    places = np.array([_place(path) for path in table["path_bytes"].to_pylist()], np.uint64)
    return keys, sizes, times, hashes, suffixes, places


def _as_uint64(hex_digits: pa.ChunkedArray) -> np.ndarray:
    """The first 16 hex digits of each text as a number."""
    digits = "".join(text[:16] for text in hex_digits.to_pylist())
    return np.frombuffer(bytes.fromhex(digits), ">u8").astype(np.uint64)


def _place(path_bytes: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(path_bytes, digest_size=8).digest(), "big")
