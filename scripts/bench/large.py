"""Fit and score of many embeddings: spheres beside kNN and the residual head.

    python scripts/bench/large.py --rows 100000 --width 768

Every detector runs in a fresh process: a warming pass that compiles, `fit` (training scores
included), `decision_function` on as many new rows, block by block, and the peak of resident memory
beyond what imports and rows take. Seconds are those of all cores together, which a busy machine
changes little.
"""

import json
import subprocess
import sys
import time
from typing import Any

from growth import embeddings, peak_mib
from measure import arguments, emit, rounded, seconds

BLOCK_ROWS = 10_000
DETECTORS: dict[str, tuple[str, dict[str, Any]]] = {
    "sphere-svdd": ("sphere-svdd", {}),
    "local-knn": ("local-knn", {}),
    "knn": ("knn", {}),
    "residual": ("deep-svdd", {"network": "residual"}),
}


def one(name: str, n_rows: int, width: int) -> None:
    """In a fresh process: CPU seconds and memory of one detector, as JSON."""
    from loopjax.detectors import make_detector

    kind, params = DETECTORS[name]
    detector = make_detector(kind, **params)
    train, block = embeddings(n_rows, width, 1), embeddings(BLOCK_ROWS, width, 2)
    detector.fit(train[:6000])
    detector.decision_function(block)
    before = peak_mib()
    fit_s = seconds(lambda: detector.fit(train), time.process_time)
    score_s = seconds(lambda: detector.decision_function(block), time.process_time)
    score_s *= n_rows / BLOCK_ROWS
    print(json.dumps({"fit_s": fit_s, "score_s": score_s, "mib": peak_mib() - before}))


def main() -> None:
    """Runs every detector in its own process and prints three lines for each."""
    parser = arguments(__doc__)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--one", choices=DETECTORS, help="the fresh process")
    args = parser.parse_args()
    if args.one:
        one(args.one, args.rows, args.width)
        return
    size = f"{args.rows:,} x {args.width}"
    for name in DETECTORS:
        command = [sys.executable, __file__, "--one", name]
        command += ["--rows", str(args.rows), "--width", str(args.width)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        found = json.loads(done.stdout.splitlines()[-1])
        for key, what, unit in (
            ("fit_s", "fit", "CPU s"),
            ("score_s", "score", "CPU s"),
            ("mib", "memory beyond the rows", "MiB"),
        ):
            emit("large", f"{name}, {size}: {what}", ours=rounded(found[key]), unit=unit)


if __name__ == "__main__":
    main()
