"""Sample rates changed on the host, as librosa does it."""

import numpy as np


def resample_on_host(mono: np.ndarray, rate_hz: int, target_hz: int) -> np.ndarray:
    """Resamples by soxr HQ with librosa's length rule: ceil(n * float(target / rate)), zero tail.

    Args:
        mono: int16 or float32 [n].
        rate_hz: rate of `mono`.
        target_hz: rate of the result.

    Returns:
        float32 [ceil(n * target_hz / rate_hz)] (librosa `core/audio.py: resample`).
    """
    import soxr  # takes 50 ms to import and most corpora never need it

    samples = as_float(mono)
    length = int(np.ceil(samples.size * (float(target_hz) / rate_hz)))
    resampled = soxr.resample(samples, rate_hz, target_hz, quality="HQ")
    out = np.zeros(length, np.float32)
    count = min(length, resampled.size)
    out[:count] = resampled[:count]
    return out


def as_float(samples: np.ndarray) -> np.ndarray:
    """int16 or float32 [n] as float32 in [-1, 1]."""
    return (
        samples.astype(np.float32) / np.float32(32768.0) if samples.dtype == np.int16 else samples
    )
