"""Disturbs workers that embed one corpus together, and checks that nothing is lost or changed.

    python -m scripts.faults.kill_workers [--files 400] [--blows 20] [--workers 4] [--seed 0]

A corpus of synthetic loops is embedded once by a run of its own and once by workers, of which a
random one is hit again and again: killed, told to stop, or made to hang until its units have been
taken from it and then woken. A new one joins for each that is gone. Prints one line per blow and a
verdict; exit status 1 if any promise is broken.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from loopjax.store.read import part_files
from scripts.faults.kill_embed import complete, verdict, write_corpus

LEASE_S = 3.0
BLOWS = (signal.SIGKILL, signal.SIGTERM, signal.SIGSTOP)
# Done, done with rejected files, killed, stopped in order, stopped before it listens.
ENDS = (0, 3, -signal.SIGKILL, 128 + signal.SIGTERM, -signal.SIGTERM)


def disturb(
    start: Callable[[], subprocess.Popen],
    out: Path,
    n_blows: int,
    n_workers: int,
    rng: random.Random,
) -> None:
    """Lets workers finish a store while they are hit.

    Args:
        start: starts one more worker.
        out: the store.
        n_blows: how often one is hit, as long as they are at work.
        n_workers: how many are at work.
        rng: chooses whom, when and how.

    Raises:
        AssertionError: a worker ended in another way than it was made to.
    """
    workers = [start() for _ in range(n_workers)]
    hanging: list[tuple[subprocess.Popen, float]] = []
    ended: list[subprocess.Popen] = []
    for number in range(1, n_blows + 1):
        before, patience_s = len(part_files(out)), time.monotonic() + 20
        while len(part_files(out)) == before and time.monotonic() < patience_s:
            time.sleep(0.02)
        time.sleep(rng.uniform(0, 0.5))
        for worker, until_s in [entry for entry in hanging if entry[1] < time.monotonic()]:
            hanging.remove((worker, until_s))
            worker.send_signal(signal.SIGCONT)
            ended.append(worker)
        alive = [worker for worker in workers if worker.poll() is None]
        if not alive:
            break
        victim, blow = rng.choice(alive), BLOWS[number % len(BLOWS)]
        victim.send_signal(blow)
        workers.remove(victim)
        workers.append(start())
        if blow == signal.SIGSTOP:
            hanging.append((victim, time.monotonic() + 2 * LEASE_S))
        else:
            ended.append(victim)
        print(f"{number:3d}: {blow.name}, {len(part_files(out)):4d} units done", flush=True)
    for worker, until_s in hanging:
        time.sleep(max(0.0, until_s - time.monotonic()))
        worker.send_signal(signal.SIGCONT)
        ended.append(worker)
    for worker in (*workers, *ended):
        _, errors = worker.communicate(timeout=300)
        assert worker.returncode in ENDS, (worker.returncode, errors)
        assert "Traceback" not in errors, errors


def start_worker(corpus: Path, out: Path, encoder: str) -> subprocess.Popen:
    """Starts `loopjax embed --worker` with small units, so that every blow finds some open."""
    inputs = [str(corpus), "-o", str(out), "--encoder", encoder, "--workers", "1"]
    sharing = ["--worker", "--unit-files", "8", "--lease", f"{LEASE_S:g}"]
    return subprocess.Popen(
        [sys.executable, "-m", "loopjax", "embed", *inputs, *sharing],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )


def main() -> int:
    """Runs the trial."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--files", type=int, default=400)
    parser.add_argument("--blows", type=int, default=20)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--encoder", default="loopjax-nano")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        corpus, clean, shared = (Path(temporary) / name for name in ("corpus", "clean", "shared"))
        write_corpus(corpus, args.files, args.seed)
        print(f"undisturbed: {complete(corpus, clean, args.encoder):.1f} s")
        started = time.monotonic()
        disturb(
            lambda: start_worker(corpus, shared, args.encoder),
            shared,
            args.blows,
            args.workers,
            random.Random(args.seed),
        )
        print(f"disturbed: {time.monotonic() - started:.1f} s")
        return verdict(clean, shared)


if __name__ == "__main__":
    sys.exit(main())
