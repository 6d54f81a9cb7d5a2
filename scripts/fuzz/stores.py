"""Damages stores of embeddings, saved models and encoders, and reads them again.

    python -m scripts.fuzz.stores --n 2000

A store that is read after a damage must hold exactly what was written, and a damage that is
refused must be repaired by continuing the store; a model must score as before. Ends with
"0 lost, 0 hung, 0 ran, 0 tracebacks", or exit code 1.
"""

import os
import random
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from loopjax.detectors.storage import load_detector, save_detector
from loopjax.errors import LoopjaxError
from loopjax.store.read import Embeddings, part_files, read_embeddings
from loopjax.store.resume import finish, prepare
from loopjax.store.schema import StoreRow
from loopjax.store.scores import Scores, read_scores, write_scores
from loopjax.store.verify import verify_store
from loopjax.store.write import ShardWriter
from scripts.fuzz.outcomes import CANARY, Outcomes, command_line, mutated, tried

WIDTH = 8
METADATA = {
    "schema_version": "1",
    "encoder": "fuzzed",
    "weights_sha256": "a" * 64,
    "preprocessing_sha256": "b" * 64,
    "preprocessing": '{"mono": "mean"}',
    "embedding_dim": str(WIDTH),
}


@dataclass(frozen=True)
class Rejected:
    """A rejected input."""

    key: str
    path: str
    path_bytes: bytes
    stage: str
    reason: str
    message: str
    size_bytes: int


def work(outcomes: Outcomes, n: int, seed: int, folder: Path) -> None:
    """Tries `n` damages; three of four go to stores."""
    rng = random.Random(seed)
    whole = folder / "whole"
    write_store(whole / "emb")
    write_scores(_scores(), whole / "scores.parquet")
    save_detector(_detector(), whole / "model")
    expected = read_embeddings(whole / "emb")
    scores = read_scores(whole / "scores.parquet").table
    decided = load_detector(whole / "model").decision_function(expected.matrix)
    for number in range(n):
        case = folder / "case"
        shutil.rmtree(case, ignore_errors=True)
        shutil.rmtree(folder / "emb.damaged", ignore_errors=True)
        shutil.copytree(whole, case, copy_function=shutil.copy2)
        area = rng.choice(("emb", "emb", "emb", "scores.parquet", "model"))
        place = case / area
        files = sorted(p for p in ([place] if place.is_file() else place.rglob("*")) if p.is_file())
        victim = rng.choice(files)
        before = victim.stat()
        kind, raw = mutated(victim.read_bytes(), rng)
        victim.write_bytes(raw)
        if rng.random() < 0.5:  # as a failing disk leaves it
            os.utime(victim, ns=(before.st_atime_ns, before.st_mtime_ns))
        label = f"{kind} in {victim.relative_to(case)}"

        def read(area=area, case=case) -> str | None:
            if area == "emb":
                return store_fault(case / "emb", expected)
            if area == "model":
                again = load_detector(case / "model").decision_function(expected.matrix)
                return None if np.array_equal(again, decided) else "other scores"
            again = read_scores(case / "scores.parquet").table
            return None if again.equals(scores) else "other scores"

        tried(outcomes, f"{label} (seed {seed}, number {number})", read, folder / CANARY)


def store_fault(folder: Path, expected: Embeddings) -> str | None:
    """What is wrong with a damaged store: read it, and continue it where that is refused."""
    try:
        if not _equal(read_embeddings(folder), expected):
            return "read, but other values"
        refused = None
    except LoopjaxError as error:
        refused = error
        if not verify_store(folder).faults:
            return f"refused ({error}), but verified"
    prepare(folder, METADATA)  # `loopjax embed` starts so, and redoes what is missing
    held = {row for part in part_files(folder) for row in _keys(part)}
    writer = ShardWriter(folder, METADATA, 10)
    for i in range(30):
        if _row(i).key not in held:
            writer.add(_row(i))
    for i in range(3):
        writer.add_failure(_failure(i))
    writer.flush()
    finish(folder, METADATA)
    if not _equal(read_embeddings(folder), expected):
        return f"not repaired by continuing ({refused})"
    return None if not verify_store(folder).faults else "repaired, but not verified"


def write_store(folder: Path) -> None:
    """Thirty rows in three shards, and three rejected inputs."""
    folder.mkdir(parents=True)
    writer = ShardWriter(folder, METADATA, 10)
    for i in range(30):
        writer.add(_row(i))
    for i in range(3):
        writer.add_failure(_failure(i))
    writer.flush()
    finish(folder, METADATA)


def _equal(found: Embeddings, expected: Embeddings) -> bool:
    return (
        np.array_equal(found.matrix, expected.matrix)
        and found.table.equals(expected.table)
        and found.failures.equals(expected.failures)
        and found.metadata == expected.metadata
    )


def _keys(part: Path) -> list[str]:
    return read_embeddings(part).table["key"].to_pylist()


def _row(i: int) -> StoreRow:
    return StoreRow(
        id=f"{i:016x}-{i:08x}",
        key=f"{i:016x}",
        path=f"loops/{i:03d}.wav",
        path_bytes=f"/loops/{i:03d}.wav".encode(),
        group="loops",
        sha256=f"{i:064x}",
        size_bytes=1000 + i,
        mtime_ns=10**18 + i,
        sample_rate_hz=48_000,
        channels=2,
        n_frames=480 * i,
        duration_s=0.01 * i,
        subtype="PCM_16",
        flags=["silence"] if i % 3 else [],
        crop_std=None,
        embedding=np.random.default_rng(i).standard_normal(WIDTH).astype(np.float32),
    )


def _failure(i: int) -> Rejected:
    path = f"loops/bad-{i}.wav"
    message = "libsndfile: unknown error"
    return Rejected(f"{i + 100:016x}", path, path.encode(), "decode", "decode_error", message, 5)


def _detector():
    from loopjax.detectors import make_detector

    matrix = np.stack([_row(i).embedding for i in range(30)])
    return make_detector("mahalanobis").fit(matrix)


def _scores() -> Scores:
    import pyarrow as pa

    ids = [_row(i).id for i in range(30)]
    return Scores(pa.table({"id": ids, "score": np.linspace(0, 1, 30)}), {"kind": "pca"})


if __name__ == "__main__":
    sys.exit(command_line(work, __doc__))
