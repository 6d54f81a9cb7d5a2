"""Both kernels of the fused MLP: interpreted against the plain path, and lowered for CUDA."""

import inspect
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.experimental.pallas import mosaic_gpu

from loopjax.encoders import encoder as encoder_module
from loopjax.htsat.kernels import mlp as triton_kernel
from loopjax.htsat.kernels import mlp_mosaic as mosaic_kernel
from loopjax.htsat.kernels.mlp_parts import MlpWeights
from loopjax.htsat.model import HtsatConfig
from loopjax.htsat.swin import SwinBlock

KERNELS = {"triton": triton_kernel, "mosaic": mosaic_kernel}
interpreted = pytest.mark.skipif(
    not hasattr(mosaic_gpu, "InterpretGPUParams"), reason="jax 0.11 brought the interpreter"
)


@pytest.mark.parametrize(
    ("compiler", "width", "dtype"),
    [
        ("triton", 96, jnp.float32),
        ("triton", 96, jnp.bfloat16),
        # Weights that stay, and weights that go round.
        pytest.param("mosaic", 96, jnp.bfloat16, marks=interpreted),
        pytest.param("mosaic", 128, jnp.bfloat16, marks=interpreted),
        pytest.param("mosaic", 192, jnp.bfloat16, marks=[interpreted, pytest.mark.slow]),
    ],
)
def test_equals_the_plain_path(compiler, width, dtype, monkeypatch):
    # Few, so that a program works on several tiles and one of its warpgroups on fewer.
    monkeypatch.setattr(mosaic_kernel, "PROCESSORS", 1)
    block = block_of(width, dtype)
    x = (3.0 * jax.random.normal(jax.random.key(2), (4, 64, width)) + 1.0).astype(dtype)
    plain, fused = (np.asarray(run(block, x, how), np.float64) for how in (None, compiler))
    if dtype == jnp.float32:
        np.testing.assert_allclose(fused, plain, atol=2e-6 * np.abs(plain).max())
    else:
        norms = np.linalg.norm(fused, axis=-1) * np.linalg.norm(plain, axis=-1)
        assert np.max(1.0 - (fused * plain).sum(-1) / norms) <= 5e-5


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


def run(block: SwinBlock, x: jax.Array, compiler) -> jax.Array:
    """The block on tokens, and whether it used a kernel is as asked."""
    block.fused_mlp = compiler
    graph, state = nnx.split(block)
    program = str(jax.make_jaxpr(nnx.merge(graph, state))(x))
    assert ("pallas_call" in program or "mpmd_map" in program) == (compiler is not None)
    return jax.jit(lambda state, x: nnx.merge(graph, state)(x))(state, x)


@pytest.mark.parametrize(
    ("compiler", "width"),
    [(compiler, width) for compiler in KERNELS for width in KERNELS[compiler].TILINGS],
)
def test_lowers_for_a_gpu(compiler, width):
    """Lowering for CUDA needs no GPU; running the kernel does."""
    shapes = [(width,), (width,), (width, 4 * width), (4 * width,), (4 * width, width), (width,)]
    weights = MlpWeights(*(jax.ShapeDtypeStruct(shape, jnp.bfloat16) for shape in shapes))
    x = jax.ShapeDtypeStruct((4096, width), jnp.bfloat16)
    # jax asks which GPU it is for: from 0.10.2 on also on which platform.
    known = inspect.signature(jax.sharding.AbstractDevice).parameters
    gpu = jax.sharding.AbstractDevice(*("NVIDIA H100 80GB HBM3", 132, "cuda")[: len(known)])
    with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), (), abstract_device=gpu)):
        traced = jax.jit(partial(KERNELS[compiler].mlp, epsilon=1e-5)).trace(x, weights)
        assert compiler in traced.lower(lowering_platforms=("cuda",)).as_text()


def test_tokens_that_do_not_fill_the_tiles_are_refused():
    weights = MlpWeights(
        *(jnp.zeros(shape) for shape in ((128,),) * 2 + ((128, 512), (512,), (512, 128), (128,)))
    )
    with pytest.raises(ValueError, match="no kernel for 64 tokens of width 128"):
        mosaic_kernel.mlp(jnp.zeros((64, 128)), weights, epsilon=1e-5)


def test_an_encoder_has_it_at_the_widths_that_are_listed(monkeypatch):
    def compilers(precision):
        model = nnx.merge(*encoder_module.abstract_model.__wrapped__(HtsatConfig.tiny(), precision))
        return [stage.blocks[0].fused_mlp for stage in model.stages]

    monkeypatch.setattr(encoder_module, "FUSED_MLP", {192: "mosaic"})
    assert compilers("bf16-fused") == [None, "mosaic", None, None]
    assert compilers("bf16-fast") == [None] * 4
