"""The fused MLP kernel: interpreted against the plain path, and lowered for CUDA."""

import inspect
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from loopjax.htsat.kernels.mlp import TILINGS, MlpWeights, mlp
from loopjax.htsat.swin import SwinBlock


def block_of(width: int, dtype) -> SwinBlock:
    """A block whose every parameter of the second half matters."""
    block = SwinBlock(width, width // 32, 8, False, 0.0, 8, 4, dtype, rngs=nnx.Rngs(0))
    layers = (block.norm2, block.mlp.fc1, block.mlp.fc2)
    key = jax.random.key(1)
    for parameter in jax.tree.leaves(layers, is_leaf=lambda leaf: isinstance(leaf, nnx.Param)):
        key, own = jax.random.split(key)
        parameter[...] += 0.1 * jax.random.normal(own, parameter.shape)
    block.mlp.tanh = True
    return block


@pytest.mark.parametrize(
    ("width", "dtype"), [(96, jnp.float32), (96, jnp.bfloat16), (128, jnp.bfloat16)]
)
def test_equals_the_plain_path(width, dtype):
    block = block_of(width, dtype)
    x = (3.0 * jax.random.normal(jax.random.key(2), (2, 64, width)) + 1.0).astype(dtype)
    plain, fused = (np.asarray(run(block, x, fused), np.float64) for fused in (False, True))
    if dtype == jnp.float32:
        np.testing.assert_allclose(fused, plain, atol=2e-6 * np.abs(plain).max())
    else:
        norms = np.linalg.norm(fused, axis=-1) * np.linalg.norm(plain, axis=-1)
        assert np.max(1.0 - (fused * plain).sum(-1) / norms) <= 5e-5


def run(block: SwinBlock, x: jax.Array, fused: bool) -> jax.Array:
    """The block on tokens, and whether it used the kernel is as asked."""
    block.fused_mlp = fused
    graph, state = nnx.split(block)
    assert ("pallas_call" in str(jax.make_jaxpr(nnx.merge(graph, state))(x))) == fused
    return nnx.merge(graph, state)(x)


@pytest.mark.parametrize("width", TILINGS)
def test_lowers_to_triton(width):
    """Lowering for CUDA needs no GPU; running the kernel does."""
    shapes = [(width,), (width,), (width, 4 * width), (4 * width,), (4 * width, width), (width,)]
    weights = MlpWeights(*(jax.ShapeDtypeStruct(shape, jnp.bfloat16) for shape in shapes))
    x = jax.ShapeDtypeStruct((4096, width), jnp.bfloat16)
    # jax asks which GPU it is for: from 0.10.2 on also on which platform.
    known = inspect.signature(jax.sharding.AbstractDevice).parameters
    gpu = jax.sharding.AbstractDevice(*("NVIDIA H100 80GB HBM3", 132, "cuda")[: len(known)])
    with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), (), abstract_device=gpu)):
        traced = jax.jit(partial(mlp, epsilon=1e-5)).trace(x, weights)
        assert "triton" in traced.lower(lowering_platforms=("cuda",)).as_text()
