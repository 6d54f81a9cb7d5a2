"""What both kernels of the MLP share: their weights, and the GELU between the two layers."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

GELU_SLOPE = math.sqrt(2.0 / math.pi)
GELU_CUBIC = 0.044715 * GELU_SLOPE


class MlpWeights(NamedTuple):
    """What the kernels multiply by, all of the tokens' type.

    Attributes:
        scale: of the LayerNorm, [width].
        shift: of the LayerNorm, [width].
        kernel1: first layer, [width, hidden].
        bias1: [hidden].
        kernel2: second layer, [hidden, width].
        bias2: [width].
    """

    scale: jax.Array
    shift: jax.Array
    kernel1: jax.Array
    bias1: jax.Array
    kernel2: jax.Array
    bias2: jax.Array


def twice_gelu(x: jax.Array) -> jax.Array:
    """2 gelu(x) by tanh: halving is exact, and cheaper once the products are summed."""
    return x * jnp.tanh(x * (GELU_SLOPE + GELU_CUBIC * (x * x))) + x
