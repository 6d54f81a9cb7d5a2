"""Views, adapters, losses and the order of loops, each by itself."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from loopjax.config.finetuning import (
    AugmentConfig,
    ObjectiveConfig,
    OptimizerConfig,
    TrainableConfig,
)
from loopjax.finetuning import lora
from loopjax.finetuning.augment import GRID, add_power, augment, rotate, stripe
from loopjax.finetuning.batches import Slot
from loopjax.finetuning.network import build_network, plain_weights, split_weights
from loopjax.finetuning.objectives import Rows, make_objective
from loopjax.finetuning.steps import make_schedule
from loopjax.htsat.swin import LAYER_NORM_EPS, normalize, softmax
from tests.finetuning.tiny import tiny_encoder


def test_a_rotated_loop_keeps_its_frames_and_its_silence():
    frames = np.arange(10, dtype=np.float32)
    mel = np.tile(np.concatenate([frames, frames, [-100.0] * 3])[None, :, None], (2, 1, 1))
    seen = set()
    for seed in range(20):
        moved = np.asarray(rotate(jnp.asarray(mel), jnp.int32(10 * GRID), jax.random.key(seed)))
        assert sorted(moved[0, :10, 0]) == sorted(frames)
        np.testing.assert_array_equal(moved[:, :10], moved[:, 10:20])
        np.testing.assert_array_equal(moved[:, 20:], mel[:, 20:])
        seen.add(float(moved[0, 0, 0]))
    assert len(seen) > 5
    same = rotate(jnp.asarray(mel), jnp.int32(0), jax.random.key(0))
    np.testing.assert_array_equal(same, mel)


def test_a_view_depends_on_its_own_row_alone():
    rng = np.random.default_rng(0)
    mel = rng.uniform(-90, 10, (4, 1, 50, 8)).astype(np.float32)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(1), jnp.arange(4))
    period = jnp.full(4, 12 * GRID, jnp.int32)
    config = AugmentConfig(mix_db=-10.0)
    whole = augment(jnp.asarray(mel), period, jnp.asarray(mel[::-1, 0]), keys, config)
    alone = augment(jnp.asarray(mel[2:3]), period[2:3], jnp.asarray(mel[1:2, 0]), keys[2:3], config)
    np.testing.assert_allclose(whole[2:3], alone, atol=1e-4)
    assert np.abs(np.asarray(whole) - mel).mean() > 1


def test_powers_add():
    a, b = np.array([0.0, -20.0, -100.0]), np.array([0.0, -100.0, -20.0])
    expected = 10 * np.log10(10 ** (a / 10) + 10 ** (b / 10))
    np.testing.assert_allclose(add_power(jnp.asarray(a), jnp.asarray(b)), expected, atol=1e-5)


def test_a_stripe_is_one_stretch():
    masks = np.stack([stripe(jax.random.key(seed), 30, 7) for seed in range(50)])
    assert masks.sum(axis=1).max() <= 7
    assert masks.any()
    assert (np.abs(np.diff(masks.astype(int), axis=1)).sum(axis=1) <= 2).all()


def test_merged_adapters_equal_applied_ones():
    encoder, trainable = tiny_encoder(), TrainableConfig("lora", rank=4, alpha=8.0)
    adapted = build_network(encoder.config, trainable, "fp32", remat=False)
    trained, frozen = split_weights(adapted, encoder, trainable, seed=0)
    mel = np.random.default_rng(0).uniform(-90, 10, (3, 4, 1001, 64)).astype(np.float32)
    longer = np.array([False, True, False])
    before = np.asarray(encoder.encode(mel, longer))
    embed = jax.jit(adapted.embed)
    np.testing.assert_allclose(embed(trained, frozen, mel, longer), before, atol=1e-6)
    rng = np.random.default_rng(1)
    changed = {
        name: value + 0.1 * rng.standard_normal(value.shape).astype("f4")
        for name, value in trained.items()
    }
    applied = np.asarray(embed(changed, frozen, mel, longer))
    plain = build_network(encoder.config, TrainableConfig("all"), "fp32", remat=False)
    merged = plain_weights(frozen | changed, trainable)
    assert merged.keys() == frozen.keys()
    found = np.asarray(jax.jit(plain.embed)({}, merged, mel, longer))
    assert np.abs(applied - before).max() > 0.01
    assert np.abs(found - applied).max() / np.abs(applied).max() < 1e-6


def test_remat_changes_no_gradient():
    encoder, trainable = tiny_encoder(), TrainableConfig("all")
    mel = np.random.default_rng(0).uniform(-90, 10, (2, 1, 1001, 64)).astype(np.float32)

    def gradient(remat: bool):
        network = build_network(encoder.config, trainable, "fp32", remat)
        trained, frozen = split_weights(network, encoder, trainable, 0)

        def loss(weights):
            return jnp.sum(jnp.sin(network.embed(weights, frozen, mel, None)))

        return jax.jit(jax.grad(loss))(trained)

    kept, again = gradient(False), gradient(True)
    for name, value in kept.items():
        np.testing.assert_allclose(again[name], value, atol=1e-5)


def rows_of(n: int, content=None, mask=None, label=None, target=None) -> Rows:
    return Rows(
        mask=jnp.ones(n, bool) if mask is None else jnp.asarray(mask),
        content=jnp.arange(n, dtype=jnp.uint32) if content is None else jnp.asarray(content),
        label=jnp.zeros(n, jnp.int32) if label is None else jnp.asarray(label),
        target=jnp.zeros((n, 0)) if target is None else jnp.asarray(target),
    )


def value_of(objective, z, rows) -> float:
    head = {name: jnp.asarray(value) for name, value in objective.head.items()}
    constants = {name: jnp.asarray(value) for name, value in objective.constants.items()}
    loss = jax.jit(partial(objective.loss, gather=lambda x: x))
    return float(loss(head, constants, jnp.asarray(z), rows))


def nt_xent(z: np.ndarray, temperature: float) -> float:
    """Chen et al. 2020, equation 1, row by row; mean over both views."""
    z = z / np.linalg.norm(z, axis=2, keepdims=True)
    flat, n = np.concatenate(z), z.shape[1]
    total = 0.0
    for i in range(2 * n):
        logits = flat @ flat[i] / temperature
        others = np.delete(logits, i)
        total += np.log(np.exp(others).sum()) - logits[(i + n) % (2 * n)]
    return total / 2


def test_contrastive_is_nt_xent_and_leaves_copies_and_missing_rows_out():
    z = np.random.default_rng(0).standard_normal((2, 5, 6)).astype(np.float32)
    objective = make_objective(ObjectiveConfig(temperature=0.3), 6, 0)
    assert value_of(objective, z, rows_of(5)) == pytest.approx(nt_xent(z, 0.3), rel=1e-5)
    mask = np.array([True, True, True, True, False])
    without = value_of(objective, z, rows_of(5, mask=mask))
    assert without == pytest.approx(nt_xent(z[:, :4], 0.3), rel=1e-5)
    z[:, 1] = z[:, 0]  # a copy of the first loop
    content = np.array([0, 0, 2, 3, 4], np.uint32)
    copies = value_of(objective, z, rows_of(5, content=content))
    once = nt_xent(z[:, [0, 2, 3, 4]], 0.3)
    assert copies > once  # the copy counts as a row, and never against the original
    alone = value_of(objective, z[:, :2], rows_of(2, content=content[:2]))
    assert alone == pytest.approx(0.0, abs=1e-5)


def test_mean_shifted_looks_around_the_center():
    rng = np.random.default_rng(0)
    start = rng.standard_normal((20, 6)).astype(np.float32) + 3
    objective = make_objective(ObjectiveConfig("mean-shifted", temperature=0.3), 6, 0, start=start)
    unit = start / np.linalg.norm(start, axis=1, keepdims=True)
    z = rng.standard_normal((2, 5, 6)).astype(np.float32) + 3
    shifted = z / np.linalg.norm(z, axis=2, keepdims=True) - unit.mean(axis=0)
    expected = nt_xent(shifted, 0.3)
    assert value_of(objective, z, rows_of(5)) == pytest.approx(expected, rel=1e-4)


def test_arc_face_takes_the_nearest_sub_center_and_asks_a_margin():
    config = ObjectiveConfig("groups", sub_centers=2, margin=0.3, scale=10.0)
    objective = make_objective(config, 3, 0, n_groups=2)
    objective.head["centers"][:] = [[1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, -1]]
    z = np.array([[[0.0, 2.0, 0.0], [3.0, 0.0, 4.0]]], np.float32)
    cosines = np.array([[1.0, 0.0], [0.6, 0.8]])
    own = np.cos(np.arccos([1.0, 0.8]) + 0.3)
    expected = sum(
        np.log(np.exp(10 * own[i]) + np.exp(10 * cosines[i, 1 - i])) - 10 * own[i] for i in (0, 1)
    )
    found = value_of(objective, z, rows_of(2, label=np.array([0, 1], np.int32)))
    assert found == pytest.approx(expected, rel=1e-2)  # the arc cosine is cut off at 1 - 1e-6
    assert value_of(objective, z, rows_of(2, label=np.array([-1, -1], np.int32))) == 0


def test_one_class_begins_at_one_per_loop():
    start = np.random.default_rng(0).standard_normal((20, 6)).astype(np.float32)
    objective = make_objective(ObjectiveConfig("one-class"), 6, 0, start=start)
    assert value_of(objective, start[None], rows_of(20)) == pytest.approx(20, rel=1e-5)
    at_center = np.tile(start.mean(axis=0), (1, 20, 1))
    assert value_of(objective, at_center, rows_of(20)) == pytest.approx(0, abs=1e-6)


def test_distillation_is_one_minus_the_cosine():
    objective = make_objective(ObjectiveConfig("distill", teacher="t"), 3, 0, target_width=2)
    objective.head["project"][:] = [[1, 0], [0, 1], [0, 0]]
    z = np.array([[[1, 0, 5], [1, 1, 5]]], np.float32)
    target = np.array([[2, 0], [0, 1]], np.float32)
    expected = 1 - np.sqrt(0.5)
    assert value_of(objective, z, rows_of(2, target=target)) == pytest.approx(expected, rel=1e-5)


def test_processes_and_parts_share_a_batch():
    slots = [Slot(16, 2, index, 4) for index in range(4)]
    assert slots[1].places.tolist() == [[2, 3], [10, 11]]
    assert sorted(np.concatenate([s.places.ravel() for s in slots])) == list(range(16))


def test_the_schedule_rises_stays_and_falls():
    schedule = make_schedule(
        OptimizerConfig(steps=100, learning_rate=2.0, warmup_steps=10, decay_steps=20)
    )
    rates = [float(schedule(step)) for step in (0, 5, 10, 79, 90, 100)]
    assert rates == pytest.approx([0.0, 1.0, 2.0, 2.0, 1.01, 0.02])


def test_a_new_adapter_changes_nothing_and_depends_on_the_seed():
    shapes = {f"a{lora.DOWN}": (6, 2), f"a{lora.UP}": (2, 4)}
    first, second = lora.new_adapters(shapes, 0), lora.new_adapters(shapes, 1)
    assert not first[f"a{lora.UP}"].any()
    assert not np.array_equal(first[f"a{lora.DOWN}"], second[f"a{lora.DOWN}"])


def test_the_written_out_backward_passes_are_derivatives():
    rng = np.random.default_rng(0)
    x = jnp.asarray(3 * rng.standard_normal((2, 5, 12)) + 1, jnp.float32)
    scale, bias, g = (jnp.asarray(rng.standard_normal(s), jnp.float32) for s in (12, 12, x.shape))
    plain = nnx.LayerNorm(12, epsilon=LAYER_NORM_EPS, use_fast_variance=False, rngs=nnx.Rngs(0))
    graphdef, _ = nnx.split(plain)

    def expected_norm(x, scale, bias):
        state = nnx.State({"scale": nnx.Param(scale), "bias": nnx.Param(bias)})
        return nnx.merge(graphdef, state)(x)

    for ours, theirs, inputs in (
        (normalize, expected_norm, (x, scale, bias)),
        (lambda x: softmax(x, -2), lambda x: jax.nn.softmax(x, axis=-2), (x,)),
    ):
        (y, backward), (expected, expected_backward) = (jax.vjp(f, *inputs) for f in (ours, theirs))
        np.testing.assert_array_equal(y, expected)
        for found, wanted in zip(backward(g), expected_backward(g), strict=True):
            np.testing.assert_allclose(found, wanted, atol=2e-6)
