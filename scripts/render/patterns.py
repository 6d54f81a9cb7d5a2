"""Melodic pattern families: each turns a musical setting into notes."""

from collections.abc import Callable

import numpy as np

from .drums import DRUM_PATTERNS
from .harmony import Note, Setting

Pattern = Callable[[Setting, np.random.Generator], list[Note]]


def _grid(setting: Setting, step: float) -> list[float]:
    return [i * step for i in range(round(setting.beats_per_bar / step))]


def _accent(beat: float) -> float:
    if beat == 0:
        return 1.0
    return 0.75 if beat == int(beat) else 0.4


def root_eighths(setting: Setting, rng: np.random.Generator) -> list[Note]:
    """Steady eighths on the chord root with an occasional approach note."""
    notes = []
    for start, degree in setting.bar_starts():
        for beat in _grid(setting, 0.5):
            last = beat == setting.beats_per_bar - 0.5 and rng.random() < 0.4
            step = degree + (int(rng.choice([-1, 1, 4])) if last else 0)
            notes.append(Note(start + beat, 0.5, setting.fold(setting.pitch(step)), _accent(beat)))
    return notes


def root_fifth(setting: Setting, rng: np.random.Generator) -> list[Note]:
    """Root and fifth on the beats, country and polka style."""
    upper = int(rng.choice([4, 4, 7]))
    return [
        Note(
            start + beat,
            1.0,
            setting.fold(setting.pitch(degree + (upper if i % 2 else 0))),
            _accent(beat),
        )
        for start, degree in setting.bar_starts()
        for i, beat in enumerate(_grid(setting, 1.0))
    ]


def walking(setting: Setting, rng: np.random.Generator) -> list[Note]:
    """Quarter notes stepping through the scale towards the next root."""
    notes = []
    position = setting.degrees[0]
    for start, degree in setting.bar_starts():
        position = degree if rng.random() < 0.8 else position
        for beat in _grid(setting, 1.0):
            pitch = setting.fold(setting.pitch(position))
            notes.append(Note(start + beat, 1.0, pitch, _accent(beat)))
            if rng.random() < 0.15:
                notes.append(Note(start + beat + 0.5, 0.5, pitch, 0.3))
            position += int(rng.choice([-2, -1, 1, 1, 2]))
    return notes


def arpeggio(setting: Setting, rng: np.random.Generator) -> list[Note]:
    """Chord tones one after another, upwards, downwards or in a rolled order."""
    step = float(rng.choice([0.25, 0.5, 0.5, 1 / 3]))
    size = int(rng.choice([3, 4]))
    order = [list(range(size)), list(range(size))[::-1], [0, 2, 1, 2][:size]][rng.integers(3)]
    return [
        Note(
            start + beat,
            step,
            setting.chord(degree, size)[order[i % len(order)] % size],
            _accent(beat),
        )
        for start, degree in setting.bar_starts()
        for i, beat in enumerate(_grid(setting, step))
    ]


def _motif(
    setting: Setting, rng: np.random.Generator, step: float, density: float, spread: int
) -> list[tuple[float, float, int]]:
    """Draw one bar of (beat, length, scale step), never empty and always with a downbeat."""
    beats = [b for b in _grid(setting, step) if b == 0 or rng.random() < density]
    ends = [*beats[1:], float(setting.beats_per_bar)]
    steps = rng.integers(-spread, spread + 1, size=len(beats))
    steps[0] = 0
    return [(beat, end - beat, int(s)) for beat, end, s in zip(beats, ends, steps, strict=True)]


def riff(setting: Setting, rng: np.random.Generator) -> list[Note]:
    """One-bar motif repeated over the chords, pentatonic in feeling."""
    motif = _motif(setting, rng, float(rng.choice([0.25, 0.5])), rng.uniform(0.35, 0.8), 4)
    return [
        Note(
            start + beat,
            min(length, 1.0),
            setting.fold(setting.pitch(degree + step)),
            _accent(beat),
        )
        for start, degree in setting.bar_starts()
        for beat, length, step in motif
    ]


def melody(setting: Setting, rng: np.random.Generator) -> list[Note]:
    """Free line of mixed lengths moving mostly by step."""
    notes = []
    position = setting.degrees[0] + 7
    beat, end = 0.0, float(setting.n_bars * setting.beats_per_bar)
    while beat < end:
        length = min(float(rng.choice([0.5, 0.5, 1.0, 1.0, 1.5, 2.0])), end - beat)
        if rng.random() < 0.87 or beat == 0:
            pitch = setting.fold(setting.pitch(position))
            notes.append(Note(beat, length, pitch, _accent(beat % setting.beats_per_bar)))
        position += int(rng.choice([-3, -2, -1, -1, 1, 1, 2, 4]))
        beat += length
    return notes


def ostinato(setting: Setting, rng: np.random.Generator) -> list[Note]:
    """Two or three alternating pitches in a fixed rhythm."""
    step = float(rng.choice([0.25, 0.5, 0.75]))
    cell = [0, *(int(s) for s in rng.choice([2, 4, 5, 7], size=int(rng.integers(1, 3))))]
    return [
        Note(
            start + beat,
            step,
            setting.fold(setting.pitch(degree + cell[i % len(cell)])),
            _accent(beat),
        )
        for start, degree in setting.bar_starts()
        for i, beat in enumerate(_grid(setting, step))
    ]


def octaves(setting: Setting, rng: np.random.Generator) -> list[Note]:
    """Root and octave in alternation (disco, slap)."""
    step = float(rng.choice([0.5, 0.5, 0.25]))
    return [
        Note(
            start + beat,
            step,
            setting.fold(setting.pitch(degree)) + 12 * (i % 2),
            0.9 if i % 2 else _accent(beat),
        )
        for start, degree in setting.bar_starts()
        for i, beat in enumerate(_grid(setting, step))
        if i % 2 == 0 or rng.random() < 0.9
    ]


def syncopated(setting: Setting, rng: np.random.Generator) -> list[Note]:
    """Funk line on sixteenths: downbeat, ghost notes, octave and fifth jumps."""
    motif = [
        (beat, int(rng.choice([0, 0, 0, 4, 7, 6])), rng.random() < 0.25)
        for beat in _grid(setting, 0.25)
        if beat == 0 or rng.random() < 0.42
    ]
    return [
        Note(
            start + beat,
            0.12 if ghost and beat else 0.25,
            setting.fold(setting.pitch(degree + step)),
            0.2 if ghost and beat else _accent(beat),
        )
        for start, degree in setting.bar_starts()
        for beat, step, ghost in motif
    ]


def gallop(setting: Setting, rng: np.random.Generator) -> list[Note]:
    """One long and two short (or the reverse) on the root, metal style."""
    cell = [(0.0, 0.5), (0.5, 0.25), (0.75, 0.25)]
    if rng.random() < 0.4:
        cell = [(0.0, 0.25), (0.25, 0.25), (0.5, 0.5)]
    return [
        Note(start + beat + offset, length, setting.fold(setting.pitch(degree)), 0.9 - offset)
        for start, degree in setting.bar_starts()
        for beat in _grid(setting, 1.0)
        for offset, length in cell
    ]


def sustained_line(setting: Setting, rng: np.random.Generator) -> list[Note]:
    """One or two long notes per bar."""
    notes = []
    for start, degree in setting.bar_starts():
        half = setting.beats_per_bar / 2
        pieces = [(0.0, 2 * half)] if rng.random() < 0.6 else [(0.0, half), (half, half)]
        for i, (offset, length) in enumerate(pieces):
            step = degree + (int(rng.choice([0, 2, 4])) if i else 0)
            notes.append(Note(start + offset, length, setting.fold(setting.pitch(step)), 0.8))
    return notes


def _chord_hits(
    setting: Setting, rhythm: list[tuple[float, float]], size: int, strum_beats: float
) -> list[Note]:
    notes = []
    for start, degree in setting.bar_starts():
        for i, (beat, length) in enumerate(rhythm):
            voices = setting.chord(degree, size)
            for k, pitch in enumerate(voices if i % 2 == 0 else voices[::-1]):
                delay = k * strum_beats
                notes.append(Note(start + beat + delay, length - delay, pitch, _accent(beat)))
    return notes


def block_chords(setting: Setting, rng: np.random.Generator) -> list[Note]:
    """Whole chords in quarters or halves."""
    step = float(rng.choice([1.0, 1.0, 2.0]))
    rhythm = [(beat, min(step, setting.beats_per_bar - beat)) for beat in _grid(setting, step)] or [
        (0.0, float(setting.beats_per_bar))
    ]
    return _chord_hits(setting, rhythm, int(rng.choice([3, 4])), 0.0)


def stabs(setting: Setting, rng: np.random.Generator) -> list[Note]:
    """Short chords off the beat."""
    rhythm = [(b, 0.3) for b in _grid(setting, 0.5) if b % 1 == 0.5 and rng.random() < 0.75]
    return _chord_hits(setting, rhythm or [(0.5, 0.3)], 3, 0.0)


def sustained_chords(setting: Setting, rng: np.random.Generator) -> list[Note]:
    """One chord held through each bar."""
    rhythm = [(0.0, float(setting.beats_per_bar))]
    return _chord_hits(setting, rhythm, int(rng.choice([3, 4])), float(rng.choice([0.0, 0.03])))


def strum(setting: Setting, rng: np.random.Generator) -> list[Note]:
    """Strummed chords on eighths, down and up."""
    rhythm = [(b, 0.5) for b in _grid(setting, 0.5) if b == int(b) or rng.random() < 0.6]
    return _chord_hits(setting, rhythm, int(rng.choice([4, 5])), float(rng.uniform(0.01, 0.04)))


def scratch(setting: Setting, rng: np.random.Generator) -> list[Note]:
    """Very short chords on sixteenths, funk rhythm guitar."""
    rhythm = [(b, 0.15) for b in _grid(setting, 0.25) if b == 0 or rng.random() < 0.55]
    return _chord_hits(setting, rhythm, 3, 0.008)


def power_chords(setting: Setting, rng: np.random.Generator) -> list[Note]:
    """Root, fifth and octave in driving eighths or longer."""
    step = float(rng.choice([0.5, 0.5, 1.0, 2.0]))
    notes = []
    for start, degree in setting.bar_starts():
        root = setting.fold(setting.pitch(degree))
        for beat in _grid(setting, step):
            length = min(step, setting.beats_per_bar - beat)
            notes += [Note(start + beat, length, root + up, _accent(beat)) for up in (0, 7, 12)]
    return notes


def fingerpick(setting: Setting, rng: np.random.Generator) -> list[Note]:
    """Thumb on the beats, chord tones between (Travis picking)."""
    upper = [int(u) for u in rng.permutation([1, 2, 3, 2])]
    notes = []
    for start, degree in setting.bar_starts():
        voices = setting.chord(degree, 4)
        for i, beat in enumerate(_grid(setting, 0.5)):
            pitch = voices[upper[i // 2 % 4]] if i % 2 else voices[0] - (i // 2 % 2) * 5
            notes.append(Note(start + beat, 0.9, pitch, 0.5 if i % 2 else 0.9))
    return notes


def one_shot(setting: Setting, rng: np.random.Generator) -> list[Note]:
    """A single note or chord hit."""
    size = int(rng.choice([1, 1, 3]))
    return [
        Note(0.0, float(setting.beats_per_bar), pitch, 0.9)
        for pitch in setting.chord(setting.degrees[0], size)
    ]


_MELODIC: tuple[Pattern, ...] = (
    root_eighths,
    root_fifth,
    walking,
    arpeggio,
    riff,
    melody,
    ostinato,
    octaves,
    syncopated,
    gallop,
    sustained_line,
    block_chords,
    stabs,
    sustained_chords,
    strum,
    scratch,
    power_chords,
    fingerpick,
    one_shot,
)
PATTERNS: dict[str, Pattern] = {p.__name__: p for p in _MELODIC} | DRUM_PATTERNS
