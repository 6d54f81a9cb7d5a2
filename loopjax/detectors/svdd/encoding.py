"""Rows to latents with trained arrays, and the check that arrays fit a network."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from loopjax.detectors.base import score_in_blocks
from loopjax.detectors.svdd.network import (
    Arrays,
    NetworkConfig,
    build_encoder,
    encoder_skeleton,
)
from loopjax.errors import UserError


def encode_rows(network: NetworkConfig, arrays: Arrays, rows: np.ndarray) -> np.ndarray:
    """Latents [N, Z] float32 of rows [N, D], in evaluation mode."""
    arrays = {name: jnp.asarray(a) for name, a in arrays.items()}
    return score_in_blocks(lambda block: _encode(block, arrays, network=network), rows)


@partial(jax.jit, static_argnames="network")
def _encode(rows: jax.Array, arrays: Arrays, *, network: NetworkConfig) -> jax.Array:
    return build_encoder(network, arrays, {})(rows)


def check_encoder_arrays(network: NetworkConfig, arrays: Arrays) -> None:
    """Raise `UserError` listing missing, unknown and misshapen arrays of an encoder."""
    expected = {name: leaf.shape for name, leaf in encoder_skeleton(network)[1].items()}
    missing = sorted(expected.keys() - arrays.keys())
    unknown = sorted(arrays.keys() - expected.keys())
    shapes = [
        f"{name} {arrays[name].shape}, expected {shape}"
        for name, shape in sorted(expected.items())
        if name in arrays and arrays[name].shape != shape
    ]
    if missing or unknown or shapes:
        raise UserError(
            f"encoder arrays: missing {missing or 'none'}, unknown {unknown or 'none'}, "
            f"wrong shape {shapes or 'none'}"
        )
