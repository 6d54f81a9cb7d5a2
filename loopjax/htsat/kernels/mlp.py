"""The second half of a Swin block as one GPU kernel in Triton, for bfloat16 inference.

x + fc2(gelu(fc1(layer_norm(x)))) reads every token once and writes it once: the hidden layer, four
times as wide, is made chunk by chunk and used up on the spot. What it computes is
`swin.SwinBlock`'s second line with the tanh form of GELU.
"""

import math
import struct
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from loopjax.htsat.kernels.mlp_parts import GELU_CUBIC, GELU_SLOPE, MlpWeights, twice_gelu


@dataclass(frozen=True)
class Tiling:
    """How a kernel divides the work.

    Attributes:
        tokens: of one program, at most.
        chunk: hidden channels that are made at a time.
        warps: that share a program.
        stages: chunks of weights under way or in use.
    """

    tokens: int = 128
    chunk: int = 64
    warps: int = 8
    stages: int = 2


# Compiled for an H100 none of them spills registers.
TILINGS = {
    96: Tiling(tokens=64, warps=4),
    128: Tiling(),
    192: Tiling(),
    256: Tiling(tokens=64),
}


def mlp(
    x: jax.Array,
    weights: MlpWeights,
    *,
    epsilon: float,
    tiling: Tiling | None = None,
    interpret: bool = False,
) -> jax.Array:
    """Adds the MLP of the normalized tokens to the tokens.

    Args:
        x: tokens [N, width], N a multiple of 16.
        weights: of the LayerNorm and both layers.
        epsilon: of the LayerNorm.
        tiling: how to divide the work; by default as the width has it in `TILINGS`.
        interpret: emulate the kernel, slowly, on any device.

    Returns:
        [N, width] in the type of `x`.
    """
    n_tokens, width = x.shape
    hidden = len(weights.bias1)
    tiling = tiling or TILINGS[width]
    tokens = math.gcd(n_tokens, tiling.tokens)
    columns = _columns(width)
    gelu, again = (twice_gelu, lambda x: x) if interpret else (_twice_gelu_on_a_gpu, _again)

    def kernel(x_ref, scale_ref, shift_ref, kernel1_ref, bias1_ref, kernel2_ref, bias2_ref, y_ref):
        start = pl.program_id(0) * tokens
        x = [x_ref[pl.ds(start, tokens), part] for part in columns]
        scale, shift = ([ref[part] for part in columns] for ref in (scale_ref, shift_ref))
        normed = _layer_norm(x, scale, shift, epsilon)

        def add_chunk(i: jax.Array, sums: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
            chunk = pl.ds(i * tiling.chunk, tiling.chunk)
            products = [
                _dot(a, kernel1_ref[part, chunk]) for a, part in zip(normed, columns, strict=True)
            ]
            inner = gelu(sum(products) + bias1_ref[chunk][None, :]).astype(x_ref.dtype)
            return tuple(
                total + _dot(inner, kernel2_ref[chunk, part])
                for total, part in zip(sums, columns, strict=True)
            )

        zeros = tuple(jnp.zeros((tokens, part.size), jnp.float32) for part in columns)
        sums = jax.lax.fori_loop(0, hidden // tiling.chunk, add_chunk, zeros)
        row = again(start + jnp.arange(tokens))[:, None]
        for part, total in zip(columns, sums, strict=True):
            branch = (0.5 * total + bias2_ref[part][None, :]).astype(x_ref.dtype)
            place = row, part.start + jnp.arange(part.size)[None, :]
            triton.store(y_ref.at[place], triton.load(x_ref.at[place]) + branch)

    return pl.pallas_call(
        kernel,
        grid=(n_tokens // tokens,),
        out_shape=jax.ShapeDtypeStruct(x.shape, x.dtype),
        compiler_params=triton.CompilerParams(num_warps=tiling.warps, num_stages=tiling.stages),
        interpret=interpret,
        name="mlp",
    )(
        x,
        *weights._replace(
            bias1=weights.bias1.astype(jnp.float32), bias2=weights.bias2.astype(jnp.float32)
        ),
    )


def _columns(width: int) -> list[pl.Slice]:
    """Parts of the channels: Triton's tiles are powers of two, and 96 is 64 and 32."""
    sizes = [1 << bit for bit in reversed(range(width.bit_length())) if width >> bit & 1]
    return [pl.Slice(sum(sizes[:i]), size) for i, size in enumerate(sizes)]


def _layer_norm(
    x: list[jax.Array], scale: list[jax.Array], shift: list[jax.Array], epsilon: float
) -> list[jax.Array]:
    """Normalizes tokens whose channels come in parts, in float32, to their own type."""
    width = sum(part.shape[1] for part in x)
    wide = [part.astype(jnp.float32) for part in x]
    mean = sum(jnp.sum(part, axis=1, keepdims=True) for part in wide) / width
    wide = [part - mean for part in wide]
    variance = sum(jnp.sum(part * part, axis=1, keepdims=True) for part in wide) / width
    factor = jax.lax.rsqrt(variance + epsilon)
    return [
        (part * (factor * a.astype(jnp.float32)) + b.astype(jnp.float32)).astype(a.dtype)
        for part, a, b in zip(wide, scale, shift, strict=True)
    ]


def _twice_gelu_on_a_gpu(x: jax.Array) -> jax.Array:
    """`twice_gelu` in five instructions: Triton contracts nothing, and its tanh is the slow one."""
    [y] = triton.elementwise_inline_asm(
        "{ .reg .f32 t;"
        " mul.f32 t, $1, $1;"
        f" fma.rn.f32 t, t, {_ptx(GELU_CUBIC)}, {_ptx(GELU_SLOPE)};"
        " mul.f32 t, t, $1;"
        " tanh.approx.f32 t, t;"
        " fma.rn.f32 $0, $1, t, $1; }",
        args=[x],
        constraints="=f,f",
        pack=1,
        result_shape_dtypes=[jax.ShapeDtypeStruct(x.shape, x.dtype)],
    )
    return y


def _again(x: jax.Array) -> jax.Array:
    """The same integers, as if new: addresses known before a loop occupy registers throughout."""
    result = jax.ShapeDtypeStruct(x.shape, x.dtype)
    [y] = triton.elementwise_inline_asm(
        "mov.u32 $0, $1;", args=[x], constraints="=r,r", pack=1, result_shape_dtypes=[result]
    )
    return y


def _ptx(x: float) -> str:
    """A float32 as PTX writes it."""
    return f"0f{struct.pack('>f', x).hex()}"


def _dot(a: jax.Array, b: jax.Array) -> jax.Array:
    """Matrix product of two tiles, summed in float32."""
    return jax.lax.dot(a, b, preferred_element_type=jnp.float32)
