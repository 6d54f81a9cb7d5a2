"""Fusion views: crop ranges, corner cases, and that a clip never feels its batch mates."""

import jax.numpy as jnp
import numpy as np
import pytest

from loopjax.htsat.frontend import LogMelConfig
from loopjax.htsat.fusion import crop_starts, shrink, waveform_starts
from scripts.goldens.synthetic import clip
from tests.htsat.cases import micro

CONFIG = LogMelConfig.clap_fused()


def ranges(n_samples: int) -> list[np.ndarray]:
    """The spans the original draws from."""
    n = n_samples // 480 + 1 - 1001 + 1
    spans = np.array_split(np.arange(n), 3)
    return [span if len(span) else np.array([0]) for span in spans]


@pytest.mark.parametrize("n_samples", [480480, 480960, 481440, 481920, 528000, 1104000, 9_999_999])
def test_crops_reach_exactly_the_ends_of_the_originals_ranges(n_samples):
    spans = ranges(n_samples)
    lowest = crop_starts(np.array([n_samples]), CONFIG, np.zeros((1, 3)))[0]
    highest = crop_starts(np.array([n_samples]), CONFIG, np.full((1, 3), 1 - 1e-12))[0]
    assert lowest.tolist() == [span[0] for span in spans]
    assert highest.tolist() == [span[-1] for span in spans]


def test_the_default_crop_is_the_middle_of_each_third():
    assert crop_starts(np.array([1104000]), CONFIG)[0].tolist() == [217, 651, 1084]


def test_short_clips_have_no_choice():
    lengths = np.array([0, 1, 480000, 480479])
    assert not crop_starts(lengths, CONFIG, np.full((4, 3), 0.99)).any()
    assert not waveform_starts(lengths[:3], CONFIG, np.full((3, 3), 0.99)).any()


def test_waveform_crops_cover_zero_to_the_last_start():
    lengths = np.array([480001, 1104000])
    places = np.full((2, 3), 1 - 1e-12)
    assert waveform_starts(lengths, CONFIG, 0 * places)[:, 0].tolist() == [0, 0]
    assert waveform_starts(lengths, CONFIG, places)[:, 0].tolist() == [1, 624000]


@pytest.mark.parametrize("total", [1002, 1101, 2301])
def test_the_global_view_is_a_bilinear_resize_without_antialias(total):
    mel = np.random.default_rng(0).normal(size=(2400, 3)).astype(np.float32)
    ours = shrink(jnp.asarray(mel), jnp.int32(total), 1001)
    centers = np.maximum((np.arange(1001) + 0.5) * total / 1001 - 0.5, 0)
    low = np.floor(centers).astype(int)
    high = np.minimum(low + 1, total - 1)
    weight = (centers - low)[:, None]
    expected = mel[low] * (1 - weight) + mel[high] * weight
    np.testing.assert_allclose(ours, expected, atol=2e-3)  # float32 positions up to 2300


@pytest.mark.parametrize(
    ("n_samples", "longer"),
    [(480000, False), (480001, False), (480240, False), (480479, False), (480480, True)],
)
def test_which_clips_are_fused(n_samples, longer):
    model = micro()
    row = np.zeros((1, 480480), np.float32)
    row[0, :n_samples] = clip(n_samples)
    mel, flag = model.front_end(row, np.array([n_samples]))
    assert mel.shape == (1, 4, 1001, 64)
    assert bool(flag[0]) is longer
    if not longer:  # four copies of the whole
        assert (np.asarray(mel[0, 1:]) == np.asarray(mel[0, :1])).all()
        return
    views = np.asarray(mel[0])
    assert (views[1] == views[3]).all()  # n = 2 starts: front 0, middle 1, back [0]
    assert (views[2, :-1] == views[1, 1:]).all()


def test_stereo_is_averaged_and_int16_is_scaled_like_a_decoder():
    model = micro()
    left, right = clip(4800, 1), clip(4800, 2)
    stereo = np.stack([left, right], axis=-1)[None]
    mono = ((left + right) / 2)[None]
    lengths = np.array([4800])
    expected = model.front_end(mono, lengths)[0]
    np.testing.assert_allclose(model.front_end(stereo, lengths)[0], expected, atol=0.05)
    integers = np.round(left * 32768).astype(np.int16)[None]
    np.testing.assert_array_equal(
        model.front_end(integers, lengths)[0], model.front_end(left[None], lengths)[0]
    )
