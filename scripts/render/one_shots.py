"""A small sample library with one kind of sound per folder: drums, single notes, beats.

    python -m scripts.render.one_shots out/one-shots --seed 0
    python scripts/bench/library.py planted out/one-shots

Its folders are as uneven as real ones: some hold one drum, others whatever is electronic or left
over. The folds and the shrinkage of `loopjax mislabelled` were chosen on seeds 0 to 2. Everything
follows from the seed. Needs the Debian packages fluidsynth and fluid-soundfont-gm.
"""

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile as sf
from numpy.typing import NDArray
from scipy import signal

from scripts.render.midi import (
    SAMPLE_RATE_HZ,
    Event,
    note_off,
    note_on,
    render_segments,
    setup,
)

DRUMS = 9  # the channel of drum kits
KITS = (0, 8, 16, 24, 25, 32, 40, 48)
ELECTRONIC = (24, 25)
SILENT_DB = -50.0  # below the peak: the rest of a sound is cut off
LONGEST_S = 6.0

Sound = tuple[list[Event], int]  # events and length in samples
Draw = Callable[[np.random.Generator], Sound]


@dataclass(frozen=True)
class Folder:
    """A kind of sounds: how many there are, and how one is drawn."""

    name: str
    n: int
    draw: Draw


def hit(kits: tuple[int, ...], notes: tuple[int, ...]) -> Draw:
    """One stroke of a drum."""

    def draw(rng: np.random.Generator) -> Sound:
        note = int(rng.choice(notes))
        events = [(0, message) for message in setup(DRUMS, int(rng.choice(kits)))]
        events.append((0, note_on(DRUMS, note, int(rng.integers(60, 127)))))
        return events, 2 * SAMPLE_RATE_HZ

    return draw


def tone(programs: range, low: int, high: int, longest_s: float = 2.0) -> Draw:
    """One note of an instrument, or sometimes three at once."""

    def draw(rng: np.random.Generator) -> Sound:
        pitch = int(rng.integers(low, high))
        chord = (0, 4, 7) if rng.random() < 0.2 else (0,)
        length = int(rng.uniform(0.2, longest_s) * SAMPLE_RATE_HZ)
        events = [(0, message) for message in setup(0, int(rng.choice(programs)))]
        events += [(0, note_on(0, pitch + step, int(rng.integers(60, 127)))) for step in chord]
        events += [(length, note_off(0, pitch + step)) for step in chord]
        return events, length + SAMPLE_RATE_HZ

    return draw


def beat(rng: np.random.Generator) -> Sound:
    """One or two bars of a drum kit."""
    step = int(60 / rng.uniform(80, 170) / 4 * SAMPLE_RATE_HZ)
    steps = 16 * int(rng.integers(1, 3))
    events = [(0, message) for message in setup(DRUMS, int(rng.choice(KITS)))]
    for note, density in ((36, 0.3), (38, 0.2), (42, 0.6), (46, 0.1)):
        pattern = rng.random(16) < density
        strokes = [i for i in range(steps) if pattern[i % 16]]
        events += [(i * step, note_on(DRUMS, note, int(rng.integers(70, 127)))) for i in strokes]
    return sorted(events, key=lambda event: event[0]), steps * step


def any_of(*draws: Draw) -> Draw:
    """Whatever there is."""
    return lambda rng: draws[rng.integers(len(draws))](rng)


KICK, SNARE, HAT = hit(KITS, (35, 36)), hit(KITS, (38, 40)), hit(KITS, (42, 44, 46))
PAD, EFFECT = tone(range(88, 96), 40, 70, 5.0), tone(range(96, 104), 40, 70, 4.0)
ELECTRO = any_of(hit(ELECTRONIC, tuple(range(35, 82))), tone(range(80, 88), 40, 90))
FOLDERS = (
    Folder("kick", 15, KICK),
    Folder("snare", 8, SNARE),
    Folder("hat", 20, HAT),
    Folder("tom", 9, hit(KITS, (41, 43, 45, 47, 48, 50))),
    Folder("cymbal", 6, hit(KITS, (49, 51, 52, 55, 57, 59))),
    Folder("drum", 20, any_of(KICK, SNARE, HAT, hit(KITS, tuple(range(41, 60))))),
    Folder("hand", 24, hit((0,), tuple(range(60, 69)))),
    Folder("perc", 10, hit((0,), (54, 56, 58, *range(69, 82)))),
    Folder("electro", 22, ELECTRO),
    Folder("bass", 10, tone(range(32, 40), 28, 48)),
    Folder("guitar", 5, tone(range(24, 32), 40, 70)),
    Folder("keys", 6, tone(range(0, 16), 48, 84)),
    Folder("wind", 4, tone(range(56, 80), 48, 80)),
    Folder("pad", 11, any_of(PAD, tone(range(48, 56), 40, 70, 5.0))),
    Folder("effect", 8, any_of(EFFECT, tone(range(120, 128), 40, 70, 3.0))),
    Folder("beat", 16, beat),
    Folder("rest", 5, any_of(KICK, HAT, PAD, EFFECT, tone(range(0, 120), 36, 84))),
)


def audible(sound: NDArray[np.float32]) -> NDArray[np.float32]:
    """A sound without its silent end, its peak at 1."""
    peak = max(float(np.abs(sound).max()), 1e-9)
    loud = np.flatnonzero(np.abs(sound) > peak * 10 ** (SILENT_DB / 20))
    return sound[: loud[-1] + 1 if len(loud) else 1] / peak


def processed(sound: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    """A sound as a library holds it: cut, sometimes driven, filtered or reversed, and loud."""
    out = audible(sound)[: int(LONGEST_S * SAMPLE_RATE_HZ)]
    if rng.random() < 0.25:
        out = np.tanh(rng.uniform(2, 10) * out)
    if rng.random() < 0.25:
        kind = "lowpass" if rng.random() < 0.5 else "highpass"
        edge = np.exp(rng.uniform(np.log(300), np.log(6000)))
        out = signal.sosfilt(signal.butter(2, edge, kind, fs=SAMPLE_RATE_HZ, output="sos"), out)
    if rng.random() < 0.07:
        out = out[::-1]
    peak = max(float(np.abs(out).max()), 1e-9)
    return (out / peak * rng.uniform(0.3, 0.95)).astype(np.float32)


def write_library(out: Path, seed: int) -> int:
    """Writes `OUT/FOLDER/NN.flac`; returns how many."""
    rng = np.random.default_rng(seed)
    names = [(folder.name, i) for folder in FOLDERS for i in range(folder.n)]
    sounds = render_segments([folder.draw(rng) for folder in FOLDERS for _ in range(folder.n)])
    for (name, i), sound in zip(names, sounds, strict=True):
        (out / name).mkdir(parents=True, exist_ok=True)
        file = out / name / f"{i:02d}.flac"
        sf.write(file, processed(sound, rng), SAMPLE_RATE_HZ, subtype="PCM_16")
    return len(names)


def main(argv: list[str] | None = None) -> int:
    """Writes one library."""
    parser = argparse.ArgumentParser(description="Renders a small library of one-shots.")
    parser.add_argument("out", type=Path, metavar="DIR")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args(argv)
    print(write_library(arguments.out, arguments.seed))
    return 0


if __name__ == "__main__":
    sys.exit(main())
