"""The Hopper kernel for window attention: interpreted against the plain path, and lowered."""

import inspect
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.experimental.pallas import mosaic_gpu as plgpu

from loopjax.htsat.kernels import window_attention_mosaic
from loopjax.htsat.kernels.window_attention_mosaic import window_attention
from loopjax.htsat.model import HtsatConfig
from loopjax.htsat.swin import SwinBlock

interpreted = pytest.mark.skipif(
    not hasattr(plgpu, "InterpretGPUParams"), reason="jax 0.11 brought the interpreter"
)


@interpreted
@pytest.mark.parametrize(
    ("width", "heads", "side", "shifted", "clips"),
    [
        (48, 2, 16, True, 1),
        (48, 2, 16, False, 1),
        (128, 4, 8, False, 2),
        pytest.param(24, 1, 64, True, 1, marks=pytest.mark.slow),
        pytest.param(32, 1, 64, False, 1, marks=pytest.mark.slow),
        pytest.param(96, 4, 32, True, 2, marks=pytest.mark.slow),
    ],
)
def test_equals_the_plain_path(width, heads, side, shifted, clips, monkeypatch):
    monkeypatch.setattr(window_attention_mosaic, "PROCESSORS", 1)  # so that the ring goes round
    block = SwinBlock(width, heads, side, shifted, 0.0, 8, 4, jnp.float32, rngs=nnx.Rngs(0))
    # Biases and tokens large enough that a wrong mask or order shows.
    table = block.attn.rel_bias
    table[...] = 40.0 * table[...]
    x = 3.0 * jax.random.normal(jax.random.key(1), (clips, side**2, width))
    plain = np.asarray(block._attend(x))
    attend = partial(window_attention, side=side, window=8, shift=block.shift, interpret=True)
    ours = block.attn.proj(attend(block.attn.qkv(x), block.attn._bias()))
    np.testing.assert_allclose(ours, plain, atol=1e-6 * np.abs(plain).max())


@interpreted
def test_heads_and_clips_that_are_not_numbers_keep_to_themselves(monkeypatch):
    monkeypatch.setattr(window_attention_mosaic, "PROCESSORS", 1)
    shape = (2, 8, 8, 3, 2, 24)  # clips, rows, columns, parts, heads, channels
    qkv = jax.random.normal(jax.random.key(0), shape, jnp.bfloat16)
    qkv = qkv.at[0, ..., 0, :].set(jnp.nan).at[1, ..., 1, :].set(jnp.inf)
    bias = jnp.zeros((2, 64, 64))
    attend = partial(window_attention, side=8, window=8, shift=4, interpret=True)
    out = np.asarray(attend(qkv.reshape(2, 64, 144), bias), np.float32).reshape(2, 64, 2, 24)
    finite = np.isfinite(out).all(axis=(1, 3))
    np.testing.assert_array_equal(finite, [[False, True], [True, False]])


@pytest.mark.parametrize("config", [HtsatConfig.tiny(), HtsatConfig.base(), HtsatConfig.nano()])
def test_lowers_for_a_gpu_at_every_stage(config):
    """Lowering for CUDA needs no GPU; running the kernel does."""
    for i, heads in enumerate(config.heads[: len(config.depths)]):
        side, width = config.grid // 2**i, config.width * 2**i
        kernel = partial(window_attention, side=side, window=8, shift=4 if side > 8 else 0)
        shapes = (
            jax.ShapeDtypeStruct((2, side**2, 3 * width), jnp.bfloat16),
            jax.ShapeDtypeStruct((heads, 64, 64), jnp.float32),
        )
        # jax asks which GPU it is for: from 0.10.2 on also on which platform.
        known = inspect.signature(jax.sharding.AbstractDevice).parameters
        gpu = jax.sharding.AbstractDevice(*("NVIDIA H100 80GB HBM3", 132, "cuda")[: len(known)])
        with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), (), abstract_device=gpu)):
            lowered = jax.jit(kernel).trace(*shapes).lower(lowering_platforms=("cuda",))
        assert "mosaic_gpu" in lowered.as_text()


@pytest.mark.parametrize(("window", "dim"), [(4, 24), (8, 48), (8, 12)])
def test_other_sizes_are_refused(window, dim):
    qkv, bias = jnp.zeros((1, 64, 3 * dim)), jnp.zeros((1, 64, 64))
    with pytest.raises(ValueError, match="no kernel for windows"):
        window_attention(qkv, bias, side=8, window=window, shift=0)
