import io

import numpy as np
import pytest

pytest.importorskip("matplotlib", reason="the extra [report] is not installed")

from PIL import Image

from loopjax.audio.preview import PREVIEW_RATE_HZ
from loopjax.report.sound import spectrum_levels, spectrum_png


def tone(hz, seconds):
    return 0.5 * np.sin(
        2 * np.pi * hz * np.arange(int(seconds * PREVIEW_RATE_HZ)) / PREVIEW_RATE_HZ
    )


def test_a_rising_tone_rises():
    levels = spectrum_levels(np.r_[tone(200, 1), tone(4000, 1)], 40, 24)
    assert levels.shape == (24, 40)
    band = levels.argmax(axis=0)  # row 0 is the lowest band
    assert band[5:15].max() < 9
    assert band[25:35].min() > 15
    assert levels.max() == 1.0 and levels.min() >= 0.0


@pytest.mark.parametrize("n_samples", [1, 500, 15 * PREVIEW_RATE_HZ])
def test_every_length_fills_the_picture_and_silence_is_black(n_samples):
    assert spectrum_levels(np.ones(n_samples), 120, 36).shape == (36, 120)
    assert spectrum_levels(np.zeros(n_samples), 8, 8).max() == 0


def test_the_picture_is_a_small_png_with_the_low_band_at_the_bottom():
    data = spectrum_png(tone(100, 1), 120, 36)
    picture = np.asarray(Image.open(io.BytesIO(data)).convert("L"))
    assert picture.shape == (36, 120)
    assert picture[-1].mean() > picture[:18].mean() + 50
    assert len(data) < 4000
