"""Stores as `loopjax embed` writes them, of vectors that the test knows."""

import os

import numpy as np

from loopjax.config import EmbedConfig
from loopjax.embedding.chain import metadata_of
from loopjax.embedding.settings import space_of
from loopjax.store.schema import StoreRow
from loopjax.store.write import ShardWriter
from tests.fake_encoder import FakeEncoder


def write_store(folder, matrix, shard_rows=100, **columns):
    """A store of rows named 000000, 000001, ...; `columns` replace what a row says."""
    folder.mkdir(parents=True, exist_ok=True)
    encoder = FakeEncoder(dim=matrix.shape[1])
    shards = ShardWriter(folder, metadata_of(space_of(encoder, EmbedConfig())), shard_rows)
    for i, vector in enumerate(np.asarray(matrix, np.float32)):
        own = {name: values[i] for name, values in columns.items()}
        path = own.get("path", f"loops/{i:06d}.wav")
        sha256 = own.get("sha256", f"{i:064x}"[::-1])
        row = {
            "id": f"{sha256[:16]}-{i:08x}", "key": f"{i:016x}", "path": path,
            "path_bytes": os.fsencode(path), "group": "", "sha256": sha256, "size_bytes": 1000,
            "mtime_ns": 0, "sample_rate_hz": 44_100, "channels": 1, "n_frames": 44_100,
            "duration_s": 1.0, "subtype": "PCM_16", "flags": [], "crop_std": None,
        }  # fmt: skip
        shards.add(StoreRow(**row | own, embedding=vector))
    shards.flush()
    return folder
