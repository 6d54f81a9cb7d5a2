"""Views of a loop, made on the device from its log-mel spectrogram.

Each row draws from a key of its own, so that a view depends on the loop's place in the order alone:
not on its batch mates, nor on how many devices share the batch.
"""

from functools import partial

import jax
import jax.numpy as jnp

from loopjax.config.finetuning import AugmentConfig

SILENCE_DB = -100.0  # floor of the front end
GRID = 64  # parts of a frame in which periods are counted


def augment(
    mel: jax.Array,
    period: jax.Array,
    mates: jax.Array,
    keys: jax.Array,
    config: AugmentConfig,
) -> jax.Array:
    """One view of every row.

    Args:
        mel: float32 dB [B, V, T, bins], the whole clip first.
        period: int32 [B], `GRID`ths of a frame until the loop repeats; 0 for one that does not.
        mates: float32 dB [B, T, bins], the loops to mix in; of any width if `mix_db` is -100.
        keys: uint32 [B, 2], of each row.
        config: how much of everything.

    Returns:
        float32 dB, like `mel`.
    """
    return jax.vmap(partial(_augment_row, config=config))(mel, period, mates, keys)


def _augment_row(
    mel: jax.Array, period: jax.Array, mate: jax.Array, key: jax.Array, config: AugmentConfig
) -> jax.Array:
    """`augment` of one row: mel [V, T, bins]."""
    _, n_frames, bins = mel.shape
    gain_key, tilt_key, floor_key, rotate_key, mix_key, time_key, band_key = jax.random.split(
        key, 7
    )
    if config.rotate:
        mel = rotate(mel, period, rotate_key)
    if config.mix_db > SILENCE_DB:
        level = jax.random.uniform(mix_key, minval=config.mix_db - 20.0, maxval=config.mix_db)
        mel = add_power(mel, mate[None] + level)
    slope = jnp.linspace(-1.0, 1.0, bins)
    tilt = jax.random.uniform(tilt_key, minval=-1.0, maxval=1.0) * config.tilt_db * slope
    mel = mel + jax.random.uniform(gain_key, minval=-1.0, maxval=1.0) * config.gain_db + tilt
    if config.floor_db > SILENCE_DB:
        floor = jax.random.uniform(floor_key, minval=SILENCE_DB, maxval=config.floor_db)
        mel = add_power(mel, floor)
    hidden = stripe(time_key, n_frames, config.time_stripe)[:, None]
    hidden |= stripe(band_key, bins, config.band_stripe)[None, :]
    return jnp.where(hidden, mel.mean(), mel)


def rotate(mel: jax.Array, period: jax.Array, key: jax.Array) -> jax.Array:
    """Begins a repeating clip anywhere in its period; the silence at its end stays there.

    In whole numbers, as rounding errors would move frames on one device and not on another.

    Args:
        mel: [V, T, bins], of which whole periods hold the loop.
        period: int32, `GRID`ths of a frame until the loop repeats; 0 leaves the clip as it is.
        key: of the beginning.
    """
    frames = jnp.arange(mel.shape[1])
    place, length = frames * GRID, jnp.maximum(period, 1)
    phase = place % length
    moved = (phase + jax.random.randint(key, (), 0, length)) % length
    source = (place - phase + moved) // GRID
    repeats = (period > 0) & (place < mel.shape[1] * GRID // length * length)
    return mel[:, jnp.where(repeats, jnp.minimum(source, mel.shape[1] - 1), frames)]


def add_power(a_db: jax.Array, b_db: jax.Array) -> jax.Array:
    """Decibels of the sum of two powers."""
    high, low = jnp.maximum(a_db, b_db), jnp.minimum(a_db, b_db)
    return high + (10.0 / jnp.log(10.0)) * jnp.log1p(jnp.exp((low - high) * jnp.log(10.0) / 10.0))


def stripe(key: jax.Array, size: int, widest: int) -> jax.Array:
    """True on one stretch of 0 to `widest` places, bool [size] (SpecAugment, arXiv 1904.08779)."""
    start_key, width_key = jax.random.split(key)
    start = jax.random.randint(start_key, (), 0, size)
    width = jax.random.randint(width_key, (), 0, min(widest, size) + 1)
    place = jnp.arange(size)
    return (place >= start) & (place < start + width)
