"""The fused MLP kernel: interpreted against the plain path, and lowered for CUDA."""

import inspect
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.experimental.pallas import mosaic_gpu

from loopjax.htsat import swin
from loopjax.htsat.kernels import mlp as kernel
from loopjax.htsat.kernels.mlp import TILINGS, MlpWeights, mlp, serves
from loopjax.htsat.swin import LAYER_NORM_EPS, SwinBlock
from tests.htsat.cases import disturb


@pytest.mark.skipif(
    not hasattr(mosaic_gpu, "InterpretGPUParams"), reason="jax 0.11 brought the interpreter"
)
# Weights that stay, and weights that go round.
@pytest.mark.parametrize("width", [96, 128, pytest.param(192, marks=pytest.mark.slow)])
def test_equals_the_plain_path(width, monkeypatch):
    # Few, so that a program works on several tiles and one of its warpgroups on fewer.
    monkeypatch.setattr(kernel, "PROCESSORS", 1)
    block = block_of(width)
    x = (3.0 * jax.random.normal(jax.random.key(2), (4, 64, width)) + 1.0).astype(jnp.bfloat16)
    plain = np.asarray(jax.jit(lambda x: x + block.mlp(block.norm2(x)))(x), np.float64)
    monkeypatch.setattr(kernel, "mlp", partial(mlp, interpret=True))
    fused = np.asarray(jax.jit(block._fused_half)(x), np.float64)
    norms = np.linalg.norm(fused, axis=-1) * np.linalg.norm(plain, axis=-1)
    assert np.max(1.0 - (fused * plain).sum(-1) / norms) <= 5e-5


def block_of(width: int) -> SwinBlock:
    """A block whose every parameter of the second half matters."""
    block = SwinBlock(width, width // 32, 8, False, 0.0, 8, 4, jnp.bfloat16, rngs=nnx.Rngs(0))
    disturb((block.norm2, block.mlp.fc1, block.mlp.fc2))
    block.mlp.tanh = True
    return block


@pytest.mark.parametrize("width", TILINGS)
def test_lowers_for_a_gpu(width):
    """Lowering for CUDA needs no GPU; running the kernel does."""
    shapes = [(width,), (width,), (width, 4 * width), (4 * width,), (4 * width, width), (width,)]
    weights = MlpWeights(*(jax.ShapeDtypeStruct(shape, jnp.bfloat16) for shape in shapes))
    x = jax.ShapeDtypeStruct((4096, width), jnp.bfloat16)
    # jax asks which GPU it is for, and on which platform.
    known = inspect.signature(jax.sharding.AbstractDevice).parameters
    gpu = jax.sharding.AbstractDevice(*("NVIDIA H100 80GB HBM3", 132, "cuda")[: len(known)])
    with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), (), abstract_device=gpu)):
        traced = jax.jit(partial(mlp, epsilon=1e-5)).trace(x, weights)
        assert "mosaic" in traced.lower(lowering_platforms=("cuda",)).as_text()


def test_tokens_that_do_not_fill_the_tiles_are_refused():
    assert [serves(64, width) for width in (48, 96, 128, 192, 384)] == [False, True] + 3 * [False]
    assert all(serves(128, width) for width in TILINGS)
    shapes = ((128,), (128,), (128, 512), (512,), (512, 128), (128,))
    weights = MlpWeights(*map(jnp.zeros, shapes))
    with pytest.raises(ValueError, match="no kernel for 64 tokens of width 128"):
        mlp(jnp.zeros((64, 128)), weights, epsilon=LAYER_NORM_EPS)


@pytest.mark.parametrize("hopper", [True, False])
@pytest.mark.parametrize("fused", [True, False])
def test_blocks_use_it_on_hopper_where_kernels_are_wanted(hopper, fused, monkeypatch):
    monkeypatch.setattr(swin, "on_hopper", lambda: hopper)
    used = []
    monkeypatch.setattr(kernel, "mlp", lambda x, *_, **__: used.append(x.shape) or x)
    block = block_of(96)
    block.fused = fused
    monkeypatch.setattr(block, "_attend", lambda x: x)
    jax.eval_shape(block, jnp.zeros((2, 64, 96), jnp.bfloat16))
    assert used == ([(128, 96)] if hopper and fused else [])
