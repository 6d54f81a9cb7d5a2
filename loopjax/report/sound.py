"""What a page needs of one sound: a playable copy, its outline and a picture of its spectrum."""

import base64
import io
from dataclasses import dataclass

import numpy as np

from loopjax.audio import preview
from loopjax.audio.preview import Clip

WAVE_COLUMNS, PICTURE_COLUMNS, PICTURE_BANDS = 120, 120, 36
MIN_WINDOW_SAMPLES = 1024
LOWEST_HZ, HIGHEST_HZ = 40.0, 14_000.0
RANGE_DB = 60.0
SILENCE = 1e-12  # mean square per Hz; a picture of it would show rounding errors
COLORS = 32  # of the picture's palette: small files


@dataclass(frozen=True)
class Sound:
    """A decoded loop as the page shows it."""

    seconds: float  # of what can be heard
    whole_s: float  # of the file
    is_cut: bool
    wave: str  # SVG path in a box of WAVE_COLUMNS x 32
    picture: str  # data URL of a PNG, "" if none was asked for
    clip: Clip | None


def hear(file: bytes, is_pictured: bool, is_embedded: bool) -> Sound:
    """Decodes a file for the page.

    Args:
        file: path of the audio.
        is_pictured: also draw its spectrum.
        is_embedded: also make a small playable copy.

    Raises:
        DecodeError: the file cannot be read any more; carries the reason.
    """
    sound = preview.read_preview(file)
    picture = ""
    if is_pictured:
        data = spectrum_png(sound.samples, PICTURE_COLUMNS, PICTURE_BANDS)
        picture = "data:image/png;base64," + base64.b64encode(data).decode()
    return Sound(
        seconds=len(sound.samples) / preview.PREVIEW_RATE_HZ,
        whole_s=sound.duration_s,
        is_cut=sound.is_cut,
        wave=_wave_path(sound.samples),
        picture=picture,
        clip=preview.encode_audio(sound.samples) if is_embedded else None,
    )


def _wave_path(samples: np.ndarray) -> str:
    """SVG path of vertical strokes in a box of WAVE_COLUMNS x 32."""
    pairs = 16 - preview.outline(samples, WAVE_COLUMNS) * 15.5
    return "".join(
        f"M{i}.5 {high:.1f}V{max(low, high + 0.6):.1f}" for i, (low, high) in enumerate(pairs)
    )


def spectrum_png(samples: np.ndarray, columns: int, bands: int) -> bytes:
    """PNG [bands, columns] of float32 [n] at the preview rate, low frequencies at the bottom."""
    import matplotlib as mpl  # with Pillow, part of the extra [report]
    from PIL import Image

    levels = spectrum_levels(samples, columns, bands)
    indexed = Image.fromarray((levels[::-1] * (COLORS - 1)).round().astype(np.uint8), mode="P")
    palette = mpl.colormaps["magma"](np.linspace(0, 1, COLORS), bytes=True)
    indexed.putpalette(np.asarray(palette)[:, :3].tobytes())
    buffer = io.BytesIO()
    indexed.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def spectrum_levels(samples: np.ndarray, columns: int, bands: int) -> np.ndarray:
    """Levels [bands, columns] between 0 (60 dB under the peak) and 1, the low band first.

    A sparse spectrogram with bands of equal width in log frequency, for the eye; the encoder's
    front end is another.
    """
    from matplotlib import mlab

    hop = max(1, len(samples) // columns)
    window = max(MIN_WINDOW_SAMPLES, hop)  # no sample of a long loop is skipped
    padded = np.pad(samples.astype(np.float64), (window // 2, window + hop))
    found = mlab.specgram(padded, window, preview.PREVIEW_RATE_HZ, noverlap=window - hop)
    power, frequency_hz = np.asarray(found[0]), np.asarray(found[1])
    centers_hz = np.geomspace(LOWEST_HZ, HIGHEST_HZ, bands)
    step = centers_hz[1] / centers_hz[0]
    picture = np.empty((bands, columns))
    for band, center_hz in enumerate(centers_hz):
        inside = np.abs(np.log(np.maximum(frequency_hz, 1.0) / center_hz)) <= np.log(step) / 2
        inside[np.argmin(np.abs(frequency_hz - center_hz))] = True  # low bands are narrow
        picture[band] = power[inside, :columns].mean(axis=0)
    if picture.max() < SILENCE:
        return np.zeros_like(picture)
    level_db = 10 * np.log10(np.maximum(picture, SILENCE))
    return np.clip((level_db - level_db.max()) / RANGE_DB + 1, 0, 1)
