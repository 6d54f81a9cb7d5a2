"""Time and memory of every detector against the number of embeddings, with fitted exponents.

    python scripts/bench/growth.py --rows 1000 10000 100000 --width 192

Every detector and size runs in a fresh process: rows of noise with structure, a warming pass that
compiles, then `fit` (training scores included), `decision_function` on as many new rows (timed on
at most 10,000 and scaled), and the peak of resident memory beyond what imports and rows take. An
exponent is the slope of log seconds over log rows between the two largest sizes; 1 is linear.
"""

import json
import math
import subprocess
import sys

import numpy as np
from measure import arguments, emit, rounded, seconds

QUERIES = 10_000
LONG_S = 10.0
PARAMS: dict[str, dict] = {
    "isolation-forest": {},
    "pca": {"n_components": 64},
    "mahalanobis": {},
    "knn": {},
    "deep-svdd": {"pretrain_epochs": 1, "epochs": 1, "batch_size": 256},
}


def embeddings(n_rows: int, width: int, seed: int) -> np.ndarray:
    """Rows around a 16-dimensional subspace, float32 [n_rows, width]."""
    rng = np.random.default_rng(seed)
    axes = np.random.default_rng(0).normal(size=(16, width)).astype(np.float32)
    rows = rng.standard_normal((n_rows, 16), np.float32) @ axes
    return rows + 0.1 * rng.standard_normal((n_rows, width), np.float32)


def peak_mib() -> float:
    """Largest resident memory of this process so far."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def one(kind: str, n_rows: int, width: int) -> None:
    """In a fresh process: seconds and memory of one detector at one size, as JSON."""
    from loopjax.detectors import make_detector

    train, new = embeddings(n_rows, width, 1), embeddings(min(n_rows, QUERIES), width, 2)
    detector = make_detector(kind, **PARAMS[kind])
    detector.fit(train[:512])
    detector.decision_function(new[:512])
    before = peak_mib()
    fit_s = seconds(lambda: detector.fit(train))
    if fit_s < LONG_S:  # the first fit of a size may still have compiled something
        fit_s = seconds(lambda: detector.fit(train))
    detector.decision_function(new)
    score_s = seconds(lambda: detector.decision_function(new))
    score_s *= n_rows / len(new)
    print(json.dumps({"fit_s": fit_s, "score_s": score_s, "mib": peak_mib() - before}))


def exponent(rows: list[int], values: list[float]) -> float:
    """Slope of log value over log rows between the two largest sizes."""
    (a, b), (x, y) = rows[-2:], values[-2:]
    return math.log(y / x) / math.log(b / a)


def main() -> None:
    """Runs every size in its own process and prints two lines per detector."""
    parser = arguments(__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[1000, 10_000, 100_000])
    parser.add_argument("--width", type=int, default=192)
    parser.add_argument("--kinds", nargs="+", default=list(PARAMS), choices=PARAMS)
    parser.add_argument("--one", nargs=2, metavar=("KIND", "ROWS"), help="the fresh process")
    args = parser.parse_args()
    if args.one:
        one(args.one[0], int(args.one[1]), args.width)
        return
    for kind in args.kinds:
        found, sizes = [], sorted(set(args.rows))
        for n_rows in sizes:
            command = [sys.executable, __file__, "--width", str(args.width)]
            command += ["--one", kind, str(n_rows)]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            found.append(json.loads(done.stdout.splitlines()[-1]))
        for what in ("fit", "score"):
            values = [record[f"{what}_s"] for record in found]
            slope = exponent(sizes, values)
            by_rows = {n: rounded(v) for n, v in zip(sizes, values, strict=True)}
            more = {"seconds_by_rows": by_rows, "width": args.width}
            if what == "fit":
                more["mib_by_rows"] = {
                    n: rounded(record["mib"]) for n, record in zip(sizes, found, strict=True)
                }
            row = f"{kind} {what}: {rounded(values[-1]):g} s for {sizes[-1]:,} rows"
            emit("growth", row, ours=slope, unit="exponent", **more)


if __name__ == "__main__":
    main()
