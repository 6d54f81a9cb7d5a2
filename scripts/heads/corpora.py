"""Corpora on which heads are compared: loops in one folder per group, and their embeddings.

    python -m scripts.heads.corpora -o out/corpora --sonic-pi ../shared/data/sonic-pi

`programs`: 16 rendered loops of each of the 25 General MIDI programs that the bundled encoder was
not trained on. `familiar`: 12 loops of each of 32 programs that it was trained on, for whoever
wants to choose something. `sonic-pi`: the samples of Sonic Pi (a folder of FLAC files, public
domain), by the first word of their names, where at least 8 share it. Everything follows from one
seed. Rendering needs the Debian packages fluidsynth and fluid-soundfont-gm.
"""

import argparse
import os
import shutil
import sys
from collections import defaultdict
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from itertools import repeat
from pathlib import Path

import soundfile as sf
from rich.console import Console

from scripts.render.loops import render
from scripts.render.midi import SAMPLE_RATE_HZ
from scripts.render.plans import LoopPlan, draw_plan
from scripts.render.programs import FAMILIES, program_name

SEED = 1126
LOOPS = {"programs": 16, "familiar": 12}
FAMILIAR_PER_FAMILY = 2
SPARE = 8  # a loop that came out silent is replaced by a spare one
SMALLEST_PREFIX = 8

Program = tuple[str, int]  # family and number


def programs_of(corpus: str) -> list[Program]:
    """The programs of a rendered corpus; the two corpora share none."""
    if corpus == "programs":
        return [(name, program) for name, f in FAMILIES.items() for program in f.held_out]
    return [
        (name, program)
        for name, f in FAMILIES.items()
        for program in [p for p in f.programs if p not in f.held_out][:FAMILIAR_PER_FAMILY]
    ]


def plans_of(corpus: str, program: Program) -> list[LoopPlan]:
    """Clean loops of one program, each with its own key, tempo, pattern and effects."""
    family, number = program
    seed = SEED + 1000 * list(FAMILIES).index(family) + number
    drawn = (
        draw_plan(i, seed, (family,), "all", degraded_fraction=0.0)
        for i in range(LOOPS[corpus] + SPARE)
    )
    return [replace(plan, program=number) for plan in drawn]


def write_program(corpus: str, program: Program, folder: Path) -> None:
    """Renders a program's loops into a folder of its own."""
    own = folder / program_name(*program)
    loops = render(plans_of(corpus, program))[: LOOPS[corpus]]
    if len(loops) < LOOPS[corpus]:
        raise RuntimeError(f"{own.name}: only {len(loops)} of {LOOPS[corpus]} loops sound")
    own.mkdir(parents=True, exist_ok=True)
    for i, loop in enumerate(loops):
        sf.write(own / f"{i:02d}.flac", loop.samples, SAMPLE_RATE_HZ, subtype="PCM_16")


def copy_by_prefix(source: Path, folder: Path) -> None:
    """Copies samples into folders by the first word of their names; rare words are left out."""
    groups: dict[str, list[Path]] = defaultdict(list)
    for file in sorted(source.glob("*.flac")):
        groups[file.name.split("_")[0]].append(file)
    for name, files in groups.items():
        if len(files) >= SMALLEST_PREFIX:
            (folder / name).mkdir(parents=True, exist_ok=True)
            for file in files:
                shutil.copyfile(file, folder / name / file.name)


def main(argv: list[str] | None = None) -> int:
    """Writes `OUT/NAME/loops` and `OUT/NAME/embeddings` for every corpus asked for."""
    from loopjax.config import EmbedConfig
    from loopjax.embedding.chain import embed_corpus
    from loopjax.encoders.load import load_encoder

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-o", "--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--sonic-pi", type=Path, metavar="DIR", help="folder of Sonic Pi's samples")
    parser.add_argument("--only", nargs="+", choices=tuple(LOOPS), default=tuple(LOOPS))
    arguments = parser.parse_args(argv)
    console = Console(stderr=True)
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        for corpus in arguments.only:
            folder, chosen = arguments.out / corpus / "loops", programs_of(corpus)
            list(pool.map(write_program, repeat(corpus), chosen, repeat(folder)))
            console.print(f"{corpus}: {LOOPS[corpus]} loops of each of {len(chosen)} programs")
    corpora = list(arguments.only)
    if arguments.sonic_pi is not None:
        corpora.append("sonic-pi")
        copy_by_prefix(arguments.sonic_pi, arguments.out / "sonic-pi" / "loops")
    encoder = load_encoder("loopjax-nano")
    for corpus in corpora:
        folder = arguments.out / corpus
        embed_corpus([str(folder / "loops")], encoder, folder / "embeddings", EmbedConfig())
        console.print(f"{corpus}: embedded")
    return 0


if __name__ == "__main__":
    sys.exit(main())
