"""Steps of the front end as Google's TPUs do them well: no scalar gathers, products for transforms.

A TPU fetches single numbers one by one, and its FFT passes over memory twenty times. Here clips are
filled by whole copies, ends are mirrored by tiles, and the transform is matrix products in full
precision, which take frames from where they overlap. Compiled for v5e (`python -m scripts.aot`) and
compared with the other path on a CPU; not yet run on a device.
"""

from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np


def repeat(waveform: jax.Array, period: jax.Array, *, size: int) -> jax.Array:
    """The first `period` samples of a waveform [L], again and again; [size].

    Args:
        waveform: float32 [L], L <= size.
        period: int32 scalar, positive.
        size: samples of the result.
    """
    positions = jnp.arange(size)

    def double(state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        filled, wave = state
        behind = jax.lax.dynamic_slice(jnp.concatenate([wave, wave]), (size - filled,), (size,))
        return 2 * filled, jnp.where(positions < filled, wave, behind)

    wave = jnp.pad(waveform, (0, size - waveform.shape[0]))
    return jax.lax.while_loop(lambda state: state[0] < size, double, (period, wave))[1]


def mirror(waveform: jax.Array, length_samples: jax.Array, *, half: int, size: int) -> jax.Array:
    """A waveform [L] between mirrors of `half` samples at its start and at its real end; [size].

    Samples behind the second mirror are of no use.
    """
    padded = jnp.concatenate([waveform[half:0:-1], waveform])
    padded = jnp.pad(padded, (0, max(size - padded.size, 0)))[:size]
    # The samples before the end, backwards, so placed that their copies side by side continue it.
    behind = (jnp.arange(half) - length_samples) % half
    mirrored = waveform[jnp.clip(length_samples - 2 - behind, 0, waveform.shape[0] - 1)]
    mirrored = jnp.tile(mirrored, -(-size // half))[:size]
    return jnp.where(jnp.arange(size) < length_samples + half, padded, mirrored)


def power_spectrum(hops: jax.Array, *, n_fft: int, first: int, end: int) -> jax.Array:
    """Squared magnitudes of the bins from `first` to `end` of Hann-windowed frames.

    Args:
        hops: float32 [T + n - 1, hop]; a frame is the start of n hops in a row.
        n_fft: samples of a frame.
        first: lowest bin.
        end: bin behind the highest.

    Returns:
        float32 [T, end - first].
    """
    n_hops = -(-n_fft // hops.shape[1])
    n_frames = hops.shape[0] - n_hops + 1
    basis = _basis(n_fft, first, end)
    parts = jnp.zeros((), jnp.float32)
    for i in range(n_hops):
        own = basis[i * hops.shape[1] : (i + 1) * hops.shape[1]]
        columns = hops[i : i + n_frames, : len(own)]
        parts += jnp.matmul(columns, jnp.asarray(own), precision=jax.lax.Precision.HIGHEST)
    return jnp.square(parts[:, : end - first]) + jnp.square(parts[:, end - first :])


@lru_cache(maxsize=8)
def _basis(n_fft: int, first: int, end: int) -> np.ndarray:
    """Windowed cosines and sines, float32 [n_fft, 2 * (end - first)]."""
    turns = np.outer(np.arange(n_fft), np.arange(first, end)) % n_fft * (2.0 * np.pi / n_fft)
    window = np.hanning(n_fft + 1)[:-1, None]
    return (window * np.concatenate([np.cos(turns), np.sin(turns)], axis=1)).astype(np.float32)
