"""Held-out evaluation of the bundled encoder, for its model card (weights/README.md).

    python -m scripts.render -o HELDOUT --n 1000 --seed 2 --split heldout
    python -m scripts.nano.evaluate --rendered HELDOUT --real SONIC_PI -o nano_heldout.json

One-class protocol: 80 % of one class train as normal, its other 20 % and all other classes are
the test; AUROC, mean over classes and seeds. Classes are the GM programs that the encoder never saw
(clean loops), families in keys it never saw, and the file-name prefixes of the Sonic Pi samples.
Beside it stand the same architecture untrained and plain log-mel statistics.
"""

import argparse
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

from loopjax.config import DetectorConfig
from loopjax.embedding.chain import embed
from loopjax.embedding.samples import embed_arrays
from loopjax.encoders.load import load_encoder
from loopjax.experiment.protocols import run_protocols

ENCODERS = ("loopjax-nano", "untrained-nano", "log-mel-statistics")
METHODS = [
    DetectorConfig("residual", "deep-svdd", {"network": "residual"}),
    DetectorConfig("standard", "deep-svdd", {"network": "standard"}),
    DetectorConfig("knn", "knn"),
]
MIN_CLASS = 8  # rows; smaller rendered classes are left out
PREFIXES = {"bd": "drums", "drum": "drums", "sn": "drums", "hat": "drums"}


def rendered(folder: Path) -> tuple[list[np.ndarray], list[dict]]:
    """Clean held-out loops: samples and labels."""
    arrays, rows = [], []
    for shard in sorted(folder.glob("shard-*.parquet")):
        audio = np.load(shard.with_suffix(".npy"), mmap_mode="r")
        for row in pq.read_table(shard).to_pylist():
            if row["degradation"] == "none":
                start = row["offset_samples"]
                arrays.append(np.asarray(audio[start : start + row["length_samples"]]))
                rows.append(row)
    return arrays, rows


def one_class(matrix: np.ndarray, groups: list[str], seeds: range) -> dict[str, float]:
    """Mean AUROC by method over all classes."""
    rows = run_protocols(matrix, groups, METHODS, ("P1",), seeds)
    found = {}
    for method in METHODS:
        own = [row.auroc for row in rows if row.method == method.name]
        found[method.name] = round(float(np.mean([x for x in own if x is not None])), 4)
    return found


def main() -> None:
    """Prints one row per data set and encoder."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rendered", type=Path, help="folder of held-out rendered loops")
    parser.add_argument("--real", type=Path, help="folder of real samples, classes by prefix")
    parser.add_argument("--encoders", nargs="+", default=ENCODERS)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("-o", "--out", type=Path)
    args = parser.parse_args()
    results = []
    for name in args.encoders:
        encoder = load_encoder(name)
        tasks = {}
        if args.rendered is not None:
            arrays, rows = rendered(args.rendered)
            matrix = embed_arrays(arrays, encoder, 48000)
            unseen = np.array(["program" in r["split"] or "both" in r["split"] for r in rows])
            programs = np.array([r["program_name"] for r in rows])
            counts = Counter(programs[unseen])
            chosen = unseen & np.array([counts[p] >= MIN_CLASS for p in programs])
            tasks["unseen programs"] = (matrix[chosen], programs[chosen].tolist())
            by_key = ~unseen
            families = np.array([r["family"] for r in rows])
            counts = Counter(families[by_key])
            chosen = by_key & np.array([counts[f] >= MIN_CLASS for f in families])
            tasks["families in unseen keys"] = (matrix[chosen], families[chosen].tolist())
        if args.real is not None:
            real = embed([str(args.real)], encoder)
            names = [Path(p).name.split("_")[0] for p in real.table["path"].to_pylist()]
            tasks["Sonic Pi prefixes"] = (real.matrix, [PREFIXES.get(n, n) for n in names])
            kinds = [PREFIXES.get(n, n) for n in names]
            four = np.array([k in ("drums", "bass", "guit", "ambi") for k in kinds])
            tasks["drums, bass, guitar, ambience"] = (
                real.matrix[four],
                np.array(kinds)[four].tolist(),
            )
        for task, (matrix, groups) in tasks.items():
            found = one_class(matrix, groups, range(args.seeds))
            results.append({"data": task, "loops": len(groups), "encoder": name, **found})
    table = Table(*results[0])
    for row in results:
        table.add_row(*(str(v) for v in row.values()))
    Console().print(table)
    if args.out is not None:
        args.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
