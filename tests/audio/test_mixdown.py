"""The mono mix and the flags, block by block."""

import numpy as np
import pytest

from loopjax.audio.loop import DecodeError
from loopjax.audio.mixdown import Mixer


def mix(raw: np.ndarray, policy="mean", sanitize=False, blocks=1):
    mixer = Mixer(raw.shape[1], raw.dtype == np.int16, policy, sanitize)
    out = np.empty(len(raw), mixer.mono_dtype)
    for part, place in zip(np.array_split(raw, blocks), np.array_split(out, blocks), strict=True):
        mixer.mix(part, place)
    return out, mixer.flags(out)


@pytest.mark.parametrize("channels", [1, 2, 3, 8])
@pytest.mark.parametrize("dtype", ["int16", "float32"])
def test_blocks_do_not_change_the_mix_or_its_flags(channels, dtype):
    rng = np.random.default_rng(channels)
    raw = rng.uniform(-0.9, 0.9, (1001, channels))
    raw = (raw * 32767).astype(np.int16) if dtype == "int16" else raw.astype(np.float32)
    whole, flags = mix(raw.copy())
    pieces, piece_flags = mix(raw.copy(), blocks=7)
    np.testing.assert_array_equal(whole, pieces)
    assert flags == piece_flags == []
    scale = 32768.0 if dtype == "int16" else 1.0
    unit = whole / scale if whole.dtype == np.int16 else whole
    np.testing.assert_allclose(unit, (raw / scale).mean(axis=1), atol=1e-6)


def test_channel_order_does_not_matter_for_two_channels():
    raw = np.random.default_rng(0).uniform(-1, 1, (100, 2)).astype(np.float32)
    np.testing.assert_array_equal(mix(raw.copy())[0], mix(raw[:, ::-1].copy())[0])


@pytest.mark.parametrize(("level", "flagged"), [(0.04, []), (0.06, ["dc"])])
def test_dc_threshold(level, flagged):
    wave = np.sin(np.arange(4800) * 0.1) * 0.3 + level
    assert mix(wave[:, None].astype(np.float32))[1] == flagged


@pytest.mark.parametrize(("run", "flagged"), [(3, []), (4, ["clipped"])])
def test_clipping_needs_a_run(run, flagged):
    wave = np.sin(np.arange(4800) * 0.1) * 0.5
    wave[100 : 100 + run] = 1.0
    assert mix(wave[:, None].astype(np.float32))[1] == flagged


@pytest.mark.parametrize(("peak", "flagged"), [(1e-4, ["silence"]), (2e-4, [])])
def test_silence_threshold(peak, flagged):
    wave = np.sin(np.arange(4801) * np.pi / 2) * peak
    assert mix(wave[:, None].astype(np.float32))[1] == flagged


def test_partly_cancelling_channels_are_not_flagged():
    wave = np.random.default_rng(0).uniform(-0.5, 0.5, 4800)
    almost = np.stack([wave, -0.99 * wave], 1).astype(np.float32)
    wide = np.stack([wave, -0.5 * wave], 1).astype(np.float32)
    assert "mono_cancels" in mix(almost)[1]
    assert mix(wide)[1] == []


def test_not_finite():
    raw = np.array([[0.1], [np.nan], [np.inf]], np.float32)
    with pytest.raises(DecodeError, match="2 samples"):
        mix(raw.copy())
    mixed, flags = mix(raw.copy(), sanitize=True)
    np.testing.assert_array_equal(mixed, np.array([0.1, 0, 0], np.float32))
    assert "sanitized" in flags
