"""Shifted-window attention as one GPU kernel, for bfloat16 inference.

What XLA does in seven passes over device memory (shift, partition, scores, bias and mask, softmax,
product, and both rearrangements back) happens here on one read of the packed qkv and one write: a
program handles one head of one window and finds its tokens by index arithmetic. The mathematics is
`swin.WindowAttention`'s (Liu et al. 2021, arXiv 2103.14030).
"""

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton


def window_attention(
    qkv: jax.Array,
    bias: jax.Array,
    *,
    side: int,
    window: int,
    shift: int,
    interpret: bool = False,
) -> jax.Array:
    """Attends within the (shifted) windows of token grids.

    Args:
        qkv: [B, side**2, 3 * width] in row-by-row token order; queries, keys and values each hold
            their heads one after another.
        bias: relative position bias [heads, window**2, window**2] (query, key), float32.
        side: tokens along each side of the grid, a multiple of `window`.
        window: tokens along each side of a window, a power of two.
        shift: by how many tokens windows are shifted, 0 or half a window.
        interpret: emulate the kernel, slowly, on any device.

    Returns:
        [B, side**2, width] in the type of `qkv`: every token's mixed values, unprojected.
    """
    n_clips, n_tokens, triple = qkv.shape
    width, heads = triple // 3, len(bias)

    def kernel(qkv_ref, bias_ref, out_ref):
        head, place, clip = (pl.program_id(axis) for axis in range(3))
        lane = jnp.arange(window**2)
        # Where the window's tokens lie in the shifted grid, and which tokens they are.
        row = place // (side // window) * window + lane // window
        column = place % (side // window) * window + lane % window
        token = ((row + shift) % side * side + (column + shift) % side)[:, None]
        # Triton's tiles are powers of two: the head's width is filled up with zeros.
        dim = width // heads
        channel = jnp.arange(pl.next_power_of_2(dim))[None, :]
        inside = channel < dim

        def load(part: int) -> jax.Array:
            source = qkv_ref.at[clip, token, part * width + head * dim + channel]
            return triton.load(source, mask=inside, other=0.0)

        scores = _dot(load(0), load(1).T) * dim**-0.5 + bias_ref[head]
        if shift:
            region = 3 * _border(row, side, window, shift) + _border(column, side, window, shift)
            scores += jnp.where(region[:, None] == region[None, :], 0.0, -100.0)
        weights = jnp.exp(scores - jnp.max(scores, axis=1, keepdims=True))
        weights /= jnp.sum(weights, axis=1, keepdims=True)
        mixed = _dot(weights.astype(qkv.dtype), load(2))
        target = out_ref.at[clip, token, head * dim + channel]
        triton.store(target, mixed.astype(qkv.dtype), mask=inside)

    return pl.pallas_call(
        kernel,
        # Heads first: those that run at a time share the tokens' cache lines.
        grid=(heads, (side // window) ** 2, n_clips),
        out_shape=jax.ShapeDtypeStruct((n_clips, n_tokens, width), qkv.dtype),
        compiler_params=triton.CompilerParams(num_warps=4),
        interpret=interpret,
        name="window_attention",
    )(qkv, bias)


def _dot(a: jax.Array, b: jax.Array) -> jax.Array:
    """Matrix product of two tiles, summed in float32."""
    return jax.lax.dot(a, b, preferred_element_type=jnp.float32)


def _border(position: jax.Array, side: int, window: int, shift: int) -> jax.Array:
    """0 inside the shifted grid, 1 and 2 on the two strips of its last windows."""
    return (position >= side - window).astype(jnp.int32) + (position >= side - shift)
