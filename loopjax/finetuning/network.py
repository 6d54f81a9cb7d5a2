"""The encoder as a function of two sets of weights: those that train and those that stay."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from loopjax.config.finetuning import TrainableConfig
from loopjax.encoders.encoder import HtsatEncoder, fill_state, matmul_precision
from loopjax.encoders.space import Precision
from loopjax.finetuning import lora
from loopjax.htsat.model import Htsat, HtsatConfig

Weights = dict[str, jax.Array]  # float32 by flat name, as `encoders.encoder.flatten_state`

# No embedding depends on these.
UNUSED = ("tscam.", "projection.")
STATISTICS = (".mean", ".var")


@dataclass(frozen=True)
class Network:
    """What a step computes embeddings with.

    Attributes:
        graphdef: the model without its arrays.
        abstract: their shapes.
        precision: of the network's arithmetic; the weights are float32 in any case.
    """

    graphdef: Any
    abstract: Any
    precision: Precision

    def embed(
        self, trained: Weights, frozen: Weights, mel: jax.Array, longer: jax.Array | None
    ) -> jax.Array:
        """Mel views -> un-normalized embeddings, float32 [B, C]; BatchNorm keeps its statistics."""
        with matmul_precision(self.precision):
            state = fill_state(self.abstract, {**frozen, **trained}, self.precision)
            model = nnx.merge(self.graphdef, state)
            return model(mel, longer)


def build_network(
    config: HtsatConfig, trainable: TrainableConfig, precision: Precision, remat: bool
) -> Network:
    """The network of a fine-tuning.

    Args:
        config: the encoder's architecture.
        trainable: whether there are adapters.
        precision: fp32, tf32 or bf16.
        remat: whether blocks are computed again in the backward pass.
    """
    dtype = jnp.bfloat16 if precision == "bf16" else jnp.float32

    def build() -> Htsat:
        model = Htsat(config, dtype=dtype, remat=remat, rngs=nnx.Rngs(0))
        model.eval()
        if trainable.what == "lora":
            return lora.adapt(model, trainable.rank, trainable.alpha / trainable.rank)
        return model

    return Network(*nnx.split(nnx.eval_shape(build)), precision)


def split_weights(
    network: Network, parent: HtsatEncoder, trainable: TrainableConfig, seed: int
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The weights that train and those that stay, by flat name.

    Args:
        network: from `build_network`.
        parent: gives the weights.
        trainable: says which of them train.
        seed: of new adapters.
    """
    weights = parent.weights()
    if trainable.what == "lora":
        shapes = {
            name: leaf.shape
            for path, leaf in nnx.to_flat_state(network.abstract)
            if (name := ".".join(map(str, path))).endswith((lora.DOWN, lora.UP))
        }
        return lora.new_adapters(shapes, seed), weights
    starts: tuple[str, ...] = ("",)
    if trainable.what == "stages":
        stages = range(trainable.from_stage, len(parent.config.depths))
        starts = ("norm.", *(f"stages.{i}." for i in stages))
    trained = {name: w for name, w in weights.items() if _trains(name, starts)}
    return trained, {name: w for name, w in weights.items() if name not in trained}


def plain_weights(weights: Mapping[str, np.ndarray], trainable: TrainableConfig) -> dict:
    """All weights of the tuned encoder without adapters, ready for `save_encoder`."""
    if trainable.what == "lora":
        return lora.merge(weights, trainable.alpha / trainable.rank)
    return dict(weights)


def _trains(name: str, starts: tuple[str, ...]) -> bool:
    """All parameters that an embedding depends on, but those of bn0, which scales the input."""
    fixed = name.startswith(("bn0.", *UNUSED)) or name.endswith(STATISTICS)
    return name.startswith(starts) and not fixed
