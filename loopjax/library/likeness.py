"""Whether two files hold the same recording, by listening to both.

Embeddings of a loop that was shifted by 50 ms differ as much as those of a loop one semitone
higher. Their waveforms do not: shifted, quieter, resampled or compressed copies still correlate
above 0.96, other loops hardly, and the same loop one semitone higher does not.
"""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

import numpy as np

from loopjax.audio.decode import DecodeOptions, decode_file
from loopjax.audio.loop import DecodeError

RATE_HZ = 16_000
HEARD_S = 6.0  # from the start of each file
SAME = 0.96  # correlation from which on two files are the same recording
MIN_OVERLAP = 0.5  # fraction of each one's energy that must lie where both sound
FINE = 4  # steps per sample: copies may be shifted by a fraction of one
SILENT = 1e-10  # mean square


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    """The largest normalized correlation of two sounds over all shifts, between 0 and 1.

    NaN where both are silent: that says nothing of two loops whose channels cancel.

    Args:
        a: float32 [n] at `RATE_HZ`.
        b: float32 [m] at `RATE_HZ`.
    """
    a, b = a.astype(np.float64), b.astype(np.float64)
    silent = [len(x) == 0 or np.mean(x**2) < SILENT for x in (a, b)]
    if any(silent):
        return np.nan if all(silent) else 0.0
    size = 1 << (len(a) + len(b)).bit_length()
    spectrum = np.fft.rfft(a, size) * np.conj(np.fft.rfft(b, size))
    products = np.fft.irfft(spectrum, size * FINE) * FINE  # more zeros: values between the samples
    lag = np.arange(1 - len(b), len(a))  # a[t + lag] meets b[t]
    energy_a, energy_b = (np.concatenate([[0.0], np.cumsum(x**2)]) for x in (a, b))
    start, end = np.maximum(lag, 0), np.minimum(len(a), lag + len(b))
    part_a = energy_a[end] - energy_a[start]
    part_b = energy_b[end - lag] - energy_b[start - lag]
    enough = (part_a >= MIN_OVERLAP * energy_a[-1]) & (part_b >= MIN_OVERLAP * energy_b[-1])
    if not enough.any():
        return 0.0
    lag, scale = lag[enough], np.sqrt(part_a * part_b)[enough]
    steps = [np.abs(products[(lag * FINE + step) % len(products)]) / scale for step in range(FINE)]
    return float(min(1.0, np.max(steps)))


def hear_pairs(files: Sequence[bytes], pairs: np.ndarray) -> np.ndarray:
    """Correlations of pairs of files, float64 [P]; NaN where a file is gone, or both are silent.

    Args:
        files: paths; those that no pair needs may be empty.
        pairs: int [P, 2] places in `files`; pairs that share a file should be neighbors.
    """

    @lru_cache(maxsize=256)  # some 100 MiB
    def sound(i: int) -> np.ndarray | None:
        return _read(files[i])

    def hear(pair: np.ndarray) -> float:
        a, b = sound(int(pair[0])), sound(int(pair[1]))
        return np.nan if a is None or b is None else correlation(a, b)

    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        return np.fromiter(pool.map(hear, pairs), np.float64, len(pairs))


def _read(path: bytes) -> np.ndarray | None:
    """The start of a file, mono, float32 at `RATE_HZ`; None if it cannot be read."""
    options = DecodeOptions(
        accept_truncated=True,
        sanitize=True,
        target_rate_hz=RATE_HZ,
        device_rates_hz=(RATE_HZ,),
    )
    try:
        samples = decode_file(path, -1, 0, options).samples
    except DecodeError:
        return None
    scale = 32768.0 if samples.dtype == np.int16 else 1.0
    return samples[: int(HEARD_S * RATE_HZ)].astype(np.float32) / np.float32(scale)
