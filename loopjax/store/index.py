"""Which loops a store already holds, read back from its shards."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa

from loopjax.store.parquet import open_footer
from loopjax.store.read import part_files
from loopjax.store.schema import as_int64

INDEX_COLUMNS = ["key", "size_bytes", "mtime_ns", "sha256"]


class DoneIndex:
    """Which loops a store already holds: sorted keys, so that millions stay small."""

    def __init__(self, folder: Path):
        """Reads the key columns of all finished shards."""
        self.parts = part_files(folder)
        with ThreadPoolExecutor() as threads:
            columns = list(threads.map(_index_columns, self.parts))
        counts = [len(part[0]) for part in columns]
        keys, sizes, times, hashes = (
            np.concatenate(column) if columns else np.zeros(0, np.uint64)
            for column in (zip(*columns, strict=True) if columns else [()] * 4)
        )
        order = np.argsort(keys, kind="stable")
        self._keys, self._hashes = keys[order], hashes[order]
        self._sizes, self._mtimes = sizes[order], times[order]
        self._part_numbers = np.repeat(np.arange(len(counts)), counts)[order]

    def __len__(self) -> int:
        return len(self._keys)

    def find(self, key: str) -> int | None:
        """Position of a key, or None."""
        value = np.uint64(int(key, 16))
        at = int(np.searchsorted(self._keys, value))
        return at if at < len(self._keys) and self._keys[at] == value else None

    def unchanged(self, at: int, size_bytes: int, mtime_ns: int) -> bool:
        """Whether the file still has the size and time it had when it was embedded."""
        return bool(self._sizes[at] == size_bytes and self._mtimes[at] == as_int64(mtime_ns))

    def same_content(self, at: int, sha256: str) -> bool:
        """Whether the file still has the content that was embedded."""
        return int(self._hashes[at]) == int(sha256[:16], 16)

    def part(self, at: int) -> Path:
        """The shard that holds the row."""
        return self.parts[self._part_numbers[at]]


def _index_columns(part: Path) -> tuple[np.ndarray, ...]:
    table = open_footer(part).read(INDEX_COLUMNS)
    numbers = (np.asarray(table[name]) for name in ("size_bytes", "mtime_ns"))
    return _as_uint64(table["key"]), *numbers, _as_uint64(table["sha256"])


def _as_uint64(hex_digits: pa.ChunkedArray) -> np.ndarray:
    """The first 16 hex digits of each text as a number."""
    digits = "".join(text[:16] for text in hex_digits.to_pylist())
    return np.frombuffer(bytes.fromhex(digits), ">u8").astype(np.uint64)
