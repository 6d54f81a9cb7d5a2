"""Damages every kind of file that a user hands in, and reads it.

    python -m scripts.fuzz.inputs --n 2000

Embeddings of other tools (also pickles that would run code), lists of paths, labels and experiment
files; audio has a fuzzer of its own. An input is read or refused with a message; what is read as
embeddings must be finite and have unique ids. Ends with "0 lost, 0 hung, 0 ran, 0 tracebacks", or
exit code 1.
"""

import os
import pickle
import random
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors.numpy import save_file

from loopjax.audio.sources.files import scan
from loopjax.experiment.labels import read_labels
from loopjax.experiment.load import load_config
from loopjax.store.read import read_embeddings
from scripts.fuzz.outcomes import CANARY, Outcomes, command_line, mutated, tried

MATRIX = np.random.default_rng(0).standard_normal((20, 8)).astype(np.float32)
PATHS = [f"loops/{i:02d}.wav" for i in range(20)]
CONFIG = """name: fuzzed
data:
  sources: [loops]
seeds: [0, 1]
detectors:
  - {name: residual, kind: deep-svdd, params: {network: residual, epochs: 3, learning_rate: 1.0e-4}}
  - {name: pca, kind: pca, params: {n_components: 4}}
split: {train_fraction: 0.8, seed: 3}
"""


class Payload:
    """Makes the canary when a careless reader unpickles it."""

    def __init__(self, canary: Path):
        self.canary = canary

    def __reduce__(self):
        return os.system, (f"touch {self.canary}",)


def work(outcomes: Outcomes, n: int, seed: int, folder: Path) -> None:
    """Tries `n` inputs."""
    rng, canary = random.Random(seed), folder / CANARY
    whole = folder / "whole"
    whole.mkdir()
    readers = _inputs(whole, canary)
    for number in range(n):
        name = rng.choice(sorted(readers))
        kind, raw = mutated((whole / name).read_bytes(), rng)
        if rng.random() < 0.3:
            kind, raw = f"{kind} twice", mutated(raw, rng)[1]
        path = folder / f"case-{name}"
        path.write_bytes(raw)
        label = f"{kind} in {name} (seed {seed}, number {number})"
        tried(outcomes, label, lambda path=path, name=name: readers[name](path), canary)
        path.unlink(missing_ok=True)


def _inputs(folder: Path, canary: Path) -> dict[str, Callable[[Path], str | None]]:
    """One sound file of each kind, with its reader."""
    lists = MATRIX.astype(float).tolist()
    table = pa.table({"id": [str(i) for i in range(20)], "path": PATHS, "embedding": lists})
    pq.write_table(table, folder / "a.parquet")
    wide = {f"e{i}": MATRIX[:, i] for i in range(8)}
    pq.write_table(pa.table({"path": PATHS, **wide}), folder / "wide.parquet")
    np.save(folder / "a.npy", MATRIX)
    np.savez_compressed(folder / "a.npz", embeddings=MATRIX, path=np.array(PATHS))
    save_file({"embeddings": MATRIX}, folder / "a.safetensors")
    rows = [{"path": path, "embedding": row} for path, row in zip(PATHS, MATRIX, strict=True)]
    for protocol in (0, 2, 4, 5):
        (folder / f"{protocol}.pkl").write_bytes(pickle.dumps(rows, protocol))
        payload = pickle.dumps([rows, Payload(canary)], protocol)
        (folder / f"payload-{protocol}.pkl").write_bytes(payload)
    lines = [f'{path},"{row}"' for path, row in zip(PATHS, lists, strict=True)]
    (folder / "a.csv").write_text("\n".join(["path,embedding", *lines]))
    readers: dict[str, Callable[[Path], str | None]] = {
        file.name: _read_embeddings for file in folder.iterdir()
    }
    (folder / "list.txt").write_text("\n".join(PATHS))
    readers["list.txt"] = _scan
    labels = [f"{path},{i % 2}" for i, path in enumerate(PATHS)]
    (folder / "labels.csv").write_text("\n".join(["file,is_anomaly", *labels]))
    readers["labels.csv"] = _read_labels
    (folder / "config.yaml").write_text(CONFIG)
    readers["config.yaml"] = _load_config
    return readers


def _read_embeddings(path: Path) -> str | None:
    embeddings = read_embeddings(path)
    ids = embeddings.table["id"].to_pylist()
    if not np.isfinite(embeddings.matrix).all():
        return "NaN or infinity"
    if len(set(ids)) != len(embeddings.matrix):
        return "ids that repeat or do not fit the rows"
    return None


def _scan(path: Path) -> str | None:
    for row in scan([path]):
        row.path.encode()  # what is stored must be valid text
    return None


def _read_labels(path: Path) -> str | None:
    read_labels(path, log=lambda text: None)
    return None


def _load_config(path: Path) -> str | None:
    load_config(path, [])
    return None


if __name__ == "__main__":
    sys.exit(command_line(work, __doc__))
