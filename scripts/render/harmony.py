"""Scales and chord progressions, and the note that every pattern is made of."""

from dataclasses import dataclass

import numpy as np

SCALES = {
    "major": (0, 2, 4, 5, 7, 9, 11),
    "minor": (0, 2, 3, 5, 7, 8, 10),
    "dorian": (0, 2, 3, 5, 7, 9, 10),
    "phrygian": (0, 1, 3, 5, 7, 8, 10),
    "lydian": (0, 2, 4, 6, 7, 9, 11),
    "mixolydian": (0, 2, 4, 5, 7, 9, 10),
    "harmonic_minor": (0, 2, 3, 5, 7, 8, 11),
}
MODE_WEIGHTS = (0.3, 0.3, 0.12, 0.06, 0.04, 0.12, 0.06)
PROGRESSIONS = (
    (0,),
    (0, 0, 3, 3),
    (0, 4, 5, 3),
    (0, 5, 3, 4),
    (1, 4, 0, 0),
    (0, 3, 4, 3),
    (0, 6, 5, 6),
    (0, 3),
    (0, 0, 0, 4),
    (5, 3, 0, 4),
    (0, 2, 3, 4),
)


@dataclass(frozen=True)
class Note:
    """One note; start and length in beats, pitch in semitones, accent in [0, 1]."""

    start: float
    length: float
    pitch: int
    accent: float = 0.5


def fold(pitch: int, low: int, high: int) -> int:
    """Move a pitch by octaves into low..high (or just above low where that is no octave wide)."""
    while pitch > high:
        pitch -= 12
    while pitch < low:
        pitch += 12
    return pitch


@dataclass(frozen=True)
class Setting:
    """What a pattern may use: tonic (0-11), scale, one chord degree per bar, bar length, range."""

    tonic: int
    scale: tuple[int, ...]
    degrees: tuple[int, ...]
    beats_per_bar: int
    low: int
    high: int

    @property
    def n_bars(self) -> int:
        """Number of bars."""
        return len(self.degrees)

    def bar_starts(self) -> list[tuple[float, int]]:
        """Return (first beat, chord degree) of each bar."""
        return [(float(i * self.beats_per_bar), d) for i, d in enumerate(self.degrees)]

    def pitch(self, degree: int) -> int:
        """Return the pitch of a scale degree, degree 0 being the lowest tonic in range."""
        lowest_tonic = self.low + (self.tonic - self.low) % 12
        octave, step = divmod(int(degree), len(self.scale))
        return lowest_tonic + 12 * octave + self.scale[step]

    def fold(self, pitch: int) -> int:
        """Move a pitch by octaves into the range."""
        return fold(pitch, self.low, self.high)

    def chord(self, degree: int, size: int = 3) -> list[int]:
        """Return stacked thirds on a degree, folded into the range from the bottom up."""
        root = self.fold(self.pitch(degree))
        offset = root - self.pitch(degree)
        return [self.pitch(degree + 2 * i) + offset for i in range(size)]


def make_setting(
    key: int,
    mode: str,
    bars: int,
    beats_per_bar: int,
    low: int,
    high: int,
    rng: np.random.Generator,
) -> Setting:
    """Draw a chord progression and a register (about 1.5 octaves wide at least) inside a range."""
    progression = PROGRESSIONS[rng.integers(len(PROGRESSIONS))]
    degrees = tuple(progression[i % len(progression)] for i in range(bars))
    slack = max(0, high - low - 20)
    bottom = low + int(rng.integers(slack + 1))
    return Setting(key % 12, SCALES[mode], degrees, beats_per_bar, bottom, high)
