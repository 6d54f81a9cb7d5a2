"""The network's structure: sizes, what each row depends on, training mode."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from loopjax.encoders.encoder import HtsatEncoder, abstract_model, random_weights, weights_digest
from loopjax.htsat.frontend import LogMelConfig
from loopjax.htsat.model import Htsat, HtsatConfig, bicubic_taps, stretch_time
from loopjax.htsat.swin import gelu
from tests.htsat.cases import micro

RNG = np.random.default_rng(0)
MICRO = HtsatConfig.nano(width=16, depths=(2, 1), heads=(1, 2))


def learned(config: HtsatConfig) -> dict[str, int]:
    """Numbers of learned parameters by top-level module."""
    counts: dict[str, int] = {}
    for path, leaf in nnx.to_flat_state(abstract_model(config)[1]):
        if isinstance(leaf, nnx.Param):
            counts[path[0]] = counts.get(path[0], 0) + int(np.prod(leaf.shape))
    return counts


@pytest.mark.parametrize(
    ("config", "embedding", "tscam", "projection"),
    [
        (HtsatConfig.tiny(), 27_534_488, 2_428_943, 656_384),
        (HtsatConfig.tiny(fusion=True), 27_549_128, 2_428_943, 656_384),
        (HtsatConfig.base(), 67_824_408, 3_238_415, 787_456),
        (HtsatConfig.base(fusion=True), 67_848_024, 3_238_415, 787_456),
    ],
)
def test_published_sizes_have_the_originals_parameter_counts(config, embedding, tscam, projection):
    counts = learned(config)
    assert counts.pop("tscam") == tscam
    assert counts.pop("projection") == projection
    assert sum(counts.values()) == embedding


def mel(batch: int) -> np.ndarray:
    return RNG.normal(-30, 20, size=(batch, 4, 1001, 64)).astype(np.float32)


def test_local_views_reach_only_the_rows_marked_longer():
    model, views = micro(), mel(2)
    changed = views.copy()
    changed[:, 1:] += 7
    longer = np.array([False, True])
    one, other = (np.asarray(model.encode(v, longer)) for v in (views, changed))
    np.testing.assert_array_equal(one[0], other[0])
    assert np.abs(one[1] - other[1]).max() > 1e-3


def test_a_batch_without_long_clips_skips_the_branch_and_changes_nothing():
    model, views = micro(), mel(2)
    mixed = model.encode(views, np.array([False, True]))
    short = model.encode(views, np.array([False, False]))
    np.testing.assert_array_equal(mixed[0], short[0])
    merged = nnx.merge(model._graphdef, model.params)
    with jax.default_matmul_precision("highest"):
        static = nnx.jit(lambda m, x: m(x, None))(merged, views)
    np.testing.assert_allclose(static, short, rtol=1e-5, atol=1e-6)


def test_more_frames_than_the_image_holds_are_refused():
    with pytest.raises(ValueError, match="1025 mel frames do not fit"):
        stretch_time(jnp.zeros((1, 1025, 64)), 1024)


def test_bicubic_weights_sum_to_one_and_meet_the_ends():
    _, weights = bicubic_taps(1001, 1024)
    np.testing.assert_allclose(weights.sum(axis=1), 1.0, atol=1e-6)
    ramp = np.arange(1001, dtype=np.float32)[:, None]
    stretched = np.asarray(stretch_time(jnp.asarray(ramp), 1024))[:, 0]
    assert stretched[0] == 0.0
    assert stretched[-1] == 1000.0
    # torch's kernel (a = -0.75) bends a straight line by a few hundredths.
    np.testing.assert_allclose(stretched, np.arange(1024) * 1000 / 1023, atol=0.05)


def test_weights_that_do_not_fit_are_listed():
    weights = random_weights(MICRO)
    weights["norm.gamma"] = weights.pop("norm.scale")
    weights["bn0.bias"] = np.zeros(65, np.float32)
    with pytest.raises(ValueError, match=r"norm\.scale.*norm\.gamma.*bn0\.bias: \(65,\)"):
        HtsatEncoder(MICRO, LogMelConfig(), weights, encoder_id="x")


def test_the_digest_sees_names_shapes_and_values():
    weights = {"a": np.zeros((2, 3), np.float32), "b": np.ones(3, np.float32)}
    same = {"b": np.ones(3, np.float64), "a": np.zeros((2, 3))}
    assert weights_digest(weights) == weights_digest(same)
    for other in (
        {"a": weights["a"], "c": weights["b"]},
        {"a": weights["a"].reshape(3, 2), "b": weights["b"]},
        {"a": weights["a"] + 1e-7, "b": weights["b"]},
    ):
        assert weights_digest(weights) != weights_digest(other)


def test_training_mode_updates_running_statistics_like_pytorch():
    model = Htsat(MICRO, rngs=nnx.Rngs(0))
    views = mel(2)
    model.train()
    model(jnp.asarray(views), np.array([True, True]), jax.random.key(0))
    moments = views.reshape(-1, 64).astype(np.float64)
    np.testing.assert_allclose(model.bn0.mean[...], 0.1 * moments.mean(0), rtol=1e-4)
    np.testing.assert_allclose(model.bn0.var[...], 0.9 + 0.1 * moments.var(0), rtol=1e-3)
    local = model.patch_embed.aff.local_path.bn1.mean[...]
    assert np.abs(local).max() > 0


def test_stochastic_depth_needs_a_key_and_drops_nothing_without_one():
    model = Htsat(
        HtsatConfig.nano(width=16, depths=(2, 1), heads=(1, 2), drop_path=0.9), rngs=nnx.Rngs(0)
    )
    model.eval()
    run = nnx.jit(lambda m, x, key: m(x, None, key))
    views = jnp.asarray(mel(3))
    plain = run(model, views, None)
    np.testing.assert_array_equal(plain, run(model, views, None))
    dropped = run(model, views, jax.random.key(1))
    assert np.abs(dropped - plain).max() > 1e-3


@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float32, 3e-7), (jnp.bfloat16, 4e-3)])
def test_gelu_is_exact_in_both_types(dtype, tolerance):
    x = jnp.linspace(-8.0, 8.0, 321).astype(dtype)
    exact = [0.5 * v * math.erfc(-v / math.sqrt(2.0)) for v in np.asarray(x, np.float64)]
    assert gelu(x).dtype == dtype
    np.testing.assert_allclose(np.asarray(gelu(x), np.float64), exact, rtol=tolerance, atol=1e-6)
