"""A whole Swin block as one kernel for Google's TPUs, for bfloat16 inference.

What `swin.SwinBlock` computes with the tanh form of GELU, for a row of windows at a time: every
token is read once and written once, and queries, scores and the hidden layer never leave the chip.
A TPU works on tiles of 8 x 128 numbers and multiplies 128 x 128 matrices, which decides three
things:

* heads, 24 or 32 channels wide, are laid out 32 apart, so that four fill the lanes of a tile; of
  four heads the product for one masks the other three;
* two windows of 64 tokens are attended to as one of 128, with scores between them at -1e9;
* a window is eight tokens wide, the height of a tile, so cutting windows out of the image only
  renames tiles.

Compiled for v5e (`python -m scripts.aot`) and proved in the interpreter; not yet run on a device.
"""

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

WINDOW = 8
PAIR = 2 * WINDOW**2  # tokens of two windows
LANES = 128
HEAD_LANES = 32
TOKENS = 256  # of a program where the image has fewer in a row of windows: more clips
VMEM_BYTES = 100 * 2**20  # of a v5e's 128 MiB
APART = -1e9  # score between tokens of two windows
MASKED = -100.0  # score between regions of a shifted window, as `swin.window_mask`


class BlockWeights(NamedTuple):
    """Parameters of a block, C channels wide, of any floating type.

    Attributes:
        norm1: scale and bias of the first LayerNorm, [C] each.
        qkv: kernel [C, 3 C] and bias [3 C].
        relative_bias: relative position bias [heads, 64, 64] of (query, key).
        proj: kernel [C, C] and bias [C].
        norm2: scale and bias of the second LayerNorm.
        fc1: kernel [C, hidden] and bias [hidden].
        fc2: kernel [hidden, C] and bias [C].
    """

    norm1: tuple[jax.Array, jax.Array]
    qkv: tuple[jax.Array, jax.Array]
    relative_bias: jax.Array
    proj: tuple[jax.Array, jax.Array]
    norm2: tuple[jax.Array, jax.Array]
    fc1: tuple[jax.Array, jax.Array]
    fc2: tuple[jax.Array, jax.Array]


def serves(batch: int, side: int, width: int, heads: int, window: int) -> bool:
    """Whether the kernel takes so many clips of this grid."""
    if window != WINDOW or side % WINDOW or width // heads > HEAD_LANES:
        return False
    if heads % min(heads, LANES // HEAD_LANES):
        return False
    # Pairs of windows lie in a row, or are of two clips.
    return side // WINDOW % 2 == 0 or (side == WINDOW and batch % 2 == 0)


def swin_block(
    x: jax.Array,
    weights: BlockWeights,
    *,
    side: int,
    shift: int,
    epsilon: float,
    interpret: bool = False,
) -> jax.Array:
    """Tokens [B, side**2, C] -> same.

    Args:
        x: tokens, flattened row by row.
        weights: of the block.
        side: of the grid, for which `serves` holds.
        shift: by how many tokens windows are shifted, 0 or half a window.
        epsilon: of the LayerNorms.
        interpret: computes on any device, slowly.
    """
    batch, n_tokens, width = x.shape
    heads = weights.relative_bias.shape[0]
    clips = math.gcd(batch, max(1, TOKENS // (side * WINDOW)))
    image = x.reshape(batch, side, side, width)
    rows = side // WINDOW
    if shift:
        # Rows of shifted windows: the lower half of one row of windows and the upper of the next.
        images = [image, image]
        blocks = [
            pl.BlockSpec((clips, shift, side, width), partial(_half_row, half=half, of=2 * rows))
            for half in (1, 2)
        ]
    else:
        images = [image]
        blocks = [pl.BlockSpec((clips, WINDOW, side, width), lambda i, j: (i, j, 0, 0))]
    operands = [*_operands(weights, width, heads), *_masks()]
    whole = [pl.BlockSpec(a.shape, lambda i, j, n=a.ndim: (0,) * n) for a in operands]
    grid = (batch // clips, rows)
    out = pl.pallas_call(
        partial(_kernel, heads=heads, shift=shift, epsilon=epsilon),
        grid=grid,
        in_specs=[*blocks, *whole],
        out_specs=pl.BlockSpec((clips, WINDOW, side, width), lambda i, j: (i, j, 0, 0)),
        out_shape=jax.ShapeDtypeStruct(image.shape, x.dtype),
        scratch_shapes=[pltpu.VMEM((clips * side * WINDOW, heads * HEAD_LANES), jnp.bfloat16)],
        compiler_params=pltpu.CompilerParams(vmem_limit_bytes=VMEM_BYTES),
        metadata={"programs": str(math.prod(grid))},
        interpret=interpret,
    )(*images, *operands)
    if shift:
        out = jnp.roll(out, (shift, shift), axis=(1, 2))
    return out.reshape(batch, n_tokens, width)


def _half_row(i: jax.Array, j: jax.Array, half: int, of: int) -> tuple[jax.Array | int, ...]:
    return i, (2 * j + half) % of, 0, 0


def _operands(weights: BlockWeights, width: int, heads: int) -> list[jax.Array]:
    """Parameters as the kernel multiplies them: kernels bfloat16, the rest float32 rows."""

    def spread(columns: jax.Array) -> jax.Array:
        """[n, C] -> [n, heads * HEAD_LANES], zeros behind each head's channels."""
        apart = columns.reshape(-1, heads, width // heads)
        gap = HEAD_LANES - width // heads
        return jnp.pad(apart, ((0, 0), (0, 0), (0, gap))).reshape(len(columns), -1)

    def layer(kernel: jax.Array, bias: jax.Array) -> list[jax.Array]:
        return [kernel.astype(jnp.bfloat16), row(bias)]

    def row(vector: jax.Array) -> jax.Array:
        return vector.astype(jnp.float32).reshape(1, -1)

    found = [row(part) for part in weights.norm1]
    kernel, bias = (part.astype(jnp.float32) for part in weights.qkv)
    for i, scale in enumerate(((width // heads) ** -0.5, 1.0, 1.0)):
        own = slice(i * width, (i + 1) * width)
        found += layer(spread(kernel[:, own]) * scale, spread(bias[None, own]) * scale)
    same_window = np.kron(np.eye(2), np.ones((WINDOW**2, WINDOW**2))) > 0
    pairs = jnp.tile(weights.relative_bias.astype(jnp.float32), (1, 2, 2))
    found += [jnp.where(same_window, pairs, APART)]
    found += layer(spread(weights.proj[0].T).T, weights.proj[1])
    found += [row(part) for part in weights.norm2]
    return [*found, *layer(*weights.fc1), *layer(*weights.fc2)]


def _masks() -> list[jax.Array]:
    """Lanes of each head of a tile [4, 128], and what shifted windows of the image's ends mask.

    The lower half of the last row of windows came from the other end of the image, and so did the
    right half of the last window of each row, the second of a pair: [128, 128] each.
    """
    own = np.kron(np.eye(LANES // HEAD_LANES), np.ones((1, HEAD_LANES)))
    token = np.arange(PAIR)
    lower = token % WINDOW**2 // WINDOW >= WINDOW // 2
    right = (token % WINDOW >= WINDOW // 2) & (token >= WINDOW**2)
    masks = [np.where(side[:, None] == side, 0.0, MASKED) for side in (lower, right)]
    return [jnp.asarray(own, jnp.bfloat16), *(jnp.asarray(mask, jnp.float32) for mask in masks)]


def _kernel(*refs, heads: int, shift: int, epsilon: float) -> None:
    """One row of windows of some clips."""
    images, refs = refs[: 2 if shift else 1], refs[2 if shift else 1 :]
    norm1, query, key, value = (refs[i : i + 2] for i in (0, 2, 4, 6))
    bias_ref = refs[8]
    proj, norm2, fc1, fc2 = (refs[i : i + 2] for i in (9, 11, 13, 15))
    own_ref, lower_ref, right_ref, out_ref, mixed_ref = refs[17:]
    image = jnp.concatenate([ref[...].astype(jnp.float32) for ref in images], axis=1)
    clips, _, side, width = image.shape
    if shift:
        image = jnp.concatenate([image[:, :, shift:], image[:, :, :shift]], axis=2)
    n_windows = side // WINDOW
    windows = [
        image[clip, :, WINDOW * i : WINDOW * (i + 1)].reshape(WINDOW**2, width)
        for clip in range(clips)
        for i in range(n_windows)
    ]
    x = jnp.concatenate(windows, axis=0)
    y = _layer_norm(x, norm1, epsilon)
    q, k, v = (_linear(y, layer).astype(jnp.bfloat16) for layer in (query, key, value))

    lanes = min(LANES, heads * HEAD_LANES)
    masks = None
    if shift:
        last_row = (pl.program_id(1) == pl.num_programs(1) - 1).astype(jnp.float32)
        lower = lower_ref[...] * last_row
        masks = lower, jnp.minimum(lower, right_ref[...])
    for pair in range(len(windows) // 2):
        tokens = slice(PAIR * pair, PAIR * (pair + 1))
        for tile in range(heads * HEAD_LANES // lanes):
            channels = slice(lanes * tile, lanes * (tile + 1))
            queries, keys, values = (part[tokens, channels] for part in (q, k, v))
            mixed = jnp.zeros((PAIR, lanes), jnp.float32)
            for j in range(lanes // HEAD_LANES):
                own = own_ref[j : j + 1, :lanes]
                scores = _product(queries * own, keys, contract=1)
                scores += bias_ref[tile * (lanes // HEAD_LANES) + j]
                if masks:
                    scores += masks[(2 * pair + 2) % n_windows == 0]
                weights = jnp.exp(scores - scores.max(axis=-1, keepdims=True))
                share = _product(weights.astype(jnp.bfloat16), values * own)
                mixed += share / weights.sum(axis=-1, keepdims=True)
            mixed_ref[tokens, channels] = mixed.astype(jnp.bfloat16)
    x += _linear(mixed_ref[...], proj)

    y = _layer_norm(x, norm2, epsilon)
    hidden = jax.nn.gelu(_linear(y, fc1), approximate=True)
    x += _linear(hidden.astype(jnp.bfloat16), fc2)
    for clip in range(clips):
        first = clip * n_windows
        rows = [
            x[WINDOW**2 * i : WINDOW**2 * (i + 1)].reshape(WINDOW, WINDOW, width)
            for i in range(first, first + n_windows)
        ]
        out_ref[clip] = jnp.concatenate(rows, axis=1).astype(out_ref.dtype)


def _layer_norm(x: jax.Array, parameters, epsilon: float) -> jax.Array:
    scale, bias = parameters
    centered = x - x.mean(axis=-1, keepdims=True)
    variance = jnp.square(centered).mean(axis=-1, keepdims=True)
    normal = centered * lax.rsqrt(variance + epsilon)
    return (normal * scale[...] + bias[...]).astype(jnp.bfloat16)


def _linear(x: jax.Array, layer) -> jax.Array:
    kernel, bias = layer
    return _product(x, kernel[...]) + bias[...]


def _product(a: jax.Array, b: jax.Array, contract: int = 0) -> jax.Array:
    """The product of a with b, or b's transpose, summed in float32."""
    dimensions = (((1,), (contract,)), ((), ()))
    return lax.dot_general(a, b, dimensions, preferred_element_type=jnp.float32)
