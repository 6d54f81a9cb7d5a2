"""The TPU block kernel: interpreted against the plain path, and lowered for a TPU."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from loopjax.htsat import swin
from loopjax.htsat.kernels import tpu_block
from loopjax.htsat.kernels.tpu_block import serves, swin_block
from loopjax.htsat.swin import SwinBlock
from tests.htsat.cases import disturb


# Four windows in a row, two, and one; heads of 24 channels that fill half a tile of lanes, one and
# two, and heads of 32.
@pytest.mark.parametrize(
    ("side", "width", "heads", "batch"),
    [(32, 48, 2, 1), (16, 96, 4, 3), (16, 192, 8, 2), (8, 128, 4, 2)],
)
@pytest.mark.parametrize("shifted", [False, True])
def test_equals_the_plain_path(side, width, heads, batch, shifted, monkeypatch):
    block = block_of(side, width, heads, shifted)
    x = jax.random.normal(jax.random.key(2), (batch, side**2, width))
    plain = np.asarray(jax.jit(block.__call__)(x) - x)
    monkeypatch.setattr(tpu_block, "swin_block", partial(swin_block, interpret=True))
    fused = np.asarray(fused_as_on_v5e(block, monkeypatch)(x) - x)
    # The kernel multiplies in bfloat16; a wrong mask or order is wrong by tenths.
    norms = np.linalg.norm(fused, axis=-1) * np.linalg.norm(plain, axis=-1)
    assert np.max(1.0 - (fused * plain).sum(-1) / norms) <= 5e-4


@pytest.mark.parametrize("shifted", [False, True])
def test_lowers_for_a_tpu(shifted, monkeypatch):
    """Lowering for a TPU needs none; compiling it is what `scripts.aot` does."""
    block = block_of(16, 96, 4, shifted)
    x = jax.ShapeDtypeStruct((2, 256, 96), jnp.bfloat16)
    traced = fused_as_on_v5e(block, monkeypatch).trace(x)
    assert "tpu_custom_call" in traced.lower(lowering_platforms=("tpu",)).as_text()


def test_what_it_serves():
    assert serves(64, 64, 96, 4, 8) and serves(2, 8, 768, 32, 8)
    assert not serves(3, 8, 768, 32, 8)  # one window a clip, and an odd number of clips
    assert not serves(64, 24, 96, 4, 8)  # three windows a row
    assert not serves(64, 64, 192, 4, 8)  # heads of 48 channels


def block_of(side: int, width: int, heads: int, shifted: bool) -> SwinBlock:
    """A block whose every parameter matters."""
    block = SwinBlock(width, heads, side, shifted, 0.0, 8, 4, jnp.float32, rngs=nnx.Rngs(0))
    disturb(block)
    block.mlp.tanh = True
    return block


def fused_as_on_v5e(block: SwinBlock, monkeypatch):
    monkeypatch.setattr(swin, "on_v5e", lambda: True)
    block.fused = True
    return jax.jit(block.__call__)
