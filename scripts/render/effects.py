"""Effects (harmless variety) and degradations (planted anomalies) on mono float32 samples.

All functions are pure: samples in, new samples out, length kept unless said otherwise. Levels are
relative to full scale 1.0.
"""

from collections.abc import Callable

import numpy as np
import soxr
from numpy.typing import NDArray
from scipy import signal

Samples = NDArray[np.float32]


def rms(samples: Samples) -> float:
    """Return the root mean square level."""
    return float(np.sqrt(np.mean(np.square(samples, dtype=np.float64)))) if len(samples) else 0.0


def normalize_peak(samples: Samples, peak: float) -> Samples:
    """Scale so that the largest magnitude is `peak`; silence stays silence."""
    top = float(np.max(np.abs(samples), initial=0.0))
    return samples * np.float32(peak / top) if top > 0 else samples


def _filter(samples: Samples, kind: str, hz: float, order: int, rate_hz: int) -> Samples:
    sections = signal.butter(order, hz, kind, fs=rate_hz, output="sos")
    return np.asarray(signal.sosfilt(sections, samples), dtype=np.float32)


def tilt(samples: Samples, db: float, rate_hz: int) -> Samples:
    """Tilt the spectrum around 800 Hz: +db above, -db below."""
    low = _filter(samples, "lowpass", 800.0, 1, rate_hz)
    gain = 10 ** (db / 20)
    return np.float32(1 / gain) * low + np.float32(gain) * (samples - low)


def drive(samples: Samples, db: float) -> Samples:
    """Saturate gently (tanh) after `db` of gain, at the same peak level."""
    gain = np.float32(10 ** (db / 20))
    top = float(np.max(np.abs(samples), initial=0.0))
    return normalize_peak(np.tanh(gain * normalize_peak(samples, 1.0)), top)


def delay(samples: Samples, seconds: float, mix: float, rate_hz: int) -> Samples:
    """Add two decaying echoes."""
    out = samples.copy()
    for repeat in (1, 2):
        shift = round(repeat * seconds * rate_hz)
        if 0 < shift < len(samples):
            out[shift:] += np.float32(mix**repeat) * samples[:-shift]
    return out


def room(
    samples: Samples, decay_s: float, mix: float, rng: np.random.Generator, rate_hz: int
) -> Samples:
    """Convolve with an exponentially decaying noise impulse response."""
    n = max(2, round(decay_s * rate_hz))
    response = rng.standard_normal(n) * np.exp(-6.9 * np.arange(n) / n)
    response /= np.sqrt(np.sum(response**2))
    wet = signal.oaconvolve(samples, response.astype(np.float32))[: len(samples)]
    return np.asarray(samples + np.float32(mix) * wet, dtype=np.float32)


def tremolo(samples: Samples, hz: float, depth: float, rate_hz: int) -> Samples:
    """Modulate the level with a sine."""
    phase = 2 * np.pi * hz * np.arange(len(samples)) / rate_hz
    return (samples * (1 - depth * 0.5 * (1 + np.sin(phase)))).astype(np.float32)


def chorus(samples: Samples, hz: float, rate_hz: int) -> Samples:
    """Mix with a copy whose delay swings between 8 and 14 ms."""
    time = np.arange(len(samples))
    lag = rate_hz * (0.011 + 0.003 * np.sin(2 * np.pi * hz * time / rate_hz))
    return (0.7 * samples + 0.5 * np.interp(time - lag, time, samples)).astype(np.float32)


def colored_noise(n: int, color: str, rng: np.random.Generator, rate_hz: int) -> Samples:
    """Return unit-RMS "white", "pink" or "hum" (50 Hz and harmonics) noise."""
    if color == "hum":
        time = np.arange(n) / rate_hz
        wave = sum(
            np.sin(2 * np.pi * 50 * k * time + rng.uniform(0, 6.28)) / k for k in (1, 2, 3, 4, 6, 8)
        )
        noise = np.asarray(wave + 0.05 * rng.standard_normal(n))
    else:
        noise = rng.standard_normal(n)
        if color == "pink":
            # Three leaky integrators approximate a 1/f slope well enough for a nuisance.
            noise = sum(
                signal.lfilter([g], [1, -p], noise)
                for p, g in ((0.997, 0.03), (0.96, 0.1), (0.6, 0.4))
            )
    noise = np.asarray(noise, dtype=np.float32)
    return noise / np.float32(max(rms(noise), 1e-12))


def add_noise(
    samples: Samples, snr_db: float, color: str, rng: np.random.Generator, rate_hz: int
) -> Samples:
    """Add noise at a signal-to-noise ratio over the whole clip."""
    level = rms(samples) * 10 ** (-snr_db / 20)
    return samples + np.float32(level) * colored_noise(len(samples), color, rng, rate_hz)


def clip(samples: Samples, drive_db: float) -> Samples:
    """Hard-clip at `drive_db` below the peak; the result peaks at 1."""
    gain = np.float32(10 ** (drive_db / 20))
    return np.clip(gain * normalize_peak(samples, 1.0), -1.0, 1.0)


def drop_out(samples: Samples, fraction: float, n_gaps: int, rng: np.random.Generator) -> Samples:
    """Silence `fraction` of the clip in `n_gaps` equal hard-edged gaps at random places."""
    out = samples.copy()
    slot = len(samples) // n_gaps
    gap = round(slot * fraction)
    for i in range(n_gaps):
        start = i * slot + int(rng.integers(0, max(1, slot - gap)))
        out[start : start + gap] = 0.0
    return out


def cut_off(samples: Samples, fraction: float) -> Samples:
    """Silence the last `fraction` of the clip."""
    out = samples.copy()
    out[round(len(samples) * (1 - fraction)) :] = 0.0
    return out


def reverse(samples: Samples) -> Samples:
    """Play backwards."""
    return samples[::-1].copy()


def varispeed(samples: Samples, cents: float) -> Samples:
    """Play faster (cents > 0) or slower, pitch and length together; the length changes."""
    return np.asarray(soxr.resample(samples, 48000, 48000 / 2 ** (cents / 1200)), dtype=np.float32)


def low_pass(samples: Samples, hz: float, rate_hz: int) -> Samples:
    """Remove what is above `hz` (24 dB per octave)."""
    return _filter(samples, "lowpass", hz, 4, rate_hz)


def high_pass(samples: Samples, hz: float, rate_hz: int) -> Samples:
    """Remove what is below `hz` (24 dB per octave)."""
    return _filter(samples, "highpass", hz, 4, rate_hz)


def add_dc(samples: Samples, offset: float) -> Samples:
    """Shift by a constant, scaled down first so that nothing leaves full scale."""
    return normalize_peak(samples, min(rms(samples) * 6, 1.0 - offset)) + np.float32(offset)


def draw_effects(rng: np.random.Generator) -> dict[str, float]:
    """Draw a harmless effect chain: effect name -> its one parameter."""
    chances: dict[str, tuple[float, Callable[[], float]]] = {
        "tilt_db": (0.5, lambda: rng.uniform(-6, 6)),
        "drive_db": (0.2, lambda: rng.uniform(2, 9)),
        "chorus_hz": (0.1, lambda: rng.uniform(0.3, 1.5)),
        "tremolo_hz": (0.05, lambda: rng.uniform(3, 8)),
        "delay_s": (0.15, lambda: rng.uniform(0.08, 0.4)),
        "room_s": (0.4, lambda: rng.uniform(0.1, 0.9)),
        "noise_floor_db": (0.3, lambda: rng.uniform(-75, -52)),
    }
    return {k: round(float(draw()), 3) for k, (p, draw) in chances.items() if rng.random() < p}


def apply_effects(
    samples: Samples, effects: dict[str, float], rng: np.random.Generator, rate_hz: int
) -> Samples:
    """Apply a drawn effect chain in its order."""
    for name, value in effects.items():
        match name:
            case "tilt_db":
                samples = tilt(samples, value, rate_hz)
            case "drive_db":
                samples = drive(samples, value)
            case "chorus_hz":
                samples = chorus(samples, value, rate_hz)
            case "tremolo_hz":
                samples = tremolo(samples, value, 0.5, rate_hz)
            case "delay_s":
                samples = delay(samples, value, 0.35, rate_hz)
            case "room_s":
                samples = room(samples, value, float(rng.uniform(0.1, 0.5)), rng, rate_hz)
            case "noise_floor_db":
                samples = add_noise(samples, -value, "pink", rng, rate_hz)
            case _:
                raise ValueError(f"unknown effect {name!r}")
    return samples


def degrade(
    samples: Samples, kind: str, strength: float, rng: np.random.Generator, rate_hz: int
) -> tuple[Samples, str]:
    """Apply one sample-domain degradation; return the samples and a detail word (may be "").

    Raises:
        ValueError: the kind is not one that works on samples.
    """
    match kind:
        case "clipping":
            return clip(samples, strength), ""
        case "noise":
            color = str(rng.choice(["white", "white", "pink", "hum"]))
            return add_noise(samples, strength, color, rng, rate_hz), color
        case "dropout":
            n_gaps = int(rng.integers(1, 5))
            return drop_out(samples, strength, n_gaps, rng), f"{n_gaps} gaps"
        case "silence":
            return cut_off(samples, strength), ""
        case "reversed":
            return reverse(samples), ""
        case "varispeed":
            return varispeed(samples, strength), ""
        case "low_passed":
            return low_pass(samples, strength, rate_hz), ""
        case "high_passed":
            return high_pass(samples, strength, rate_hz), ""
        case "dc":
            return add_dc(samples, strength), ""
    raise ValueError(f"{kind!r} is not a sample-domain degradation")
