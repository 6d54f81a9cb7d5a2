"""Gradients of a step beside PyTorch's: transformers' CLAP tower with the same random weights."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402

from loopjax.config.finetuning import ObjectiveConfig, TrainableConfig  # noqa: E402
from loopjax.convert.mapping import map_checkpoint  # noqa: E402
from loopjax.encoders.encoder import HtsatEncoder  # noqa: E402
from loopjax.finetuning.network import build_network, split_weights  # noqa: E402
from loopjax.finetuning.objectives import Rows, make_objective  # noqa: E402
from tests.htsat.cases import lazy  # noqa: E402
from tests.htsat.test_parity import original  # noqa: E402

pytestmark = [pytest.mark.parity, pytest.mark.slow]
TEMPERATURE = 0.2


def their_gradients(model, views: np.ndarray) -> tuple[float, dict[str, np.ndarray]]:
    """NT-Xent of [2, B] views through the original, and its gradient by the original's names."""
    n = views.shape[1]
    mel = torch.tensor(views.reshape(-1, *views.shape[2:]))
    flags = torch.zeros(2 * n, 1, dtype=torch.bool)
    z = model.audio_model(mel, is_longer=flags).pooler_output
    z = torch.nn.functional.normalize(z, dim=1)
    logits = z @ z.T / TEMPERATURE
    logits = logits.masked_fill(torch.eye(2 * n, dtype=torch.bool), -torch.inf)
    twin = torch.arange(2 * n).roll(n)
    loss = torch.nn.functional.cross_entropy(logits, twin)
    loss.backward()
    named = dict(model.named_parameters())
    return loss.item(), {k: p.grad.numpy() for k, p in named.items() if p.grad is not None}


def two_views() -> np.ndarray:
    """Mel views [2, 2, 1, 1001, 64] of two clips so unlike that the loss has something to do."""
    rng = np.random.default_rng(3)
    time, band = np.arange(1001)[:, None], np.arange(64)
    clips = [
        -40 + 30 * np.sin(time / 9 + band / 3) * (band < 20),
        -60 + 30 * np.sin(time / 70) * np.cos(band / 9) + 20 * (band > 30),
    ]
    noise = rng.uniform(-10, 10, (2, 2, 1001, 64))
    return (np.stack(clips) + noise)[:, :, None].astype(np.float32)


def test_gradients_of_a_step_equal_pytorchs():
    theirs = original("tiny", fusion=False)
    state = {k: v.numpy().copy() for k, v in theirs.state_dict().items()}
    mapped = map_checkpoint(lazy(state))
    encoder = HtsatEncoder(mapped.config, mapped.front_end, mapped.weights, encoder_id="live")
    views = two_views()
    expected_loss, gradients = their_gradients(theirs, views)
    expected = map_checkpoint(lazy(state | gradients)).weights

    trainable = TrainableConfig("all")
    network = build_network(encoder.config, trainable, "fp32", remat=False)
    trained, frozen = split_weights(network, encoder, trainable, seed=0)
    objective = make_objective(ObjectiveConfig(temperature=TEMPERATURE), encoder.embedding_dim, 0)
    rows = Rows(
        mask=jnp.ones(2, bool),
        content=jnp.arange(2, dtype=jnp.uint32),
        label=jnp.zeros(2, jnp.int32),
        target=jnp.zeros((2, 0)),
    )

    def loss(weights):
        z = network.embed(weights, frozen, jnp.asarray(views.reshape(4, 1, 1001, 64)), None)
        return objective.loss({}, {}, z.reshape(2, 2, -1), rows, lambda x: x) / 2

    found_loss, found = jax.jit(jax.value_and_grad(loss))(trained)
    assert float(found_loss) == pytest.approx(expected_loss, rel=1e-5)
    compared = 0
    for name, gradient in found.items():
        largest = np.abs(expected[name]).max()
        off = np.abs(np.asarray(gradient) - expected[name]).max()
        assert off <= 1e-4 * largest, f"{name}: {off:.2g} of {largest:.2g}"
        compared += 1
    assert compared == len(trained) > 150
