"""Drum grooves, as notes of the General MIDI percussion map."""

from collections.abc import Callable

import numpy as np

from .harmony import Note, Setting

KICK, SIDE_STICK, SNARE, CLAP = 36, 37, 38, 39
CLOSED_HAT, OPEN_HAT, RIDE, CRASH = 42, 46, 51, 49
TOMS = (41, 43, 45, 47, 48, 50)
HAND = (60, 61, 62, 63, 64, 54, 56, 69, 70, 75, 76, 77)


def _hits(setting: Setting, parts: dict[int, list[tuple[float, float]]]) -> list[Note]:
    """Repeat one bar of {drum: [(beat, accent)]} over all bars."""
    return [
        Note(start + beat, 0.2, drum, accent)
        for start, _ in setting.bar_starts()
        for drum, events in parts.items()
        for beat, accent in events
        if beat < setting.beats_per_bar
    ]


def _steps(setting: Setting, step: float) -> list[float]:
    return [i * step for i in range(round(setting.beats_per_bar / step))]


def _pulse(setting: Setting, step: float, accent: float = 0.5) -> list[tuple[float, float]]:
    return [(b, accent + 0.25 * (b % 1 == 0)) for b in _steps(setting, step)]


def _scatter(
    setting: Setting, rng: np.random.Generator, step: float, fraction: float
) -> list[tuple[float, float]]:
    return [
        (b, float(rng.uniform(0.4, 0.9))) for b in _steps(setting, step) if rng.random() < fraction
    ]


def rock_beat(setting: Setting, rng: np.random.Generator) -> list[Note]:
    """Kick, backbeat snare and eighth hats."""
    cymbal = int(rng.choice([CLOSED_HAT, CLOSED_HAT, RIDE]))
    kick = [(0.0, 1.0), (2.0, 0.9), *_scatter(setting, rng, 0.5, 0.2)]
    snare = [(1.0, 0.9), (3.0, 0.9)]
    notes = _hits(setting, {KICK: kick, SNARE: snare, cymbal: _pulse(setting, 0.5)})
    if rng.random() < 0.4:
        notes.append(Note(0.0, 0.5, CRASH, 0.8))
    return notes


def four_on_the_floor(setting: Setting, rng: np.random.Generator) -> list[Note]:
    """House: kick on every beat, off-beat open hat, clap."""
    parts = {
        KICK: [(b, 0.95) for b in _steps(setting, 1.0)],
        OPEN_HAT: [(b + 0.5, 0.6) for b in _steps(setting, 1.0)],
        int(rng.choice([CLAP, SNARE])): [(1.0, 0.8), (3.0, 0.8)],
    }
    if rng.random() < 0.5:
        parts[CLOSED_HAT] = _pulse(setting, 0.25, 0.3)
    return _hits(setting, parts)


def breakbeat(setting: Setting, rng: np.random.Generator) -> list[Note]:
    """Syncopated kicks, ghosted snares, sixteenth hats."""
    kick = [(0.0, 1.0), (0.5, 0.8), (2.5, 0.9), *_scatter(setting, rng, 0.25, 0.08)]
    snare = [(1.0, 0.95), (3.0, 0.95), *((b, 0.25) for b, _ in _scatter(setting, rng, 0.25, 0.2))]
    return _hits(
        setting,
        {KICK: kick, SNARE: snare, CLOSED_HAT: _pulse(setting, float(rng.choice([0.25, 0.5])))},
    )


def shuffle_beat(setting: Setting, rng: np.random.Generator) -> list[Note]:
    """Triplet ride with backbeat, jazz and blues."""
    ride = [(b, 0.7) for b in _steps(setting, 1.0)]
    ride += [(b + 2 / 3, 0.5) for b in _steps(setting, 1.0) if b % 2 == 1 or rng.random() < 0.5]
    kick = [(0.0, 0.8), (2.0, 0.7), *_scatter(setting, rng, 1.0, 0.2)]
    backbeat = int(rng.choice([SNARE, SIDE_STICK]))
    return _hits(setting, {RIDE: ride, backbeat: [(1.0, 0.7), (3.0, 0.7)], KICK: kick})


def half_time(setting: Setting, rng: np.random.Generator) -> list[Note]:
    """Snare on three only, fast hats (trap)."""
    kick = [(0.0, 1.0), *_scatter(setting, rng, 0.5, 0.25)]
    hats = _pulse(setting, float(rng.choice([0.25, 0.5, 1 / 3])))
    return _hits(setting, {KICK: kick, SNARE: [(2.0, 1.0)], CLOSED_HAT: hats})


def tom_groove(setting: Setting, rng: np.random.Generator) -> list[Note]:
    """Toms in sixteenths or eighths over a kick pulse."""
    step = float(rng.choice([0.25, 0.5]))
    parts: dict[int, list[tuple[float, float]]] = {KICK: [(0.0, 0.9), (2.0, 0.8)]}
    for beat in _steps(setting, step):
        if rng.random() < 0.75:
            parts.setdefault(int(rng.choice(TOMS)), []).append((beat, float(rng.uniform(0.5, 1))))
    return _hits(setting, parts)


def hand_percussion(setting: Setting, rng: np.random.Generator) -> list[Note]:
    """Two to four hand drums and shakers in interlocking rhythms."""
    drums = rng.choice(HAND, size=int(rng.integers(2, 5)), replace=False)
    parts = {
        int(d): [(0.0, 0.8), *_scatter(setting, rng, 0.25, rng.uniform(0.2, 0.6))] for d in drums
    }
    return _hits(setting, parts)


def drum_hit(setting: Setting, rng: np.random.Generator) -> list[Note]:
    """A single hit of any drum."""
    drum = rng.choice([KICK, SNARE, CLAP, CLOSED_HAT, OPEN_HAT, RIDE, CRASH, *TOMS, *HAND])
    return [Note(0.0, 0.5, int(drum), float(rng.uniform(0.5, 1.0)))]


DRUM_PATTERNS: dict[str, Callable[[Setting, np.random.Generator], list[Note]]] = {
    p.__name__: p
    for p in (
        rock_beat,
        four_on_the_floor,
        breakbeat,
        shuffle_beat,
        half_time,
        tom_groove,
        hand_percussion,
        drum_hit,
    )
}
