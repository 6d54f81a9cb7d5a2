"""The TPU's steps of the front end beside those of every other device, on a CPU."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from loopjax.htsat import frontend, tpu_frontend
from tests.htsat import tolerances

RNG = np.random.default_rng(0)


def test_clips_are_repeated_alike():
    wave = RNG.normal(size=(6, 700)).astype(np.float32)
    periods = np.array([1, 2, 699, 700, 333, 2000], np.int32)  # the last: of a row that is full
    ours = jax.vmap(lambda w, p: tpu_frontend.repeat(w, p, size=2000))(wave, periods)
    padded = np.pad(wave, ((0, 0), (0, 1300)))
    np.testing.assert_array_equal(
        ours, [row[np.arange(2000) % period] for row, period in zip(padded, periods, strict=True)]
    )


@pytest.mark.parametrize("length", [600, 513, 999, 1000])
def test_ends_are_mirrored_alike(length):
    wave = jnp.asarray(RNG.normal(size=1000).astype(np.float32))
    ours = tpu_frontend.mirror(wave, jnp.int32(length), half=512, size=2400)
    np.testing.assert_array_equal(
        ours[: length + 1024],
        np.pad(wave[:length], 512, mode="reflect"),
    )


@pytest.mark.parametrize(
    "config",
    [
        frontend.LogMelConfig.clap_fused(),
        frontend.LogMelConfig.audioset_32khz(),
        frontend.LogMelConfig.speech_commands_16khz(),
    ],
)
def test_products_give_the_spectrogram_of_the_fast_transform(config, monkeypatch):
    """A loud tone over noise that is 60 dB lower: what a TPU's products must not lose."""
    seconds = np.arange(config.clip_samples) / config.sample_rate_hz
    wave = 0.9 * np.sin(2 * np.pi * 440.0 * seconds) + 9e-4 * RNG.normal(size=len(seconds))
    arguments = (jnp.asarray(wave, jnp.float32), jnp.int32(len(wave) - 777), config)
    theirs = np.asarray(frontend.log_mel(*arguments))
    monkeypatch.setattr(jax.lax, "platform_dependent", lambda *arrays, tpu, default: tpu(*arrays))
    ours = np.asarray(frontend.log_mel(*arguments))
    heard = (len(wave) - 777) // config.hop_samples + 1
    apart = np.abs(ours - theirs)[:heard]
    assert apart.max() <= tolerances.MEL_DB_MAX and apart.mean() <= tolerances.MEL_DB_MEAN
    assert apart.max() > 0.0  # it went the other way
