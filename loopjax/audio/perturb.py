"""Perturbations of a loop at rising severities: the material of the robustness curves.

NumPy in, NumPy out. Pitch and time are pedalboard's (extra [eval]; Rubber Band inside), the filter
is SciPy's. Every perturbation is a pure function of the samples, the severity and a seed, keeps the
loop's loudness unless loudness is what it changes, and never lengthens a loop (time stretching
shortens it).
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import signal

from loopjax.errors import UserError

EDGE_S = 0.004  # cross-fade where parts meet, so that a join is no click
N_DROPOUTS = 4
N_SLICES = 8

Apply = Callable[[np.ndarray, int, float, np.random.Generator, np.ndarray | None], np.ndarray]


@dataclass(frozen=True)
class Perturbation:
    """One family of changes and its six severities, mild to severe."""

    name: str
    unit: str
    severities: tuple[float, ...]
    apply: Apply
    needs_donor: bool = False


def perturb(
    perturbation: Perturbation,
    samples: np.ndarray,
    rate_hz: int,
    severity: float,
    seed: Sequence[int],
    donor: np.ndarray | None = None,
) -> np.ndarray:
    """Returns a perturbed copy of a loop.

    Args:
        perturbation: one of `PERTURBATIONS`.
        samples: float32 [n], mono.
        rate_hz: sample rate of the loop and the donor.
        severity: in the perturbation's unit.
        seed: of everything random in it (places, noise, direction).
        donor: float32 [m], another instrument's loop, for `splice`.

    Returns:
        float32 [n] (shorter only for time stretching).

    Raises:
        UserError: pedalboard is not installed, or a donor is missing.
    """
    if perturbation.needs_donor and donor is None:
        raise UserError(
            f"perturbation {perturbation.name!r} needs a loop of another group as donor"
        )
    rng = np.random.default_rng([*seed])
    perturbed = perturbation.apply(np.asarray(samples, np.float32), rate_hz, severity, rng, donor)
    return np.ascontiguousarray(perturbed, np.float32)


def require_eval_extra() -> None:
    """Refuses to begin what the extra [eval] is needed for.

    Raises:
        UserError: names the missing package and the command that installs it.
    """
    try:
        import pedalboard  # noqa: F401
    except ImportError:
        raise UserError("robustness curves need pedalboard: pip install 'loopjax[eval]'") from None


def _stretched(
    samples: np.ndarray, rate_hz: int, *, faster: float = 1.0, semitones: float = 0.0
) -> np.ndarray:
    """The loop at another speed or pitch, each without the other."""
    require_eval_extra()
    from pedalboard import time_stretch

    changed = time_stretch(
        samples,
        float(rate_hz),
        stretch_factor=faster,
        pitch_shift_in_semitones=semitones,
        preserve_formants=False,
    )
    return _fit(changed[0], round(len(samples) / faster))


def _pitch(samples, rate_hz, cents, rng, donor):
    semitones = cents / 100 * rng.choice([-1, 1])
    return _same_loudness(_stretched(samples, rate_hz, semitones=semitones), samples)


def _stretch(samples, rate_hz, percent, rng, donor):
    # Faster: a loop of the corpus never outgrows its bucket.
    return _same_loudness(_stretched(samples, rate_hz, faster=1 + percent / 100), samples)


def _noise(samples, rate_hz, snr_db, rng, donor):
    noise = rng.normal(size=len(samples)).astype(np.float32)
    return samples + noise * (_rms(samples) * 10 ** (-snr_db / 20))


def _drive(samples, rate_hz, drive_db, rng, donor):
    peak = max(float(np.max(np.abs(samples), initial=0.0)), 1e-6)
    clipped = np.clip(samples * 10 ** (drive_db / 20), -peak, peak)
    return _same_loudness(clipped, samples)


def _low_pass(samples, rate_hz, cutoff_hz, rng, donor):
    cutoff_hz = min(cutoff_hz, 0.49 * rate_hz)
    # Second order, once in each direction: 24 dB per octave and no delay.
    sections = signal.butter(2, cutoff_hz, fs=rate_hz, output="sos")
    padding = min(len(samples) - 1, 9)  # SciPy's own, less for a loop that is shorter
    filtered = signal.sosfiltfilt(sections, samples, padlen=padding).astype(np.float32)
    return _same_loudness(filtered, samples)


def _gain_steps(samples, rate_hz, step_db, rng, donor):
    """Every other quarter of the loop is quieter."""
    quieter = samples * np.float32(10 ** (-step_db / 20))
    edges = np.linspace(0, len(samples), 5).astype(int)
    mask = np.zeros(len(samples), np.float32)
    for k in range(int(rng.integers(2)), 4, 2):
        mask[edges[k] : edges[k + 1]] = 1.0
    return _blend(samples, quieter, mask, rate_hz)


def _reversal(samples, rate_hz, percent, rng, donor):
    start, end = _place(len(samples), percent / 100, rng)
    changed = samples.copy()
    changed[start:end] = samples[start:end][::-1]
    mask = np.zeros(len(samples), np.float32)
    mask[start:end] = 1.0
    return _blend(samples, changed, mask, rate_hz)


def _dropouts(samples, rate_hz, length_ms, rng, donor):
    """Four gaps of hard digital silence, one somewhere in each quarter."""
    changed = samples.copy()
    length = max(1, int(length_ms * rate_hz / 1000))
    edges = np.linspace(0, len(samples), N_DROPOUTS + 1).astype(int)
    for start, end in itertools.pairwise(edges):
        at = int(rng.integers(start, max(start + 1, end - length)))
        changed[at : min(at + length, end)] = 0.0
    return changed


def _off_grid(samples, rate_hz, percent, rng, donor):
    """Cuts the loop into eight slices and moves each off its place by up to that fraction of it."""
    edges = np.linspace(0, len(samples), N_SLICES + 1).astype(int)
    reach = percent / 100 * len(samples) / N_SLICES
    changed = np.zeros_like(samples)
    for start, end in itertools.pairwise(edges):
        slice_ = samples[start:end] * _window(end - start, rate_hz)
        at = start + round(float(rng.choice([-1, 1]) * rng.uniform(0.5, 1.0) * reach))
        low, high = max(at, 0), min(at + len(slice_), len(samples))
        changed[low:high] += slice_[low - at : high - at]
    return changed


def _splice(samples, rate_hz, percent, rng, donor):
    """Another instrument takes over for a fraction of the loop, at the same loudness."""
    start, end = _place(len(samples), percent / 100, rng)
    repeats = -(-len(samples) // max(1, len(donor)))
    other = np.tile(donor, repeats)[: len(samples)]
    mask = np.zeros(len(samples), np.float32)
    mask[start:end] = 1.0
    return _blend(samples, _same_loudness(other, samples), mask, rate_hz)


PERTURBATIONS = {
    perturbation.name: perturbation
    for perturbation in (
        Perturbation("pitch shift", "cents", (25, 50, 100, 200, 400, 700), _pitch),
        Perturbation("time stretch", "% faster", (1, 3, 6, 12, 25, 50), _stretch),
        Perturbation("noise", "dB signal to noise", (40, 30, 20, 15, 10, 5), _noise),
        Perturbation("drive", "dB over full scale", (3, 6, 12, 18, 24, 36), _drive),
        Perturbation("low-pass", "Hz", (8000, 4000, 2000, 1000, 500, 250), _low_pass),
        Perturbation("gain steps", "dB", (1, 3, 6, 12, 18, 30), _gain_steps),
        Perturbation("reversal", "% of the loop", (5, 10, 20, 40, 70, 100), _reversal),
        Perturbation("dropouts", "ms, four times", (5, 10, 25, 50, 100, 200), _dropouts),
        Perturbation("off-grid slices", "% of a slice", (5, 10, 20, 35, 50, 75), _off_grid),
        Perturbation(
            "foreign splice", "% of the loop", (5, 10, 20, 30, 50, 75), _splice, needs_donor=True
        ),
    )
}


def _rms(samples: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(samples, dtype=np.float64)))) if len(samples) else 0.0


def _same_loudness(changed: np.ndarray, samples: np.ndarray) -> np.ndarray:
    own = _rms(changed)
    return changed * (_rms(samples) / own) if own > 1e-9 else changed


def _fit(samples: np.ndarray, length: int) -> np.ndarray:
    return np.pad(samples[:length], (0, max(0, length - len(samples))))


def _place(length: int, fraction: float, rng: np.random.Generator) -> tuple[int, int]:
    size = max(1, min(length, round(fraction * length)))
    start = int(rng.integers(0, length - size + 1))
    return start, start + size


def _edge_samples(rate_hz: int) -> int:
    return max(1, int(EDGE_S * rate_hz))


def _window(length: int, rate_hz: int) -> np.ndarray:
    """Ones [length] with short linear ramps at both ends."""
    edge = min(_edge_samples(rate_hz), max(1, length // 2))
    ramp = (np.arange(length) + 1) / edge
    return np.minimum(1.0, np.minimum(ramp, ramp[::-1])).astype(np.float32)


def _blend(samples: np.ndarray, changed: np.ndarray, mask: np.ndarray, rate_hz: int) -> np.ndarray:
    """`changed` where the 0/1 mask is 1, with cross-fades at its steps."""
    edge = _edge_samples(rate_hz)
    kernel = np.ones(edge, np.float32) / edge
    padded = np.pad(mask, edge, mode="edge")
    smooth = np.convolve(padded, kernel, mode="same")[edge : edge + len(mask)]
    return samples + (changed - samples) * smooth
