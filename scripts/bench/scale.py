"""Time and memory of `fit` and `score` on stores of growing size, as the command line runs them.

    python scripts/bench/scale.py --rows 10000 1000000 --kinds pca knn --width 768
    python scripts/bench/scale.py --memory --rows 200000 2000000 --kinds pca

Stores are written once (`large_store.py`); every command runs in a fresh process. One line per
detector and command: seconds by the clock, seconds of all cores together and peak resident memory
by rows, and the slope of log seconds of the cores, which a busy machine changes little, over log
rows between the smallest size and the largest; 1 is linear. With --memory the line is about how
much more memory the largest size takes than the smallest, scored by the model of the last size. A
missed target ends the program with 1.
"""

import json
import math
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from large_store import write_store
from measure import REPOSITORY, arguments, emit, rounded

from loopjax.detectors import detector_kinds

MAX_EXPONENT = 1.05
MAX_GROWTH = 1.2  # of memory, from 200,000 rows to ten times as many
MAX_MIB = {"pca": 1430}  # at a million rows of 768 numbers: 1.5 GB
RUN = (
    "import json, resource, sys, time\n"
    "from loopjax.cli import main\n"
    "started, cpu = time.perf_counter(), time.process_time()\n"
    "status = main(sys.argv[1:])\n"
    "peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024\n"
    "cpu = time.process_time() - cpu\n"
    "print(json.dumps([status, time.perf_counter() - started, cpu, peak]))\n"
)


def run(*command: object) -> tuple[float, float, float]:
    """Seconds by the clock, of all cores, and peak MiB of a command in a fresh process."""
    done = subprocess.run(
        [sys.executable, "-c", RUN, *map(str, command)],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )
    status, *found = json.loads(done.stdout.splitlines()[-1])
    if status != 0:
        raise SystemExit(f"loopjax {' '.join(map(str, command))} ended with {status}")
    seconds, cpu_s, mib = found
    return seconds, cpu_s, mib


def main() -> None:
    """Runs every detector on every size."""
    parser = arguments(__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 1_000_000])
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--kinds", nargs="+", default=detector_kinds(), choices=detector_kinds())
    parser.add_argument("--memory", action="store_true", help="compare memory instead of time")
    parser.add_argument("--stores", type=Path, help="folder that keeps the stores; default: none")
    args = parser.parse_args()
    few, many = min(args.rows), max(args.rows)
    missed = []
    with tempfile.TemporaryDirectory() as temporary:
        stores = {n: (args.stores or Path(temporary)) / f"{args.width}-{n}" for n in args.rows}
        for n_rows, store in stores.items():
            if not store.exists():
                write_store(store, n_rows, args.width)
        for kind in args.kinds:
            model, scores = Path(temporary) / f"model-{kind}", Path(temporary) / "scores.parquet"
            found: dict[str, dict[int, tuple[float, float, float]]] = {"fit": {}, "score": {}}
            for n_rows, store in stores.items():
                found["fit"][n_rows] = run("fit", store, "-o", model, "--detector", kind)
                if not args.memory:
                    found["score"][n_rows] = run("score", model, store, "-o", scores)
            if args.memory:  # by one model, so that only the store grows
                for n_rows, store in stores.items():
                    found["score"][n_rows] = run("score", model, store, "-o", scores)
            for what, by_rows in found.items():
                _, cpu_s, mib = by_rows[many]
                if args.memory:
                    ours, unit = mib / by_rows[few][2], f"times the memory of {few} rows"
                    target, limit_mib = MAX_GROWTH, None
                else:
                    slope = math.log(cpu_s / by_rows[few][1]) / math.log(many / few)
                    ours, unit, target = slope, "exponent", MAX_EXPONENT
                    limit_mib = MAX_MIB.get(kind) if (many, args.width) == (10**6, 768) else None
                passed = ours <= target and (limit_mib is None or mib <= limit_mib)
                row = f"{kind} {what}, {few} to {many} rows of {args.width} numbers"
                if not passed:
                    missed.append(row)
                emit(
                    "scale",
                    row,
                    ours=ours,
                    unit=unit,
                    higher_is_better=False,
                    target=f"<= {target}" + (f", {limit_mib} MiB" if limit_mib else ""),
                    passed=passed,
                    seconds_by_rows={n: rounded(value[0]) for n, value in by_rows.items()},
                    cpu_s_by_rows={n: rounded(value[1]) for n, value in by_rows.items()},
                    mib_by_rows={n: rounded(value[2]) for n, value in by_rows.items()},
                )
    if missed:
        raise SystemExit(f"missed: {'; '.join(missed)}")


if __name__ == "__main__":
    main()
