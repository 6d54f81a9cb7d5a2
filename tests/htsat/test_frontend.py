"""Log-mel front ends against float64 arithmetic and the originals' stored filters."""

import jax.numpy as jnp
import numpy as np
import pytest
import soxr

from loopjax.htsat.frontend import (
    DEVICE_RATES_HZ,
    LogMelConfig,
    fill_clip,
    log_mel,
    mel_filterbank,
    quantize_int16,
    resample,
    resampled_lengths,
)
from scripts.goldens.synthetic import clip
from tests.htsat import tolerances
from tests.htsat.cases import GOLDENS

FRONT_ENDS = {
    "htk 48 kHz": LogMelConfig.clap_fused(),
    "slaney 48 kHz": LogMelConfig.clap_unfused(),
    "slaney 32 kHz": LogMelConfig.audioset_32khz(),
    "msclap": LogMelConfig.msclap_2023(),
}


def bank_float64(config: LogMelConfig) -> np.ndarray:
    """The triangles, one filter and one bin at a time."""
    if config.mel_scale == "htk":
        to_mel, to_hz = (
            lambda f: 2595 * np.log10(1 + f / 700),
            lambda m: 700 * (10 ** (m / 2595) - 1),
        )
    else:
        step = np.log(6.4) / 27
        to_mel = lambda f: 3 * f / 200 if f < 1000 else 15 + np.log(f / 1000) / step  # noqa: E731
        to_hz = lambda m: 200 * m / 3 if m < 15 else 1000 * np.exp(step * (m - 15))  # noqa: E731
    low, high = to_mel(config.fmin_hz), to_mel(config.fmax_hz)
    edges = [to_hz(low + (high - low) * i / 65) for i in range(66)]
    bank = np.zeros((config.n_fft // 2 + 1, 64))
    for k in range(len(bank)):
        f = k * config.bank_hz / config.n_fft
        for b in range(64):
            left, center, right = edges[b : b + 3]
            if left < f < right:
                height = (
                    (f - left) / (center - left) if f <= center else (right - f) / (right - center)
                )
                area = 2 / (right - left) if config.mel_scale == "slaney" else 1.0
                bank[k, b] = height * area
    return bank


def log_mel_float64(wave: np.ndarray, config: LogMelConfig) -> np.ndarray:
    """Frame by frame, in float64."""
    half = config.n_fft // 2
    padded = np.concatenate([wave[half:0:-1], wave, wave[-2 : -half - 2 : -1]]).astype(np.float64)
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(config.n_fft) / config.n_fft)
    frames = [
        np.abs(np.fft.rfft(padded[at : at + config.n_fft] * window)) ** 2
        for at in range(0, len(wave) + 1, config.hop_samples)
    ]
    return 10 * np.log10(np.maximum(np.array(frames) @ bank_float64(config), 1e-10))


@pytest.mark.parametrize("name", FRONT_ENDS)
def test_log_mel_equals_float64_arithmetic(name):
    config = FRONT_ENDS[name]
    wave = clip(20000, seed=3, rate_hz=config.sample_rate_hz)
    wave[9000:12000] = 0  # silence reaches the -100 dB floor exactly
    ours = np.asarray(log_mel(wave, jnp.array(wave.size), config))
    theirs = log_mel_float64(wave, config)
    assert ours.shape == theirs.shape == (20000 // config.hop_samples + 1, 64)
    assert theirs.min() == ours.min() == -100.0
    difference = np.abs(ours - theirs)
    assert difference.max() <= tolerances.MEL_DB_MAX
    assert difference.mean() <= tolerances.MEL_DB_MEAN


def test_frames_do_not_depend_on_what_lies_past_the_real_end():
    wave = clip(9600)
    config = LogMelConfig.clap_fused()
    alone = log_mel(wave, jnp.array(9600), config)
    longer = np.concatenate([wave, np.full(4000, 0.7, np.float32)])
    padded = log_mel(longer, jnp.array(9600), config)
    np.testing.assert_array_equal(alone, padded[: alone.shape[0]])


@pytest.mark.parametrize("rate_hz", [48000, 32000, 44100, 16000])
def test_slaney_filters_equal_those_stored_in_checkpoints(rate_hz):
    config = LogMelConfig.clap_unfused(bank_rate_hz=rate_hz)
    with np.load(GOLDENS / "filter_banks.npz") as banks:
        assert np.abs(mel_filterbank(config) - banks[str(rate_hz)]).max() < 1e-8


def test_htk_filters_reach_one_and_overlap_to_one():
    bank = mel_filterbank(LogMelConfig.clap_fused())
    assert 0.9 < bank.max() <= 1.0
    inner = slice(20, 284)  # bins between the first and the last filter's center
    np.testing.assert_allclose(bank[inner].sum(axis=1), 1.0, atol=1e-5)


def test_int16_round_trip_truncates_toward_zero_in_float32():
    wave = np.linspace(-1.2, 1.2, 200001).astype(np.float32)
    expected = (np.clip(wave, -1, 1) * np.float32(32767)).astype(np.int16) / np.float32(32767)
    # XLA multiplies by the reciprocal instead of dividing: one unit in the last place.
    np.testing.assert_allclose(quantize_int16(jnp.asarray(wave)), expected, rtol=1.3e-7, atol=0)


def test_int16_round_trip_is_its_own_inverse_on_its_grid():
    """Values of the grid stay, but for those that float32's product puts just below an integer."""
    steps = np.arange(-32767, 32768, dtype=np.float32)
    again = np.asarray(quantize_int16(jnp.asarray(steps / np.float32(32767)))) * 32767
    assert np.abs(again - steps).max() <= 1.001
    assert np.mean(np.rint(again) != steps) < 0.1


@pytest.mark.parametrize("filling", ["repeatpad", "pad", "repeat"])
@pytest.mark.parametrize("length", [1, 7, 333, 500, 999, 1000])
def test_filling_a_short_clip(filling, length):
    config = LogMelConfig(clip_samples=1000, filling=filling)
    wave = np.arange(1, length + 1, dtype=np.float32)
    whole = np.tile(wave, 1000 // length)
    tail = np.tile(wave, 1 + 1000 // length)[len(whole) : 1000]
    expected = {
        "repeatpad": np.concatenate([whole, 0 * tail]),
        "pad": np.concatenate([wave, np.zeros(1000 - length)]),
        "repeat": np.concatenate([whole, tail]),
    }[filling]
    row = np.zeros(1000, np.float32)
    row[:length] = wave
    np.testing.assert_array_equal(fill_clip(row, jnp.array(length), config), expected)


def test_an_empty_row_of_a_batch_fills_with_silence():
    config = LogMelConfig(clip_samples=1000)
    assert not np.asarray(fill_clip(np.zeros(800, np.float32), jnp.array(0), config)).any()


@pytest.mark.parametrize(
    ("length", "rate_hz", "signal", "total"),
    [
        (13230, 44100, 14400, 14401),  # the float ratio rounds up: one trailing zero
        (330750, 44100, 360000, 360001),
        (1014300, 44100, 1104000, 1104000),
        (48000, 96000, 24000, 24000),
        (1, 22050, 2, 3),
        (0, 44100, 0, 0),
    ],
)
def test_lengths_after_resampling_are_librosas(length, rate_hz, signal, total):
    ours = resampled_lengths(np.array([length]), rate_hz, 48000)
    assert (ours[0][0], ours[1][0]) == (signal, total)
    assert total == int(np.ceil(length * (float(48000) / rate_hz)))
    if length > 100:
        assert len(soxr.resample(np.zeros(length, np.float32), rate_hz, 48000)) == signal


@pytest.mark.parametrize("rate_hz", DEVICE_RATES_HZ)
def test_device_resampler_agrees_with_soxr_in_the_mel_band(rate_hz):
    """On log-mel frames away from the ends, where soxr rings differently."""
    if rate_hz == 48000:
        assert resample(np.ones((1, 10), np.float32), 48000, 48000).shape == (1, 10)
        return
    config = LogMelConfig.clap_fused()
    wave = clip(rate_hz, seed=5, rate_hz=rate_hz)
    ours = np.asarray(resample(wave[None], rate_hz, 48000))[0]
    theirs = soxr.resample(wave, rate_hz, 48000)
    assert ours.shape == theirs.shape == (48000,)
    mels = [np.asarray(log_mel(x, jnp.array(48000), config))[4:-4] for x in (ours, theirs)]
    # Below the band edge of the input; above it both are empty but for their own stop band.
    audible = (mels[1] > -40) & (np.arange(64) < (64 if rate_hz >= 32000 else 30))
    assert audible.mean() > 0.2
    assert np.abs(mels[0] - mels[1])[audible].max() < 0.1
