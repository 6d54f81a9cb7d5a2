"""What a loop's onsets say about its rhythm, as dense targets of a training.

Whether a loop keeps to its grid shows in the onset envelope of its log-mel spectrogram (the
autocorrelation's highest peak, the entropy of its spectrum), but is hardly learned from the label
alone. These numbers follow from every loop, without a label.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

LAGS_FRAMES = np.arange(6, 126, 2)  # 60 ms to 1.25 s at 100 frames a second
N_REGULARITY = 3
_BELOW_PEAK_DB = 60.0
_SMOOTHING_FRAMES = 1.5
_FFT_FRAMES = 2048
_PEAK_LAGS = slice(10, 125)
_PULSE_BINS = slice(20, 328)  # 1 to 16 Hz


class Rhythm(NamedTuple):
    """Autocorrelation of the onset envelope at `LAGS_FRAMES` [B, L], and how regular it is [B, 3].

    Regular: the autocorrelation's highest peak, the log of the strongest line's part of the
    spectrum, and the spectrum's entropy.
    """

    lags: jax.Array
    regularity: jax.Array


class RhythmHeads(nnx.Module):
    """Tells the lags from tokens within the last stage, and the regularity from the embedding.

    Tempo and pattern so need not show in the embedding.
    """

    def __init__(self, width: int, *, rngs: nnx.Rngs):
        self.norm = nnx.LayerNorm(width, rngs=rngs)
        self.hidden = nnx.Linear(width, width, rngs=rngs)
        self.lags = nnx.Linear(width, len(LAGS_FRAMES), rngs=rngs)
        self.regularity = nnx.Linear(width, N_REGULARITY, rngs=rngs)

    def __call__(self, tokens: jax.Array, embedding: jax.Array) -> Rhythm:
        """Tokens [B, N, C] and embeddings [B, C] -> standardized targets as the heads see them."""
        pooled = self.norm(tokens.astype(jnp.float32)).mean(axis=1)
        return Rhythm(self.lags(jax.nn.gelu(self.hidden(pooled))), self.regularity(embedding))


def onset_envelope(mel: jax.Array) -> jax.Array:
    """Smoothed mean rise of all bands, dB per frame: float [B, T, mel] in dB -> [B, T - 1]."""
    x = mel.astype(jnp.float32)
    x = jnp.maximum(x, x.max(axis=(1, 2), keepdims=True) - _BELOW_PEAK_DB)
    rise = jax.nn.relu(x[:, 1:] - x[:, :-1]).mean(axis=-1)
    kernel = np.exp(-0.5 * (np.arange(-5, 6) / _SMOOTHING_FRAMES) ** 2)
    kernel = (kernel / kernel.sum()).astype(np.float32)
    return jax.vmap(lambda row: jnp.convolve(row, kernel, "same"))(rise)


def rhythm_of(mel: jax.Array) -> Rhythm:
    """The targets of clips, float [B, T, mel] in dB."""
    envelope = onset_envelope(mel)
    envelope -= envelope.mean(axis=1, keepdims=True)
    power = jnp.abs(jnp.fft.rfft(envelope, n=_FFT_FRAMES)) ** 2
    lags = jnp.fft.irfft(power)[:, : LAGS_FRAMES[-1] + 1]
    lags = lags / (lags[:, :1] + 1e-6)
    pulse = power[:, _PULSE_BINS]
    pulse = pulse / (pulse.sum(axis=1, keepdims=True) + 1e-6)
    peak = lags[:, _PEAK_LAGS].max(axis=1)
    line = jnp.log(pulse.max(axis=1) + 1e-9)
    entropy = -(pulse * jnp.log(pulse + 1e-9)).sum(axis=1)
    return Rhythm(lags[:, LAGS_FRAMES], jnp.stack([peak, line, entropy], axis=1))


def rhythm_error(found: Rhythm, mel: jax.Array, mean: Rhythm, sd: Rhythm) -> Rhythm:
    """Mean squared errors of both, in standard deviations of the corpus."""
    return jax.tree.map(
        lambda own, target, m, s: jnp.mean(((target - m) / s - own) ** 2),
        found,
        rhythm_of(mel),
        mean,
        sd,
    )
