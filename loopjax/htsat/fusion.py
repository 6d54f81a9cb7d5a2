"""The feature fusion mechanism's input: one shrunk global view and three local crops.

LAION-CLAP `training/data.py: get_audio_features` draws the crops with NumPy's global generator, so
the embedding of a long clip changes from call to call. Here the positions are an argument: fixed by
default, derived from the audio's hash on request, or given (for parity).
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from loopjax.htsat.frontend import (
    LogMelConfig,
    fill_clip,
    log_mel,
    quantize_int16,
    repeat_frames,
    resample,
    resampled_lengths,
)

DETERMINISTIC_FRACTION = 0.5  # the middle of each third


def crop_starts(
    length_samples: np.ndarray, config: LogMelConfig, fractions: np.ndarray | None = None
) -> np.ndarray:
    """First frames of the front, middle and back crop, int32 [B, 3].

    The start positions 0..n-1 (n = total frames - clip frames + 1) are split like
    `numpy.array_split(range(n), 3)`; an empty range counts as [0].

    Args:
        length_samples: int [B], lengths at the encoder's rate.
        config: the front end.
        fractions: float [B, 3] in [0, 1), the place within each range; None = the middle.
    """
    lengths = np.asarray(length_samples, np.int64)
    n = np.maximum(lengths // config.hop_samples + 1 - config.clip_frames + 1, 1)[:, None]
    sizes = np.concatenate([(n + 2) // 3, (n + 1) // 3, n // 3], axis=1)
    first = np.cumsum(sizes, axis=1) - sizes
    if fractions is None:
        fractions = np.full(sizes.shape, DETERMINISTIC_FRACTION)
    starts = first + np.floor(np.asarray(fractions, np.float64) * sizes).astype(np.int64)
    return np.where(sizes > 0, starts, 0).astype(np.int32)


def waveform_starts(
    length_samples: np.ndarray, config: LogMelConfig, fractions: np.ndarray | None = None
) -> np.ndarray:
    """First sample of the one crop that towers without fusion take of a long clip, int32 [B, 1].

    The original (`rand_trunc`) draws it uniformly from [0, length - clip]; here the first fraction
    places it.
    """
    last = np.maximum(np.asarray(length_samples, np.int64) - config.clip_samples + 1, 1)
    place = DETERMINISTIC_FRACTION if fractions is None else np.asarray(fractions)[:, 0]
    return np.floor(place * last).astype(np.int32)[:, None]


def shrink(mel: jax.Array, total_frames: jax.Array, out_frames: int) -> jax.Array:
    """Bilinear resize along time without antialias (half-pixel centers), one row.

    This is torch's `interpolate(mode='bilinear')`, what the published fused towers were trained
    with; newer torchvision versions switch antialias on by themselves.

    Args:
        mel: float32 [T, mel_bins], of which the first `total_frames` are real.
        total_frames: int32 scalar.
        out_frames: frames of the result.
    """
    scale = total_frames.astype(jnp.float32) / out_frames
    position = jnp.maximum((jnp.arange(out_frames, dtype=jnp.float32) + 0.5) * scale - 0.5, 0.0)
    below = jnp.floor(position).astype(jnp.int32)
    weight = (position - below.astype(jnp.float32))[:, None]
    last = total_frames - 1
    low, high = mel[jnp.minimum(below, last)], mel[jnp.minimum(below + 1, last)]
    return low * (1.0 - weight) + high * weight


def prepare_lengths(
    length_samples: np.ndarray, rate_hz: int, config: LogMelConfig
) -> tuple[np.ndarray, np.ndarray]:
    """Host-side lengths of a batch at the encoder's rate: (signal samples, all samples)."""
    if rate_hz == config.sample_rate_hz:
        lengths = np.asarray(length_samples, np.int32)
        return lengths, lengths
    return resampled_lengths(length_samples, rate_hz, config.sample_rate_hz)


def front_end(
    samples: jax.Array,
    signal_samples: jax.Array,
    length_samples: jax.Array,
    starts: jax.Array,
    *,
    rate_hz: int,
    config: LogMelConfig,
    fusion: bool,
) -> tuple[jax.Array, jax.Array]:
    """Bucketed samples to the encoder's mel views; shapes depend on the bucket alone.

    Mono mix, resampling, int16 round trip, filling, log-mel and the fusion views, in the order of
    LAION's `get_audio_embedding_from_filelist`. On the CPU clip after clip, because a batch's
    frames do not fit its caches and are paged in anew by every call; on accelerators all clips at
    once.

    Args:
        samples: int16 or float32 [B, L] mono or [B, L, channels], at `rate_hz`.
        signal_samples: int32 [B], samples that carry signal after resampling.
        length_samples: int32 [B], samples after resampling including the zero tail; 0 = empty row.
        starts: int32 [B, 3], first frames of the local crops (`crop_starts`); without fusion
            [B, 1], first sample of the crop (`waveform_starts`).
        rate_hz: rate of `samples`.
        config: the front end.
        fusion: whether to build the four fusion views.

    Returns:
        mel float32 [B, 4 or 1, clip_frames, mel_bins] and longer bool [B].
    """
    one = partial(_mel_views, rate_hz=rate_hz, config=config, fusion=fusion)
    return jax.lax.platform_dependent(
        samples,
        signal_samples,
        length_samples,
        starts,
        cpu=lambda *rows: jax.lax.map(lambda row: one(*row), rows),
        default=jax.vmap(one),
    )


def _mel_views(
    samples: jax.Array,
    signal_samples: jax.Array,
    length_samples: jax.Array,
    starts: jax.Array,
    *,
    rate_hz: int,
    config: LogMelConfig,
    fusion: bool,
) -> tuple[jax.Array, jax.Array]:
    """`front_end` of one clip."""
    if samples.dtype == jnp.int16:
        samples = samples.astype(jnp.float32) / 32768.0
    if samples.ndim == 2:
        samples = samples.mean(axis=1)
    wave = resample(samples[None], rate_hz, config.sample_rate_hz)[0]
    wave = jnp.pad(wave, (0, 1))  # librosa's rounding may add one zero sample
    wave = jnp.where(jnp.arange(wave.shape[0]) < signal_samples, wave, 0.0)
    if config.quantize_int16:
        wave = quantize_int16(wave)
    wave = fill_clip(wave, length_samples, config)
    clip, frames = config.clip_samples, config.clip_frames
    if not fusion:
        is_long = length_samples > clip
        start = jnp.where(is_long, starts[0], 0)
        wave = jax.lax.dynamic_slice(wave, (start,), (clip,))
        if config.filling == "repeat_frames":
            length = jnp.minimum(length_samples, clip)
            mel = log_mel(wave, length, config)
            return repeat_frames(mel, length // config.hop_samples + 1)[None], is_long
        return log_mel(wave, jnp.asarray(clip), config)[None], is_long
    length = jnp.maximum(length_samples, clip)
    mel = log_mel(wave, length, config)
    total_frames = length // config.hop_samples + 1
    is_long = total_frames > frames
    whole = mel[None, :frames]
    if mel.shape[0] == frames:
        return jnp.repeat(whole, 4, axis=0), is_long
    crops = [jax.lax.dynamic_slice_in_dim(mel, starts[i], frames) for i in range(3)]
    long_views = jnp.stack([shrink(mel, total_frames, frames), *crops])
    return jnp.where(is_long, long_views, whole), is_long
