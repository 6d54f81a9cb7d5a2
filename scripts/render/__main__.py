"""Render musical loops with FluidSynth and the FluidR3 GM soundfont, with labels.

Three outputs: shards for pretraining (default), single WAV or FLAC files (--wav), or the demo
corpus that ships with the package (--demo). Everything follows from --seed. Needs the programs
of the Debian packages fluidsynth and fluid-soundfont-gm.

    python -m scripts.render -o DIR --n 16000
    python -m scripts.render -o DIR --n 20 --families bass,guitar --wav flac
    python -m scripts.render -o DIR --n 20 --wav wav --folders --paired
    python -m scripts.render --demo -o loopjax/data/demo
"""

import argparse
import csv
import os
import shutil
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from itertools import repeat
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from scripts.render.demo import write_demo
from scripts.render.loops import RenderedLoop, render
from scripts.render.midi import SAMPLE_RATE_HZ, SOUNDFONT
from scripts.render.output import merge_labels, write_files, write_shard
from scripts.render.plans import DEGRADATIONS, draw_plan, undegraded
from scripts.render.programs import FAMILIES

SHARD_LOOPS = 250
_BATCH_LOOPS = 50


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-o", "--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--n", type=int, default=1000, help="number of loops (default 1000)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--families", default=",".join(FAMILIES), help="comma-separated")
    parser.add_argument(
        "--split",
        choices=("train", "heldout", "all"),
        default="train",
        help="which programs and keys: those for training, those held out, or all",
    )
    parser.add_argument("--degraded-fraction", type=float, default=0.35, metavar="FRACTION")
    parser.add_argument(
        "--degradations",
        default=",".join(DEGRADATIONS),
        help="comma-separated; one that is named twice comes twice as often",
    )
    parser.add_argument(
        "--least-strength",
        type=float,
        default=0.0,
        metavar="FRACTION",
        help="degrade from here in each range of strengths",
    )
    parser.add_argument(
        "--paired", action="store_true", help="each degraded loop also as it was before"
    )
    parser.add_argument(
        "--longest-s", type=float, default=float("inf"), help="leave longer loops out"
    )
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes")
    parser.add_argument("--wav", choices=("wav", "flac"), help="write single files, not shards")
    parser.add_argument(
        "--folders",
        action="store_true",
        help="with --wav: a folder per program and degradation, and labels_SEED.csv",
    )
    parser.add_argument("--demo", action="store_true", help="write the bundled demo corpus")
    arguments = parser.parse_args(argv)
    for name, known in (("families", FAMILIES), ("degradations", DEGRADATIONS)):
        wanted = tuple(getattr(arguments, name).split(","))
        unknown = [w for w in wanted if w not in known]
        if unknown:
            parser.error(f"unknown {name} {unknown}; known: {', '.join(known)}")
        setattr(arguments, name, wanted)
    fractions = (arguments.degraded_fraction, arguments.least_strength)
    if arguments.n < 1 or not all(0 <= fraction <= 1 for fraction in fractions):
        parser.error("--n must be positive; fractions lie within 0..1")
    if shutil.which("fluidsynth") is None or not SOUNDFONT.exists():
        parser.error(f"needs the fluidsynth program and {SOUNDFONT} (fluid-soundfont-gm)")
    return arguments


def render_range(arguments: argparse.Namespace, start: int, stop: int) -> list[RenderedLoop]:
    """Render loops start..stop-1 of the seeded sequence in batches of one FluidSynth run."""
    loops: list[RenderedLoop] = []
    for first in range(start, stop, _BATCH_LOOPS):
        plans = [
            draw_plan(
                i,
                arguments.seed,
                arguments.families,
                arguments.split,
                arguments.degraded_fraction,
                arguments.degradations,
                arguments.least_strength,
            )
            for i in range(first, min(first + _BATCH_LOOPS, stop))
        ]
        if arguments.paired:
            plans += [undegraded(plan) for plan in plans if plan.degradation != "none"]
        loops += render(plans)
    longest_samples = arguments.longest_s * SAMPLE_RATE_HZ
    return [loop for loop in loops if len(loop.samples) <= longest_samples]


def work(arguments: argparse.Namespace, number: int) -> list[dict[str, object]]:
    """Render and write shard `number`; return label rows when single files are written."""
    start = number * SHARD_LOOPS
    loops = render_range(arguments, start, min(start + SHARD_LOOPS, arguments.n))
    if arguments.wav:
        return write_files(arguments.out, arguments.wav, loops, arguments.folders)
    write_shard(arguments.out, number, loops)
    return []


def main(argv: list[str] | None = None) -> int:
    """Render what the command line asks for; complete shards of an earlier run are kept."""
    arguments = parse_arguments(argv)
    arguments.out.mkdir(parents=True, exist_ok=True)
    console = Console(stderr=True)
    if arguments.demo:
        console.print(f"{write_demo(arguments.out)} loops in {arguments.out}")
        return 0
    numbers = [
        number
        for number in range(-(-arguments.n // SHARD_LOOPS))
        if arguments.wav or not (arguments.out / f"shard-{number:05d}.parquet").exists()
    ]
    rows: list[dict[str, object]] = []
    began = time.monotonic()
    with (
        Progress(console=console, disable=not console.is_terminal) as progress,
        ProcessPoolExecutor(arguments.workers) as pool,
    ):
        task = progress.add_task("rendering", total=len(numbers))
        for done, part in enumerate(pool.map(work, repeat(arguments), numbers), start=1):
            rows += part
            progress.advance(task)
            n_labels = len(rows) if arguments.wav else merge_labels(arguments.out)
            if not console.is_terminal:
                elapsed_s = time.monotonic() - began
                console.print(f"{done}/{len(numbers)} parts, {n_labels} loops, {elapsed_s:.0f} s")
    if arguments.wav:
        name = f"labels_{arguments.seed}.csv" if arguments.folders else "labels.csv"
        with (arguments.out / name).open("w", newline="") as handle:
            writer = csv.DictWriter(handle, fieldnames=list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
