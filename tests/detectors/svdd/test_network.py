import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from loopjax.detectors.svdd.network import (
    HIDDEN_DIMS,
    NetworkConfig,
    TrainingPass,
    build,
    build_encoder,
    encoder_part,
    initialize,
    is_statistic,
    skeleton,
    statistics,
)
from loopjax.errors import UserError
from loopjax.training import steps as training

GOLDENS = Path(__file__).parents[2] / "goldens" / "detectors"


def part(golden, prefix):
    return {k.removeprefix(prefix): v for k, v in golden.items() if k.startswith(prefix)}


def split(arrays):
    params = {k: jnp.asarray(v) for k, v in arrays.items() if not is_statistic(k)}
    return params, {k: jnp.asarray(v) for k, v in arrays.items() if is_statistic(k)}


def check_against_torch(golden, network, tolerance, stray=0.0):
    """Forward in both modes, gradient, running statistics and two AdamW steps.

    `stray` is the share of parameters that may leave the tolerance after the steps: AdamW divides
    by sqrt(v) + 1e-8, so a step is arbitrary where the gradient is as small as its rounding error.
    """
    rows, keep = jnp.asarray(golden["rows"]), jnp.asarray(golden["keep"])
    params, stats = split(part(golden, "start:"))
    close = {"rtol": tolerance, "atol": tolerance}
    output = build(network, params, stats)(rows)
    np.testing.assert_allclose(output, golden["eval_output"], **close)
    latents = build_encoder(network, encoder_part(params), encoder_part(stats))(rows)
    np.testing.assert_allclose(latents, golden["eval_latents"], **close)

    def loss(params, stats):
        model = build(network, params, stats)
        output = model(rows, TrainingPass(jnp.ones(len(rows)), keep, 0.1))
        return jnp.mean((output - rows) ** 2), (output, statistics(model))

    step = jax.jit(jax.value_and_grad(loss, has_aux=True))
    optimizer = training.start(params, stats, {}, 0).optimizer
    meta = json.loads(str(golden["meta"]))
    for number in (1, 2):
        (value, (output, stats)), grads = step(params, stats)
        if number == 1:
            np.testing.assert_allclose(output, golden["train_output"], **close)
            np.testing.assert_allclose(value, golden["loss"], **close)
            for name, grad in part(golden, "grad:").items():
                np.testing.assert_allclose(grads[name], grad, err_msg=name, **close)
        params, optimizer = training.adamw_step(
            params, optimizer, grads, meta["learning_rate"], meta["weight_decay"]
        )
    for name, array in part(golden, "end:").items():
        off = ~np.isclose((params | stats)[name], array, **close)
        assert off.mean() <= stray, (name, off.sum())


@pytest.mark.parametrize("name", ["standard", "residual"])
def test_equals_frozen_torch(name):
    with np.load(GOLDENS / f"autoencoder_{name}.npz") as file:
        golden = dict(file)
    meta = json.loads(str(golden["meta"]))
    network = NetworkConfig(meta["n_features"], tuple(meta["dims"]), residual=meta["residual"])
    check_against_torch(golden, network, 1e-5)


@pytest.mark.parity
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("preset", HIDDEN_DIMS)
def test_equals_torch_at_full_size(preset, residual):
    pytest.importorskip("torch")
    from scripts.goldens import detectors as reference

    dims = HIDDEN_DIMS[preset]
    golden = reference.reference_steps(1024, dims, residual, batch=32, seed=1)
    golden["meta"] = json.dumps(
        {"learning_rate": reference.LEARNING_RATE, "weight_decay": reference.WEIGHT_DECAY}
    )
    check_against_torch(golden, NetworkConfig(1024, dims, residual=residual), 1e-5, stray=1e-4)


@pytest.mark.parametrize(
    ("dims", "batch_norm", "expected"),
    [
        (HIDDEN_DIMS["exp1"], True, 1_379_328),
        (HIDDEN_DIMS["exp2_deeper"], True, 1_400_576),
        (HIDDEN_DIMS["exp1"], False, 1_376_256),
    ],
)
def test_number_of_parameters(dims, batch_norm, expected):
    # Counts of the reference's networks (paper facts, section 1).
    _, leaves = skeleton(NetworkConfig(1024, dims, batch_norm=batch_norm))
    assert sum(np.prod(v.shape) for k, v in leaves.items() if not is_statistic(k)) == expected


def test_initialization_is_torchs():
    network = NetworkConfig(400, (300, 100), bias=True)
    params, stats = initialize(network, np.random.default_rng(0))
    kernel = params["encoder/layers/0/linear/kernel"]
    assert kernel.shape == (400, 300) and kernel.dtype == np.float32
    assert np.abs(kernel).max() <= 0.05 and np.abs(kernel).max() > 0.0499
    assert kernel.std() == pytest.approx(0.05 / 3**0.5, rel=0.01)
    assert np.abs(params["encoder/layers/0/linear/bias"]).max() <= 0.05
    assert np.all(params["encoder/layers/0/bn/scale"] == 1)
    assert np.all(stats["encoder/layers/0/bn/var"] == 1)
    other, _ = initialize(network, np.random.default_rng(1))
    assert not np.allclose(other["encoder/layers/0/linear/kernel"], kernel)


def test_last_layers_are_bare():
    _, leaves = skeleton(NetworkConfig(16, (8, 4)))
    assert "encoder/layers/0/bn/scale" in leaves and "decoder/layers/0/bn/scale" in leaves
    assert "encoder/layers/1/bn/scale" not in leaves and "decoder/layers/1/bn/scale" not in leaves


def test_skips_reach_the_output():
    # With a dead bottleneck the residual decoder still sees the encoder, the plain one does not.
    x = jnp.asarray(np.random.default_rng(0).normal(size=(6, 16)), jnp.float32)
    spread = {}
    for residual in (False, True):
        network = NetworkConfig(16, (12, 8, 4), residual=residual)
        params, stats = initialize(network, np.random.default_rng(0))
        params["encoder/layers/2/linear/kernel"] *= 0
        spread[residual] = float(jnp.std(build(network, params, stats)(x), axis=0).mean())
    assert spread[False] == 0.0 and spread[True] > 1e-3


def test_padding_of_a_batch_changes_nothing():
    network = NetworkConfig(16, (12, 8, 4))
    params, stats = initialize(network, np.random.default_rng(0))
    x = np.random.default_rng(1).normal(size=(10, 16)).astype(np.float32)
    keep = np.random.default_rng(2).random((10, sum(network.dropout_widths))) > 0.2
    full = build(network, params, stats)
    expected = full(jnp.asarray(x[:7]), TrainingPass(jnp.ones(7), jnp.asarray(keep[:7]), 0.1))
    x[7:] = 1e6
    padded = build(network, params, stats)
    weights = jnp.asarray(np.arange(10) < 7, jnp.float32)
    got = padded(jnp.asarray(x), TrainingPass(weights, jnp.asarray(keep), 0.1))
    np.testing.assert_allclose(got[:7], expected, rtol=1e-5, atol=1e-6)
    for name, value in statistics(full).items():
        np.testing.assert_allclose(statistics(padded)[name], value, rtol=1e-5)


def test_no_shift_and_no_bias_map_nothing_but_zero_to_zero_variance():
    network = NetworkConfig(16, (8, 4), shift=False)
    _, leaves = skeleton(network)
    assert not any(name.endswith("/bias") for name in leaves)
    assert "encoder/layers/0/bn/scale" in leaves


def test_bfloat16_stays_close():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(6, 64)), jnp.float32)
    exact = NetworkConfig(64, (32, 16, 8))
    params, stats = initialize(exact, np.random.default_rng(0))
    reference = build(exact, params, stats)(x)
    rough = build(NetworkConfig(64, (32, 16, 8), bfloat16=True), params, stats)(x)
    assert rough.dtype == jnp.float32
    error = float(jnp.abs(rough - reference).max() / jnp.abs(reference).max())
    assert 1e-6 < error < 0.03


@pytest.mark.parametrize(
    "wrong",
    [{"hidden_dims": ()}, {"hidden_dims": (8, 0)}, {"activation": "gelu"}, {"dropout": 1.0}],
)
def test_impossible_networks(wrong):
    with pytest.raises(UserError, match=next(iter(wrong))):
        NetworkConfig(**{"n_features": 16, "hidden_dims": (8, 4), **wrong})
