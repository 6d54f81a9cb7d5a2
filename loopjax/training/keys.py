"""Random numbers by hashing: for shuffling and dropout inside compiled training loops.

Keys are hashed, not drawn with `jax.random`: these uses need no cryptographic generator, whose
programs take seconds to compile and, on a CPU, a third of a training step. The numbers do not
depend on the device, on the batch or on `vmap`.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def new_key(seed: int) -> np.ndarray:
    """A key, uint32 [2], for a seed >= 0."""
    return np.random.SeedSequence(seed).generate_state(2)


def derive(key: Any, number: Any) -> jax.Array:
    """The key, uint32 [2], for one of many numbered uses of a key."""
    number = jnp.asarray(number).astype(jnp.uint32)
    first = mix32(key[0] ^ mix32(number + jnp.uint32(0x9E3779B9)))
    return jnp.stack([first, mix32(first ^ key[1])])


def random_bits(key: Any, count: int) -> jax.Array:
    """`count` pseudo-random uint32 of a key."""
    positions = jnp.arange(count, dtype=jnp.uint32)
    return mix32(mix32(positions ^ key[0]) ^ key[1])


def mix32(x: jax.Array) -> jax.Array:
    """Bijective 32-bit avalanche: two xor-shift-multiply rounds (constants of lowbias32)."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
    return x ^ (x >> 16)
