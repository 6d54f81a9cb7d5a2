"""One compiled step: in parts, recomputed, clipped, decayed, averaged."""

from functools import partial

import jax
import numpy as np
import optax
import pytest

from loopjax import parallel
from loopjax.config.finetuning import (
    AugmentConfig,
    ObjectiveConfig,
    OptimizerConfig,
    TrainableConfig,
)
from loopjax.finetuning.network import build_network, split_weights
from loopjax.finetuning.objectives import Rows, make_objective
from loopjax.finetuning.steps import Batch, State, average_decay, make_optimizer, make_steps
from tests.finetuning.tiny import tiny_encoder

N_ROWS = 4


def run(optimizer: OptimizerConfig, n_steps: int, precision="fp32") -> tuple[list[State], list]:
    """States after each step of a training by groups on four clips, and the steps' metrics."""
    encoder, trainable, mesh = tiny_encoder(), TrainableConfig("all"), parallel.global_mesh()
    network = build_network(encoder.config, trainable, precision, optimizer.remat)
    trained, frozen = split_weights(network, encoder, trainable, 0)
    objective = make_objective(ObjectiveConfig("groups"), encoder.embedding_dim, 0, n_groups=2)
    steps = make_steps(
        network, objective, frozen, mesh,
        optimizer=optimizer, augmentation=AugmentConfig(), anchor=0.0, start=trained, seed=0,
    )  # fmt: skip
    state = steps.start({"encoder": dict(trained), "head": objective.head})
    states, metrics = [jax.tree.map(np.asarray, state)], []
    for _ in range(n_steps):
        state, found = steps.train(state, batch_of(optimizer.accumulate))
        states.append(jax.tree.map(np.asarray, state))
        metrics.append(np.asarray(found))
    return states, metrics


def batch_of(n_parts: int) -> Batch:
    """Noise of two groups; a row is missing."""
    rng = np.random.default_rng(0)
    flat = Batch(
        mel=rng.uniform(-90, 10, (N_ROWS, 1, 1001, 64)).astype(np.float32),
        longer=np.zeros(N_ROWS, bool),
        period=np.full(N_ROWS, 6400, np.int32),
        place=np.arange(N_ROWS, dtype=np.int32),
        rows=Rows(
            mask=np.array([True, True, False, True]),
            content=np.arange(N_ROWS, dtype=np.uint32),
            label=np.array([0, 1, 0, 1], np.int32),
            target=np.zeros((N_ROWS, 0), np.float32),
        ),
    )
    return jax.tree.map(lambda x: x.reshape(n_parts, N_ROWS // n_parts, *x.shape[1:]), flat)


SETTINGS = partial(OptimizerConfig, steps=10, warmup_steps=0, learning_rate=1e-2)


@pytest.fixture(scope="module")
def plain():
    return run(SETTINGS(), 3)


def moment(state: State) -> dict[str, np.ndarray]:
    """A tenth of the gradient of the first step, clipped."""
    return optax.tree.get(state.opt, "mu")["encoder"]


@pytest.mark.slow
def test_a_batch_in_parts_and_recomputed_has_the_plain_gradient(plain):
    states, metrics = run(SETTINGS(accumulate=2, remat=True), 1)
    np.testing.assert_allclose(metrics[0], plain[1][0], rtol=1e-5)
    expected, found = moment(plain[0][1]), moment(states[1])
    largest = max(np.abs(value).max() for value in expected.values())
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, atol=1e-5 * largest, err_msg=name)


@pytest.mark.slow
def test_the_average_follows_fast_at_first(plain):
    states, _ = plain
    expected = states[0].params["encoder"]
    for step, decay in enumerate((1 / 10, 2 / 11, 3 / 12)):
        weights = states[step + 1].params["encoder"]
        expected = {n: decay * w + (1 - decay) * weights[n] for n, w in expected.items()}
    for name, value in expected.items():
        np.testing.assert_allclose(states[3].average[name], value, atol=1e-6)
    assert float(average_decay(0.99, np.uint32(5_000))) == pytest.approx(0.99)
    assert float(average_decay(0.0, np.uint32(7))) == 0.0


@pytest.mark.slow
def test_bf16_keeps_float32_weights_and_memory(plain):
    states, metrics = run(SETTINGS(), 1, precision="bf16")
    kept = jax.tree.leaves((states[1].params, states[1].average, moment(states[1])))
    assert {leaf.dtype for leaf in kept} == {np.dtype("float32")}
    np.testing.assert_allclose(metrics[0], plain[1][0], rtol=0.05)
    assert not np.array_equal(metrics[0], plain[1][0])


def test_gradients_are_clipped_by_their_common_norm_and_only_kernels_decay():
    params = {"encoder": {"a.kernel": np.ones(3), "a.bias": np.ones(1)}, "head": {}}
    params = jax.tree.map(np.float32, params)
    gradient = {"encoder": {"a.kernel": np.float32([3, 0, 0]), "a.bias": np.float32([4])}}
    gradient["head"] = {}
    transformation = make_optimizer(SETTINGS(clip_norm=2.5, weight_decay=0.5))
    for times, clipped in ((1.0, 0.5), (0.1, 0.1)):  # norms of 5 and 0.5
        given = optax.tree.scale(times, gradient)
        _, opt = transformation.update(given, transformation.init(params), params)
        kept = optax.tree.get(opt, "mu")["encoder"]
        np.testing.assert_allclose(kept["a.kernel"], [0.3 * clipped, 0, 0], rtol=1e-6)
        np.testing.assert_allclose(kept["a.bias"], [0.4 * clipped], rtol=1e-6)
    still = jax.tree.map(np.zeros_like, gradient)
    updates, _ = transformation.update(still, transformation.init(params), params)
    np.testing.assert_allclose(updates["encoder"]["a.kernel"], -1e-2 * 0.5 * np.ones(3), rtol=1e-6)
    assert updates["encoder"]["a.bias"] == 0
