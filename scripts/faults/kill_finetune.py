"""Kills a fine-tuning at random moments, and checks that its weights come out as if nothing was.

    python -m scripts.faults.kill_finetune [CONFIG] [--kills 10] [--seed 0] [--set KEY=VALUE ...]

The training runs once undisturbed. Then it is started again in a place of its own, and SIGKILL is
sent to its whole process group at a random moment; the same command goes on in the same place and
is killed again. Whenever it gets to its end, every byte of the encoder's arrays and the whole curve
are compared, and the next run begins anew. Ends with "0 of N places differ", or exit code 1.
"""

import argparse
import json
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path

from loopjax.arrays import read_arrays
from loopjax.experiment.finetune import RECORD
from scripts.faults.kill_verbs import complete, killed, left_behind

QUICK = ("optimizer.steps=24", "every_steps=4", "detectors=[]")


def differs(place: Path, whole: Path) -> str:
    """What differs between two finished trainings; or ""."""
    found, expected = (read_arrays(p / "encoder" / "weights") for p in (place, whole))
    if found.keys() != expected.keys():
        return "other arrays"
    names = [n for n, value in expected.items() if value.tobytes() != found[n].tobytes()]
    configs = [(p / "encoder" / "config.json").read_bytes() for p in (place, whole)]
    curves = [json.loads((p / RECORD).read_text("utf-8"))["curve"] for p in (place, whole)]
    names += ["config.json"] if configs[0] != configs[1] else []
    return ", ".join([*names, *(["curve"] if curves[0] != curves[1] else [])])


def main(config: str, n_kills: int, seed: int, overrides: list[str]) -> int:
    """Runs the kills; returns how many finished places differ."""
    rng, folder = random.Random(seed), Path(tempfile.mkdtemp())
    settings = [part for override in overrides for part in ("--set", override)]

    def arguments(place: Path) -> list[str]:
        return ["finetune", config, "-o", str(place), *settings]

    whole, started_s = folder / "whole", time.monotonic()
    if problem := complete(arguments(whole)):
        sys.exit(f"undisturbed: {problem}")
    takes_s = time.monotonic() - started_s
    print(f"undisturbed: {takes_s:.0f} s", flush=True)
    n_places, n_different, n_killed = 0, 0, 0
    while n_killed < n_kills or n_places == 0:
        place = folder / f"place-{n_places}"
        n_places += 1
        while n_killed < n_kills:
            after_s, started_s = takes_s * rng.uniform(0.2, 0.9), time.monotonic()
            if not killed(arguments(place), after_s):
                takes_s = min(takes_s, time.monotonic() - started_s)  # less, once all is compiled
                break
            n_killed += 1
            print(f"{n_killed:3d} killed after {after_s:.1f} s", flush=True)
        problem = complete(arguments(place)) or differs(place, whole)
        problem = problem or " ".join(left_behind(place))
        n_different += bool(problem)
        print(f"place {n_places}: {problem or 'every byte is equal'}", flush=True)
        if not problem:
            shutil.rmtree(place)
    print(f"{n_killed} kills; {n_different} of {n_places} places differ")
    if not n_different:
        shutil.rmtree(folder)
    return n_different


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("config", nargs="?", default="finetune_demo")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    options = parser.parse_args()
    sys.exit(main(options.config, options.kills, options.seed, [*QUICK, *options.set]))
