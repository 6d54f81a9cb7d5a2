"""What a page needs of one sound: a playable copy, its outline and a picture of its spectrum."""

import io
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from loopjax.audio import preview
from loopjax.audio.preview import Clip, Copied, Preview

WAVE_COLUMNS, PICTURE_COLUMNS, PICTURE_BANDS = 120, 120, 36
MIN_WINDOW_SAMPLES = 1024
LOWEST_HZ, HIGHEST_HZ = 40.0, 14_000.0
RANGE_DB = 60.0
SILENCE = 1e-12  # mean square per Hz; a picture of it would show rounding errors
COLORS = 32  # of the picture's palette: small files
WAVE_DIGITS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"  # 64 levels


@dataclass(frozen=True)
class Sound:
    """A decoded loop as the page shows it."""

    seconds: float  # of what can be heard
    whole_s: float  # of the file
    is_cut: bool
    wave: str  # lowest and highest sample of WAVE_COLUMNS columns, a digit each
    picture: bytes  # PNG of the spectrum, LOWEST_HZ to HIGHEST_HZ
    clip: Clip | None


def hear(file: bytes, copied: Copied | None) -> Sound:
    """Decodes a file for the page.

    Args:
        file: path of the audio.
        copied: also make a playable copy of this kind.

    Raises:
        DecodeError: the file cannot be read any more; carries the reason.
    """
    return sound_of(preview.read_preview(file), copied)


def sound_of(heard: Preview, copied: Copied | None) -> Sound:
    """What a page shows of a decoded loop; see `hear`."""
    return Sound(
        seconds=len(heard.samples) / preview.PREVIEW_RATE_HZ,
        whole_s=heard.duration_s,
        is_cut=heard.is_cut,
        wave=wave_digits(heard.samples),
        picture=spectrum_png(heard.samples, PICTURE_COLUMNS, PICTURE_BANDS),
        clip=preview.encode_audio(heard.samples, copied) if copied else None,
    )


def wave_digits(samples: np.ndarray) -> str:
    """The lowest and highest of float32 [n] per column, -1 to 1 as digits for 0 to 63."""
    levels = np.rint((preview.outline(samples, WAVE_COLUMNS) + 1) * 31.5).astype(int)
    return "".join(WAVE_DIGITS[level] for level in levels.ravel())


def spectrum_png(samples: np.ndarray, columns: int, bands: int) -> bytes:
    """PNG [bands, columns] of float32 [n] at the preview rate, low frequencies at the bottom."""
    from PIL import Image  # part of the extra [report], with matplotlib

    levels = spectrum_levels(samples, columns, bands)
    indexed = Image.fromarray((levels[::-1] * (COLORS - 1)).round().astype(np.uint8), mode="P")
    indexed.putpalette(_palette())
    buffer = io.BytesIO()
    indexed.save(buffer, format="PNG")
    return buffer.getvalue()


@lru_cache(maxsize=1)
def _palette() -> bytes:
    import matplotlib as mpl

    return np.asarray(mpl.colormaps["magma"](np.linspace(0, 1, COLORS), bytes=True))[
        :, :3
    ].tobytes()


def spectrum_levels(samples: np.ndarray, columns: int, bands: int) -> np.ndarray:
    """Levels [bands, columns] between 0 (60 dB under the peak) and 1, the low band first.

    A sparse spectrogram with bands of equal width in log frequency, for the eye; the encoder's
    front end is another.
    """
    hop = max(1, len(samples) // columns)
    window = max(MIN_WINDOW_SAMPLES, hop)  # no sample of a long loop is skipped
    padded = np.pad(samples.astype(np.float32), (window // 2, window + hop))
    frames = np.lib.stride_tricks.sliding_window_view(padded, window)[::hop][:columns]
    weight = np.hanning(window).astype(np.float32)
    spectrum = np.fft.rfft(frames * weight)
    power = np.abs(spectrum) ** 2 / (preview.PREVIEW_RATE_HZ * np.sum(weight**2))
    picture = _band_means(window, bands) @ power.T.astype(np.float64)
    if picture.max() < SILENCE:
        return np.zeros_like(picture)
    level_db = 10 * np.log10(np.maximum(picture, SILENCE))
    return np.clip((level_db - level_db.max()) / RANGE_DB + 1, 0, 1)


@lru_cache(maxsize=64)
def _band_means(window: int, bands: int) -> np.ndarray:
    """Weights [bands, window // 2 + 1] that average a power spectrum in each band."""
    frequency_hz = np.fft.rfftfreq(window, 1 / preview.PREVIEW_RATE_HZ)
    centers_hz = np.geomspace(LOWEST_HZ, HIGHEST_HZ, bands)[:, None]
    step = centers_hz[1] / centers_hz[0]
    inside = np.abs(np.log(np.maximum(frequency_hz, 1.0) / centers_hz)) <= np.log(step) / 2
    nearest = np.abs(frequency_hz - centers_hz).argmin(axis=1)
    inside[np.arange(bands), nearest] = True  # low bands are narrow
    return inside / inside.sum(axis=1, keepdims=True)
