"""The fused attention kernel: interpreted against the plain path, and lowered for CUDA."""

import inspect
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from loopjax.encoders import encoder as encoder_module
from loopjax.encoders.load import load_encoder
from loopjax.errors import UserError
from loopjax.htsat.kernels.window_attention import window_attention
from loopjax.htsat.model import HtsatConfig
from loopjax.htsat.swin import SwinBlock
from scripts.goldens.synthetic import clip
from tests.htsat import tolerances
from tests.htsat.cases import micro


@pytest.mark.parametrize(
    ("width", "heads", "side", "shifted"),
    [(48, 2, 16, True), (32, 2, 16, False), (24, 1, 24, True), (32, 2, 8, True)],
)
def test_equals_the_plain_path(width, heads, side, shifted):
    block = SwinBlock(width, heads, side, shifted, 0.0, 8, 4, jnp.float32, rngs=nnx.Rngs(0))
    # Biases and tokens large enough that a wrong mask or order shows.
    table = block.attn.rel_bias
    table[...] = 40.0 * table[...]
    x = 3.0 * jax.random.normal(jax.random.key(1), (1, side**2, width))
    plain = np.asarray(block._attend(x))
    block.fused = True
    np.testing.assert_allclose(block._attend(x), plain, atol=1e-6 * np.abs(plain).max())


@pytest.mark.parametrize("config", [HtsatConfig.tiny(), HtsatConfig.base(), HtsatConfig.nano()])
def test_lowers_to_triton_at_every_stage(config):
    """Lowering for CUDA needs no GPU; running the kernel does."""
    for i, heads in enumerate(config.heads[: len(config.depths)]):
        side, width = config.grid // 2**i, config.width * 2**i
        kernel = partial(window_attention, side=side, window=8, shift=4 if side > 8 else 0)
        shapes = (
            jax.ShapeDtypeStruct((2, side**2, 3 * width), jnp.bfloat16),
            jax.ShapeDtypeStruct((heads, 64, 64), jnp.float32),
        )
        # jax asks which GPU it is for, and on which platform.
        known = inspect.signature(jax.sharding.AbstractDevice).parameters
        gpu = jax.sharding.AbstractDevice(*("NVIDIA H100 80GB HBM3", 132, "cuda")[: len(known)])
        with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), (), abstract_device=gpu)):
            lowered = jax.jit(kernel).trace(*shapes).lower(lowering_platforms=("cuda",))
        assert "triton" in lowered.as_text()


def test_an_encoder_with_it_agrees_with_bfloat16():
    """In the program that splits a batch over devices, as embedding runs it."""
    fused, plain = micro("bf16-fused"), micro("bf16")
    views = plain.front_end(np.stack([clip(96000, seed=i) for i in range(2)]), np.full(2, 96000))
    model = fused.replicate(jax.sharding.Mesh(np.array(jax.local_devices()[:1]), ("data",)))
    assert "pallas_call" in str(jax.make_jaxpr(model.encode)(*views))
    assert "pallas_call" not in str(jax.make_jaxpr(plain.encode)(*views))
    ours, theirs = np.asarray(model.encode(*views)), np.asarray(plain.encode(*views))
    cosines = (ours * theirs).sum(1)
    cosines /= np.linalg.norm(ours, axis=1) * np.linalg.norm(theirs, axis=1)
    assert cosines.min() >= tolerances.BF16_COSINE


def test_without_the_kernel_the_plain_path_runs_and_says_so(monkeypatch):
    monkeypatch.setattr(encoder_module, "kernels_available", lambda: False)
    encoder_module.abstract_model.cache_clear()
    try:
        with pytest.warns(UserWarning, match="runs as bf16-fast"):
            fallen_back = micro.__wrapped__("bf16-fused")  # past the cache
    finally:
        encoder_module.abstract_model.cache_clear()
    fast = micro("bf16-fast")
    views = fast.front_end(clip(96000)[None], np.full(1, 96000))
    assert "pallas_call" not in str(jax.make_jaxpr(fallen_back.encode)(*views))
    np.testing.assert_array_equal(fallen_back.encode(*views), fast.encode(*views))


def test_needs_a_gpu():
    if jax.default_backend() == "gpu":
        pytest.skip("there is a GPU")
    with pytest.raises(UserError, match=r"bf16-fused needs a GPU or a TPU v5e.*use bf16"):
        load_encoder("loopjax-nano", "bf16-fused")
