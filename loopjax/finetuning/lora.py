"""Low-rank adapters (LoRA, Hu et al. 2021, arXiv 2106.09685) beside an encoder's linear layers.

A layer with an adapter computes `x W + b + scale (x A) B`. W needs no gradient, which saves a third
of a step's products; merged into W, the adapter is gone and everything downstream stays as it is.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from loopjax.htsat.model import Htsat
from loopjax.htsat.swin import Dense

ADAPTED = ("qkv", "proj", "fc1", "fc2")  # of the attention and the MLP of every block
DOWN, UP = ".lora_down", ".lora_up"


class AdaptedDense(Dense):
    """A linear layer with an adapter of some rank; names of its own weights stay as they were."""

    def __init__(self, layer: Dense, rank: int, scale: float, rngs: nnx.Rngs):
        super().__init__(
            layer.in_features,
            layer.out_features,
            use_bias=layer.use_bias,
            dtype=layer.dtype,
            rngs=rngs,
        )
        self.scale = scale
        self.lora_down = nnx.Param(jnp.zeros((layer.in_features, rank)))
        self.lora_up = nnx.Param(jnp.zeros((rank, layer.out_features)))

    def __call__(self, inputs: jax.Array, out_sharding: Any = None) -> jax.Array:
        """[..., n_in] -> [..., n_out]."""
        plain = super().__call__(inputs, out_sharding)
        x = inputs.reshape(-1, inputs.shape[-1]).astype(plain.dtype)
        low = x @ self.lora_down[...].astype(plain.dtype)
        added = (low @ self.lora_up[...].astype(plain.dtype)) * self.scale
        return plain + added.reshape(plain.shape)


def adapt(model: Htsat, rank: int, scale: float) -> Htsat:
    """The model with an adapter beside every linear layer of its blocks."""
    rngs = nnx.Rngs(0)

    def replace(path: tuple[Any, ...], node: Any) -> Any:
        if path and path[0] == "stages" and path[-1] in ADAPTED and isinstance(node, Dense):
            return AdaptedDense(node, rank, scale, rngs)
        return node

    return nnx.recursive_map(replace, model)


def new_adapters(shapes: Mapping[str, tuple[int, ...]], seed: int) -> dict[str, np.ndarray]:
    """Fresh adapters by flat name: random on the way down, zero on the way up.

    So the adapted encoder begins as the one that it adapts.

    Args:
        shapes: of the arrays wanted, by flat name.
        seed: of the random numbers.
    """
    rng, found = np.random.default_rng(seed), {}
    for name in sorted(shapes):
        shape = shapes[name]
        if name.endswith(DOWN):
            found[name] = (rng.standard_normal(shape) / np.sqrt(shape[0])).astype(np.float32)
        else:
            found[name] = np.zeros(shape, np.float32)
    return found


def merge(weights: Mapping[str, np.ndarray], scale: float) -> dict[str, np.ndarray]:
    """Plain weights with the adapters added to the kernels beside which they stand.

    Args:
        weights: float32 by flat name, adapters among them.
        scale: of the adapters.
    """
    merged = {name: w for name, w in weights.items() if not name.endswith((DOWN, UP))}
    for name in weights:
        if name.endswith(DOWN):
            layer = name.removesuffix(DOWN)
            down, up = (weights[layer + part].astype(np.float64) for part in (DOWN, UP))
            kernel = merged[f"{layer}.kernel"].astype(np.float64) + scale * (down @ up)
            merged[f"{layer}.kernel"] = kernel.astype(np.float32)
    return merged
