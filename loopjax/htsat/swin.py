"""Swin transformer v1 blocks as HTS-AT uses them: window attention, shifts, patch merging.

After Liu et al. 2021 (arXiv 2103.14030) and LAION-CLAP `clap_module/htsat.py`. Token grids are
square and flattened row by row; B clips, W windows of n = window**2 tokens.
"""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from loopjax.htsat.kernels import on_hopper, on_v5e

LAYER_NORM_EPS = 1e-5  # PyTorch's default; flax would use 1e-6


def window_mask(side: int, window: int) -> np.ndarray:
    """Additive mask of a shifted stage, float32 [windows, window**2, window**2]: 0 or -100."""
    shift = window // 2
    label = np.zeros(side, np.int64)
    label[side - window : side - shift] = 1
    label[side - shift :] = 2
    region = 3 * label[:, None] + label
    per_window = (
        region.reshape(side // window, window, side // window, window)
        .transpose(0, 2, 1, 3)
        .reshape(-1, window * window)
    )
    return np.where(per_window[:, :, None] == per_window[:, None, :], 0.0, -100.0).astype(
        np.float32
    )


def relative_index(window: int) -> np.ndarray:
    """Row of the bias table for each (query, key) pair, int [window**2, window**2]."""
    row, column = np.divmod(np.arange(window * window), window)
    d_row = row[:, None] - row + window - 1
    d_column = column[:, None] - column + window - 1
    return d_row * (2 * window - 1) + d_column


@jax.custom_vjp
def normalize(x: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
    """Layer normalization over the last axis, in float32 whatever the type; two-pass variance.

    The backward pass is written out: XLA's CPU backend would spread statistics of rows over whole
    arrays before it uses them. Sums along rows are products with a vector there, which it
    vectorizes.
    """
    return _normalize_forward(x, scale, bias)[0]


def _normalize_forward(x: jax.Array, scale: jax.Array, bias: jax.Array):
    wide = x.astype(jnp.float32)
    mean = wide.mean(axis=-1, keepdims=True)
    variance = jnp.square(wide - mean).mean(axis=-1, keepdims=True)
    inverse = jax.lax.rsqrt(variance + LAYER_NORM_EPS)
    y = (wide - mean) * (inverse * scale) + bias
    return y.astype(x.dtype), (x, mean, inverse, scale)


def _normalize_backward(saved: tuple[jax.Array, ...], g: jax.Array):
    x, mean, inverse, scale = saved
    width = x.shape[-1]
    g_wide = g.astype(jnp.float32)
    normalized = (x.astype(jnp.float32) - mean) * inverse
    product = jax.lax.optimization_barrier(g_wide * normalized)
    weights = scale.astype(jnp.float32) / width
    mean_g = (g_wide.reshape(-1, width) @ weights).reshape(mean.shape)
    mean_product = (product.reshape(-1, width) @ weights).reshape(mean.shape)
    of_x = inverse * (g_wide * scale - mean_g - normalized * mean_product)
    of_scale = product.reshape(-1, width).sum(axis=0)
    of_bias = g_wide.reshape(-1, width).sum(axis=0)
    return of_x.astype(x.dtype), of_scale.astype(scale.dtype), of_bias.astype(scale.dtype)


normalize.defvjp(_normalize_forward, _normalize_backward)


class LayerNorm(nnx.LayerNorm):
    """LayerNorm with PyTorch's epsilon."""

    def __call__(self, x: jax.Array, *, mask: jax.Array | None = None) -> jax.Array:
        """[..., width] -> same."""
        assert mask is None and self.scale is not None and self.bias is not None
        x, scale, bias = self.promote_dtype((x, self.scale[...], self.bias[...]), dtype=self.dtype)
        return normalize(x, scale, bias)


def layer_norm(width: int, dtype, rngs: nnx.Rngs) -> LayerNorm:
    """LayerNorm over the last axis."""
    return LayerNorm(width, epsilon=LAYER_NORM_EPS, dtype=dtype, rngs=rngs)


class Dense(nnx.Linear):
    """Linear layer that multiplies one flat matrix of tokens.

    XLA's CPU backend runs the backward pass of a two-dimensional product 2.5 times faster than that
    of a product over [clips, tokens, width].
    """

    def __call__(self, inputs: jax.Array, out_sharding: Any = None) -> jax.Array:
        """[..., n_in] -> [..., n_out]."""
        flat = super().__call__(inputs.reshape(-1, inputs.shape[-1]), out_sharding)
        return flat.reshape(*inputs.shape[:-1], -1)


def linear(n_in: int, n_out: int, dtype, rngs: nnx.Rngs, use_bias: bool = True) -> Dense:
    """Linear layer with Swin's initialization."""
    init = nnx.initializers.truncated_normal(0.02)
    return Dense(n_in, n_out, use_bias=use_bias, dtype=dtype, kernel_init=init, rngs=rngs)


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def softmax(x: jax.Array, axis: int) -> jax.Array:
    """Softmax along an axis, whose backward pass reads the forward pass's result.

    Left to itself, XLA's CPU backend computes the result again from the exponentials and sums.
    """
    return jax.nn.softmax(x, axis=axis)


def _softmax_forward(x: jax.Array, axis: int) -> tuple[jax.Array, jax.Array]:
    y = jax.lax.optimization_barrier(jax.nn.softmax(x, axis=axis))
    return y, y


def _softmax_backward(axis: int, y: jax.Array, g: jax.Array) -> tuple[jax.Array]:
    return (y * (g - (y * g).sum(axis=axis, keepdims=True)),)


softmax.defvjp(_softmax_forward, _softmax_backward)


class WindowAttention(nnx.Module):
    """Multi-head attention inside windows, with relative position bias."""

    def __init__(self, width: int, heads: int, window: int, dtype, *, rngs: nnx.Rngs):
        self.heads, self.window, self.dtype = heads, window, dtype
        self.qkv = linear(width, 3 * width, dtype, rngs)
        self.proj = linear(width, width, dtype, rngs)
        init = nnx.initializers.truncated_normal(0.02)
        self.rel_bias = nnx.Param(init(rngs.params(), ((2 * window - 1) ** 2, heads)))

    def __call__(self, x: jax.Array, mask: np.ndarray | None) -> jax.Array:
        """Attends within windows: [B, W, n, width] -> same; additive mask [W, n, n]."""
        b, w, n, width = x.shape
        qkv = self.qkv(x).reshape(b, w, n, 3, self.heads, width // self.heads)
        q, k, v = qkv[..., 0, :, :], qkv[..., 1, :, :], qkv[..., 2, :, :]
        q = q * (width // self.heads) ** -0.5
        bias = self.bias()
        bias = bias[None] if mask is None else bias[None] + mask[:, None]
        # XLA's CPU backend reduces down columns with vectors, along rows of 64 number by number.
        order = "kq" if jax.default_backend() == "cpu" else "qk"
        keys = order.index("k") - 2
        # In bfloat16 the scores leave the product in two bytes; bias and softmax, one pass over
        # them, work in float32.
        scores = jnp.einsum(f"bwqhd,bwkhd->bwh{order}", q, k).astype(jnp.float32)
        scores += bias.swapaxes(-1, -2) if keys == -2 else bias
        weights = jnp.asarray(softmax(scores, keys), self.dtype)
        mixed = jnp.einsum(f"bwh{order},bwkhd->bwqhd", weights, v)
        return self.proj(mixed.reshape(b, w, n, width))

    def fused(self, x: jax.Array, side: int, shift: int) -> jax.Array:
        """The same for whole grids [B, side**2, width] in one kernel, shift and mask included."""
        from loopjax.htsat.kernels.window_attention import window_attention

        interpret = jax.default_backend() != "gpu"
        return self.proj(
            window_attention(
                self.qkv(x),
                self.bias(),
                side=side,
                window=self.window,
                shift=shift,
                interpret=interpret,
            )
        )

    def bias(self) -> jax.Array:
        """Relative position bias [heads, n, n] of (query, key)."""
        return self.rel_bias[...][relative_index(self.window)].transpose(2, 0, 1)


def gelu(x: jax.Array) -> jax.Array:
    """Exact GELU by erf, as PyTorch computes it, in float32 whatever the type.

    On a CPU twice as fast as `jax.nn.gelu(x, approximate=False)`, which goes through erfc.
    """
    wide = x.astype(jnp.float32)
    return (0.5 * wide * (1.0 + jax.lax.erf(wide * math.sqrt(0.5)))).astype(x.dtype)


class Mlp(nnx.Module):
    """Two linear layers around a GELU.

    With `tanh` set, GELU is the tanh approximation (off by at most 5e-4), which on a GPU costs no
    pass over memory of its own: the matrix product applies it.
    """

    def __init__(self, width: int, hidden: int, dtype, *, rngs: nnx.Rngs):
        self.tanh = False
        self.fc1 = linear(width, hidden, dtype, rngs)
        self.fc2 = linear(hidden, width, dtype, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., width] -> same."""
        hidden = self.fc1(x)
        return self.fc2(jax.nn.gelu(hidden, approximate=True) if self.tanh else gelu(hidden))


class SwinBlock(nnx.Module):
    """Pre-norm Swin v1 block; odd blocks shift their windows by half a window.

    With `fused` set, attention is one GPU kernel, and on Hopper GPUs the second half is another
    where there is one for its width; on a TPU v5e the whole block is one. None has a gradient or
    stochastic depth.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        side: int,
        shifted: bool,
        drop_path: float,
        window: int,
        mlp_ratio: int,
        dtype,
        *,
        rngs: nnx.Rngs,
    ):
        self.side, self.window, self.drop_path, self.fused = side, window, drop_path, False
        self.shift = window // 2 if shifted and side > window else 0
        self.norm1 = layer_norm(width, dtype, rngs)
        self.attn = WindowAttention(width, heads, window, dtype, rngs=rngs)
        self.norm2 = layer_norm(width, dtype, rngs)
        self.mlp = Mlp(width, mlp_ratio * width, dtype, rngs=rngs)

    def __call__(self, x: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """Tokens [B, side**2, width] -> same; `key` switches stochastic depth on."""
        if self.fused and on_v5e() and (y := self._whole(x)) is not None:
            return y
        attention_key, mlp_key = (None, None) if key is None else jax.random.split(key)
        x = x + self._drop(self._attend(self.norm1(x)), attention_key)
        if self.fused and on_hopper() and (y := self._fused_half(x)) is not None:
            return y
        return x + self._drop(self.mlp(self.norm2(x)), mlp_key)

    def _attend(self, x: jax.Array) -> jax.Array:
        b, n, width = x.shape
        side, window, shift = self.side, self.window, self.shift
        if self.fused and not on_v5e():
            return self.attn.fused(x, side, shift)
        image = x.reshape(b, side, side, width)
        if shift:
            image = jnp.roll(image, (-shift, -shift), axis=(1, 2))
        count = side // window
        split = (b, count, window, count, window, width)
        windows = image.reshape(split).swapaxes(2, 3).reshape(b, count**2, window**2, width)
        windows = self.attn(windows, window_mask(side, window) if shift else None)
        image = windows.reshape(b, count, count, window, window, width).swapaxes(2, 3)
        image = image.reshape(b, side, side, width)
        if shift:
            image = jnp.roll(image, (shift, shift), axis=(1, 2))
        return image.reshape(b, n, width)

    def _whole(self, x: jax.Array) -> jax.Array | None:
        """The block by its TPU kernel; None where it does not serve these tokens."""
        from loopjax.htsat.kernels.tpu_block import BlockWeights, serves, swin_block

        attn = self.attn
        if not serves(x.shape[0], self.side, x.shape[-1], attn.heads, self.window):
            return None

        def both(*pair: nnx.Param | None) -> tuple[jax.Array, jax.Array]:
            first, second = pair
            assert first is not None and second is not None  # every layer here has both
            return first[...], second[...]

        weights = BlockWeights(
            norm1=both(self.norm1.scale, self.norm1.bias),
            qkv=both(attn.qkv.kernel, attn.qkv.bias),
            relative_bias=attn.bias(),
            proj=both(attn.proj.kernel, attn.proj.bias),
            norm2=both(self.norm2.scale, self.norm2.bias),
            fc1=both(self.mlp.fc1.kernel, self.mlp.fc1.bias),
            fc2=both(self.mlp.fc2.kernel, self.mlp.fc2.bias),
        )
        return swin_block(x, weights, side=self.side, shift=self.shift, epsilon=LAYER_NORM_EPS)

    def _fused_half(self, x: jax.Array) -> jax.Array | None:
        """The second half by its kernel; None where there is none for the tokens."""
        from loopjax.htsat.kernels.mlp import MlpWeights, mlp, serves

        if not serves(x.size // x.shape[-1], x.shape[-1]):
            return None
        norm, fc1, fc2 = self.norm2, self.mlp.fc1, self.mlp.fc2
        parameters = (norm.scale, norm.bias, fc1.kernel, fc1.bias, fc2.kernel, fc2.bias)
        weights = MlpWeights(*(p[...].astype(x.dtype) for p in parameters if p is not None))
        return mlp(x.reshape(-1, x.shape[-1]), weights, epsilon=LAYER_NORM_EPS).reshape(x.shape)

    def _drop(self, branch: jax.Array, key: jax.Array | None) -> jax.Array:
        if key is None or self.drop_path == 0.0:
            return branch
        keep = jax.random.bernoulli(key, 1.0 - self.drop_path, (branch.shape[0], 1, 1))
        return branch * (keep / (1.0 - self.drop_path)).astype(branch.dtype)


class PatchMerging(nnx.Module):
    """Halves both sides of the token grid and doubles the width."""

    def __init__(self, width: int, dtype, *, rngs: nnx.Rngs):
        self.norm = layer_norm(4 * width, dtype, rngs)
        self.reduction = linear(4 * width, 2 * width, dtype, rngs, use_bias=False)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Tokens [B, side**2, width] -> [B, (side / 2)**2, 2 * width]."""
        b, n, width = x.shape
        half = math.isqrt(n) // 2
        # Channel order (even, even), (odd row, even), (even, odd column), (odd, odd).
        x = x.reshape(b, half, 2, half, 2, width).transpose(0, 1, 3, 4, 2, 5)
        return self.reduction(self.norm(x.reshape(b, half * half, 4 * width)))
