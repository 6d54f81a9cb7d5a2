"""A test double with the encoder's interface: a fixed random projection of log energies.

Fast enough for thousands of files, yet it keeps what the engine relies on: two compiled programs,
one shape per bucket and rate, numbers that depend on the row alone, and crops of long clips.
"""

import time

import jax
import jax.numpy as jnp
import numpy as np

from loopjax.htsat.frontend import DEVICE_RATES_HZ, LogMelConfig

PARTS = 88  # energies of this many equal parts of the clip, as a "mel" of 11 frames x 8 bands


class FakeEncoder:
    """See `loopjax.encoders.protocol.Encoder` for the interface."""

    mel_config = LogMelConfig(hop_samples=48_000, mel_bins=8)
    sample_rate_hz, clip_samples = mel_config.sample_rate_hz, mel_config.clip_samples
    mel_shape = (1, mel_config.clip_frames, mel_config.mel_bins)
    device_rates_hz = DEVICE_RATES_HZ
    fusion = False
    precision = "fp32"
    location = None
    assumptions = ()
    joint_dim = None

    def __init__(self, dim: int = 16, seed: int = 0, encoder_id: str = "fake"):
        self.id = encoder_id
        self.weights_sha256 = f"{seed:064x}"
        self.embedding_dim = dim
        weights = np.random.default_rng(seed).standard_normal((PARTS, dim)) / PARTS**0.5
        self.params = jnp.asarray(weights, jnp.float32)
        self.traces: list[tuple] = []  # one entry per compiled program
        self.calls: list[tuple] = []  # one entry per batch
        self._sharding = None
        self._front_end = jax.jit(self._features, static_argnames="rate_hz")
        self._encode = jax.jit(self._project)

    def replicate(self, mesh) -> "FakeEncoder":
        spec = jax.sharding.PartitionSpec
        self.params = jax.device_put(self.params, jax.sharding.NamedSharding(mesh, spec()))
        self._sharding = jax.sharding.NamedSharding(mesh, spec("data"))
        return self

    def front_end(self, samples, length_samples, sample_rate_hz=48_000, crop_fractions=None):
        self.calls.append((samples.shape, sample_rate_hz, samples.dtype.name))
        fractions = np.full((len(samples), 3), 0.5) if crop_fractions is None else crop_fractions
        arrays = (samples, length_samples, np.asarray(fractions[:, 0], np.float32))
        return self._front_end(*jax.device_put(arrays, self._sharding), rate_hz=sample_rate_hz)

    def encode(self, mel, longer):
        return self._encode(self.params, mel, longer)

    def _features(self, samples, lengths, fractions, rate_hz):
        self.traces.append(("front_end", samples.shape, rate_hz, samples.dtype.name))
        if samples.dtype == jnp.int16:
            samples = samples.astype(jnp.float32) / 32768.0
        longer = lengths > 10 * rate_hz
        total = jnp.cumsum(jnp.square(samples), axis=1)
        total = jnp.pad(total, ((0, 0), (1, 0)))

        def one(row, length, fraction, is_long):
            clip = jnp.minimum(length, 10 * rate_hz)
            start = jnp.where(is_long, (length - clip) * fraction, 0.0).astype(jnp.int32)
            # Each boundary is exact in integers, so a dual-mono copy gives the same parts.
            edges = start + (jnp.arange(PARTS + 1) * (clip // PARTS))
            energy = jnp.diff(row[jnp.clip(edges, 0, row.shape[0] - 1)])
            return jnp.log10(jnp.maximum(energy, 1e-10)).reshape(1, 11, 8)

        return jax.vmap(one)(total, lengths, fractions, longer), longer

    def _project(self, params, mel, longer):
        self.traces.append(("encode", mel.shape))
        features = mel[:, 0].reshape(mel.shape[0], -1)
        # No matrix product: its rounding depends on how many rows a device has.
        return (features[:, :, None] * params).sum(axis=1)


def slow_fake(seconds_per_batch: float, **kwargs) -> FakeEncoder:
    """A fake that takes its time, for tests that kill a run in the middle."""
    encoder = FakeEncoder(**kwargs)
    plain = encoder.encode

    def encode(mel, longer):
        time.sleep(seconds_per_batch)
        return plain(mel, longer)

    encoder.encode = encode
    return encoder
