"""The two losses of Deep SVDD as training objectives: reconstruction and one-class."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from loopjax.detectors.svdd.network import (
    Arrays,
    NetworkConfig,
    TrainingPass,
    build,
    build_encoder,
    statistics,
)
from loopjax.training.keys import random_bits


@dataclass(frozen=True)
class Reconstruction:
    """Mean squared reconstruction error over the features of a row (stage 1)."""

    network: NetworkConfig

    def train_losses(
        self,
        params: Arrays,
        stats: Arrays,
        rows: jax.Array,
        weights: jax.Array,
        key: jax.Array,
        momentum: jax.Array,
        aux: dict[str, jax.Array],
    ) -> tuple[jax.Array, Arrays]:
        """Errors [B] with dropout and batch statistics, and the updated running statistics."""
        del aux
        model = build(self.network, params, stats)
        keep = _keep_units(self.network.dropout_widths, self.network.dropout, len(rows), key)
        errors = _mean_square(model(rows, TrainingPass(weights, keep, momentum)) - rows)
        return errors, statistics(model)

    def eval_losses(
        self, params: Arrays, stats: Arrays, rows: jax.Array, aux: dict[str, jax.Array]
    ) -> jax.Array:
        """Errors [B] in evaluation mode."""
        del aux
        return _mean_square(build(self.network, params, stats)(rows) - rows)

    def begin_epoch(
        self, params: Arrays, stats: Arrays, aux: dict[str, jax.Array], epoch: Any, evaluate: Any
    ) -> dict[str, jax.Array]:
        """Nothing changes between epochs."""
        del params, stats, epoch, evaluate
        return aux


@dataclass(frozen=True)
class OneClass:
    """Mean squared distance of the latent to a fixed center (stage 2).

    `aux` holds "center" [Z]; with `soft`, also "radius_squared" and "nu", and the loss becomes
    R^2 + max(0, d - R^2) / nu (Ruff et al. 2018, eq. 3), d being the mean over latent dimensions.
    From epoch `warmup_epochs` on, R^2 is the (1 - nu) quantile of the training distances.
    """

    network: NetworkConfig
    soft: bool = False
    warmup_epochs: int = 10

    def train_losses(
        self,
        params: Arrays,
        stats: Arrays,
        rows: jax.Array,
        weights: jax.Array,
        key: jax.Array,
        momentum: jax.Array,
        aux: dict[str, jax.Array],
    ) -> tuple[jax.Array, Arrays]:
        """Losses [B] with dropout and batch statistics, and the updated running statistics."""
        model = build_encoder(self.network, params, stats)
        widths = self.network.hidden_dims[:-1] if self.network.dropout else ()
        keep = _keep_units(widths, self.network.dropout, len(rows), key)
        distances = _distances(model(rows, TrainingPass(weights, keep, momentum)), aux)
        return self._loss(distances, aux), statistics(model)

    def eval_losses(
        self, params: Arrays, stats: Arrays, rows: jax.Array, aux: dict[str, jax.Array]
    ) -> jax.Array:
        """Losses [B] in evaluation mode."""
        return self._loss(_distances(build_encoder(self.network, params, stats)(rows), aux), aux)

    def begin_epoch(
        self,
        params: Arrays,
        stats: Arrays,
        aux: dict[str, jax.Array],
        epoch: jax.Array,
        evaluate: Callable[[Callable[[jax.Array], jax.Array]], tuple[jax.Array, jax.Array]],
    ) -> dict[str, jax.Array]:
        """Set the radius from the training distances once the warmup is over."""
        if not self.soft:
            return aux
        encoder = build_encoder(self.network, params, stats)
        distances, weights = evaluate(lambda rows: _distances(encoder(rows), aux))
        radius = masked_quantile(distances, weights, 1.0 - aux["nu"])
        after = epoch >= self.warmup_epochs
        return aux | {"radius_squared": jnp.where(after, radius, aux["radius_squared"])}

    def _loss(self, distances: jax.Array, aux: dict[str, jax.Array]) -> jax.Array:
        if not self.soft:
            return distances
        radius = aux["radius_squared"]
        return radius + jnp.maximum(distances - radius, 0.0) / aux["nu"]


def masked_quantile(values: jax.Array, weights: jax.Array, fraction: jax.Array) -> jax.Array:
    """Linearly interpolated quantile of the values [N] whose weight is 1."""
    ordered = jnp.sort(jnp.where(weights > 0, values, jnp.inf))
    position = fraction * (jnp.sum(weights) - 1.0)
    low = jnp.floor(position).astype(jnp.int32)
    high = jnp.ceil(position).astype(jnp.int32)
    return ordered[low] + (position - low) * (ordered[high] - ordered[low])


def _distances(latents: jax.Array, aux: dict[str, jax.Array]) -> jax.Array:
    return _mean_square(latents - aux["center"][None, :])


def _mean_square(x: jax.Array) -> jax.Array:
    return jnp.mean(x**2, axis=1)


def _keep_units(
    widths: tuple[int, ...], rate: float, n_rows: int, key: jax.Array
) -> jax.Array | None:
    """Bool [B, sum of widths], each True with probability 1 - rate."""
    if not widths:
        return None
    bits = random_bits(key, n_rows * sum(widths))
    return (bits >= jnp.uint32(round(rate * 2**32))).reshape(n_rows, -1)
