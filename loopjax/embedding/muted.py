"""A loop without one of its parts: what is lost with a part is what the part was worth."""

import itertools

import numpy as np

N_SEGMENTS = 8
N_BANDS = 8
FADE_S = 0.005  # around a muted segment, so that the cut itself adds no click
LOWEST_BAND_HZ = 60.0


def without_parts(wave: np.ndarray, rate_hz: int) -> list[np.ndarray]:
    """Float32 [n] with each of its segments muted, then with each band; see the functions below."""
    return [
        *(mute_segment(wave, *part, int(FADE_S * rate_hz)) for part in segments_of(len(wave))),
        *(mute_band(wave, rate_hz, *band) for band in bands_of(rate_hz)),
    ]


def mute_segment(samples: np.ndarray, start: int, end: int, fade_samples: int) -> np.ndarray:
    """Silences samples [start, end) of float32 [n], with cosine fades outside of it."""
    gain = np.ones(len(samples), np.float32)
    gain[start:end] = 0.0
    fade = 0.5 + 0.5 * np.cos(np.pi * (np.arange(fade_samples) + 1) / (fade_samples + 1))
    before = gain[max(0, start - fade_samples) : start]
    before[:] = fade[len(fade) - len(before) :]
    after = gain[end : end + fade_samples]
    after[:] = fade[::-1][: len(after)]
    return samples * gain


def mute_band(samples: np.ndarray, rate_hz: int, low_hz: float, high_hz: float) -> np.ndarray:
    """Removes frequencies [low, high) from float32 [n]."""
    spectrum = np.fft.rfft(samples)
    frequency_hz = np.fft.rfftfreq(len(samples), 1 / rate_hz)
    spectrum[(frequency_hz >= low_hz) & (frequency_hz < high_hz)] = 0
    return np.fft.irfft(spectrum, len(samples)).astype(np.float32)


def segments_of(n_samples: int) -> list[tuple[int, int]]:
    """Equal stretches of time, in samples; none is empty."""
    edges = np.linspace(0, n_samples, N_SEGMENTS + 1).astype(int).tolist()
    return [(a, b) for a, b in itertools.pairwise(edges) if b > a]


def bands_of(rate_hz: int) -> list[tuple[float, float]]:
    """Bands of equal width on the mel scale, from 0 Hz to the Nyquist frequency."""
    ends = 2595 * np.log10(1 + np.array([LOWEST_BAND_HZ, rate_hz / 2]) / 700)
    edges = 700 * (10 ** (np.linspace(ends[0], ends[1], N_BANDS + 1) / 2595) - 1)
    edges[0], edges[-1] = 0.0, rate_hz / 2 + 1.0
    edges = edges.round(1).tolist()
    return list(itertools.pairwise(edges))
