"""Writes a store of synthetic embeddings, for the benchmarks of what comes after `embed`.

    python scripts/bench/large_store.py out/store --rows 1000000 --width 768

Rows lie around a 16-dimensional subspace, in shards of 4,096 like those of `loopjax embed`.
"""

import argparse
import hashlib
from pathlib import Path

import numpy as np
import pyarrow as pa

from loopjax.store.parquet import write_parquet
from loopjax.store.schema import EMBEDDING, ROW_FIELDS, shard_schema

SHARD_ROWS = 4096


def embeddings(n_rows: int, width: int, seed: int) -> np.ndarray:
    """Rows around a 16-dimensional subspace, float32 [n_rows, width]."""
    rng = np.random.default_rng(seed)
    axes = np.random.default_rng(0).normal(size=(16, width)).astype(np.float32)
    rows = rng.standard_normal((n_rows, 16), np.float32) @ axes
    return rows + 0.1 * rng.standard_normal((n_rows, width), np.float32)


def write_store(folder: Path, n_rows: int, width: int, shard_rows: int = SHARD_ROWS) -> None:
    """Writes shards with what `embed` says of a loop, as far as later steps read it."""
    metadata = {
        "schema_version": "1",
        "encoder": "external",
        "weights_sha256": "0" * 64,
        "preprocessing_sha256": "0" * 64,
        "embedding_dim": str(width),
    }
    schema = shard_schema(width, metadata)
    for shard, start in enumerate(range(0, n_rows, shard_rows)):
        numbers = range(start, min(start + shard_rows, n_rows))
        hashes = [hashlib.sha256(str(number).encode()).hexdigest() for number in numbers]
        known = {
            "id": [
                f"{sha256[:16]}-{number:08x}"
                for sha256, number in zip(hashes, numbers, strict=True)
            ],
            "key": [f"{number:016x}" for number in numbers],
            "path": [f"pack {number // 1000:05d}/loop {number:08d}.wav" for number in numbers],
            "group": [f"pack {number // 1000:05d}" for number in numbers],
            "sha256": hashes,
            "duration_s": [4.0] * len(numbers),
            "flags": [[]] * len(numbers),
        }
        columns = [
            pa.array(known[name], kind) if name in known else pa.nulls(len(numbers), kind)
            for name, kind in ROW_FIELDS
        ]
        values = pa.array(embeddings(len(numbers), width, 1 + shard).ravel())
        columns.append(pa.FixedSizeListArray.from_arrays(values, width))
        names = [*(name for name, _ in ROW_FIELDS), EMBEDDING]
        table = pa.table(dict(zip(names, columns, strict=True)), schema=schema)
        write_parquet(table, folder / f"part-{shard:05d}.parquet")


def main() -> None:
    """Writes one store."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--width", type=int, default=768)
    args = parser.parse_args()
    write_store(args.folder, args.rows, args.width)


if __name__ == "__main__":
    main()
