"""The compiled step: views, embeddings, loss, gradient, update; one gradient collective.

Weights and optimizer are the same on every device of a `("data",)` mesh, the batch is split. Each
device differentiates its part of the loss; what has to be added up goes through one sum over the
devices. (What losses see of other devices' embeddings is gathered before that: B x C numbers.)
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from loopjax.config.finetuning import AugmentConfig, OptimizerConfig
from loopjax.finetuning.augment import SILENCE_DB, augment
from loopjax.finetuning.network import Network
from loopjax.finetuning.objectives import Objective, Rows, unit

AXIS = "data"
METRICS = ("loss", "spread", "gradient_norm", "loops")
Params = dict[str, dict[str, jax.Array]]  # "encoder" and "head", by flat name


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Batch:
    """Loops of one step: all arrays [A, B / A, ...] for A parts, split along the second axis.

    Attributes:
        mel: float32 dB [V, frames, bins] of each; V = 1 where no loop of the batch is longer than a
            clip.
        longer: bool, whether the loop exceeds the clip.
        period: int32, until the loop repeats, see `augment`; 0 if it does not.
        place: int32, in the batch; the row's random numbers follow from it.
        rows: see `Rows`.
    """

    mel: jax.Array
    longer: jax.Array
    period: jax.Array
    place: jax.Array
    rows: Rows


class State(NamedTuple):
    """What a step changes: `params` and their running average, and the optimizer's memory."""

    step: jax.Array
    params: Params
    average: dict[str, jax.Array]
    opt: Any


class Sums(NamedTuple):
    """Over the rows of a batch: losses, directions of embeddings [C], and how many rows it has."""

    loss: jax.Array
    directions: jax.Array
    rows: jax.Array


@dataclass(frozen=True)
class Steps:
    """The compiled programs of one training.

    Attributes:
        start: weights -> the state before the first step.
        train: (state, batch) -> (state, metrics float32 [4], see `METRICS`); `state` is consumed.
        evaluate: (params, batch) -> the sum of its rows' losses and their number, float32 [2];
            views are fixed.
    """

    start: Callable[[dict[str, dict[str, np.ndarray]]], State]
    train: Callable[[State, Batch], tuple[State, jax.Array]]
    evaluate: Callable[[Params, Batch], jax.Array]


def make_schedule(config: OptimizerConfig) -> optax.Schedule:
    """Linear warmup, then constant, then a cosine down to a hundredth."""
    rate = config.learning_rate
    decay = config.decay_steps or config.steps - config.warmup_steps
    parts, edges = [optax.constant_schedule(rate)], []
    if config.warmup_steps:
        parts.insert(0, optax.linear_schedule(0.0, rate, config.warmup_steps))
        edges.append(config.warmup_steps)
    if decay:
        parts.append(optax.cosine_decay_schedule(rate, decay, alpha=0.01))
        edges.append(config.steps - decay)
    return optax.join_schedules(parts, edges)


def make_optimizer(config: OptimizerConfig) -> optax.GradientTransformation:
    """AdamW behind clipping by the global norm; only kernels are decayed."""

    def is_kernel(params: Params) -> Any:
        return {
            part: {name: name.endswith((".kernel", "project", "centers")) for name in weights}
            for part, weights in params.items()
        }

    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.adamw(make_schedule(config), weight_decay=config.weight_decay, mask=is_kernel),
    )


def make_steps(
    network: Network,
    objective: Objective,
    frozen: dict[str, np.ndarray],
    mesh: Mesh,
    *,
    optimizer: OptimizerConfig,
    augmentation: AugmentConfig,
    anchor: float,
    start: dict[str, np.ndarray],
    seed: int,
) -> Steps:
    """Compiles, on first use, what a training repeats.

    Args:
        network: computes embeddings.
        objective: the loss.
        frozen: weights of the encoder that stay.
        mesh: all devices of all processes, one axis.
        optimizer: see OptimizerConfig.
        augmentation: see AugmentConfig.
        anchor: weight of the squared distance of the trained weights to `start`.
        start: the trained weights of the encoder before the first step.
        seed: of the views.
    """
    everywhere = NamedSharding(mesh, PartitionSpec())
    whole, split = PartitionSpec(), PartitionSpec(None, AXIS)
    fixed = jax.device_put({"weights": frozen, "constants": objective.constants}, everywhere)
    origin = jax.device_put(start if anchor else {}, everywhere)
    transformation = make_optimizer(optimizer)

    def gather(x: jax.Array) -> jax.Array:
        return jax.lax.all_gather(x, AXIS, tiled=True)

    def add_up(of_device: Any) -> Any:
        """The sum over devices, as one vector; alone, a device has nothing to copy together."""
        if mesh.devices.size == 1:
            return of_device
        flat, unflatten = ravel_pytree(of_device)
        return unflatten(jax.lax.psum(flat, AXIS))

    def part_loss(
        params: Params, fixed: Any, batch: Batch, mates: jax.Array, key: jax.Array
    ) -> tuple[jax.Array, Sums]:
        """The loss of one part's rows on this device, to be differentiated, and all their sums."""
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, batch.place)
        views = [
            augment(
                batch.mel,
                batch.period,
                mates,
                jax.vmap(jax.random.fold_in, (0, None))(keys, view),
                augmentation,
            )
            for view in range(objective.n_views)
        ]
        longer = jnp.tile(batch.longer, objective.n_views) if batch.mel.shape[1] > 1 else None
        z = network.embed(params["encoder"], fixed["weights"], jnp.concatenate(views), longer)
        z = z.reshape(objective.n_views, -1, z.shape[-1])
        loss = objective.loss(params["head"], fixed["constants"], z, batch.rows, gather)
        mask = batch.rows.mask
        directions = jnp.where(mask[:, None], unit(z[0]), 0.0).sum(axis=0)
        return loss, Sums(loss, directions, mask.sum(dtype=jnp.float32))

    def over_parts(compute: Callable[[Batch, jax.Array], Any], batch: Batch, mates: Any) -> Any:
        """The sum of `compute` over the parts of a batch, one after the other."""
        if len(batch.place) == 1:
            return compute(*jax.tree.map(lambda x: x[0], (batch, mates)))
        first = jax.tree.map(lambda x: x[0], (batch, mates))
        zero = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(compute, *first))

        def add(total: Any, part: Any) -> tuple[Any, None]:
            return jax.tree.map(jnp.add, total, compute(*part)), None

        return jax.lax.scan(add, zero, (batch, mates))[0]

    def differentiate(params: Params, fixed: Any, batch: Batch, mates: jax.Array, key: jax.Array):
        """Per device: the batch's gradient and sums, all in one sum over devices."""

        def one(part: Batch, part_mates: jax.Array) -> Any:
            gradient, sums = jax.grad(part_loss, has_aux=True)(params, fixed, part, part_mates, key)
            return gradient, sums

        return add_up(over_parts(one, batch, mates))

    def measure(params: Params, fixed: Any, batch: Batch, mates: jax.Array, key: jax.Array):
        """The same without a gradient."""

        def one(part: Batch, part_mates: jax.Array) -> Any:
            return part_loss(params, fixed, part, part_mates, key)[1]

        return add_up(over_parts(one, batch, mates))

    def shard(run: Callable[..., Any]) -> Callable[..., Any]:
        specs = (whole, whole, split, split, whole)
        return jax.shard_map(run, mesh=mesh, in_specs=specs, out_specs=whole, check_vma=False)

    def mates_of(batch: Batch) -> jax.Array:
        """The loop before each in its part, to be mixed in."""
        if augmentation.mix_db > SILENCE_DB:
            return jnp.roll(batch.mel[:, :, 0], 1, axis=1)
        return jnp.zeros((*batch.place.shape, 1, 1))

    def train(state: State, batch: Batch, fixed: Any, origin: Any) -> tuple[State, jax.Array]:
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        gradient, sums = shard(differentiate)(state.params, fixed, batch, mates_of(batch), key)
        n_rows = jnp.maximum(sums.rows, 1.0)
        gradient = jax.tree.map(lambda g: g / n_rows, gradient)
        loss = sums.loss / n_rows
        for name, at_start in origin.items():
            away = state.params["encoder"][name] - at_start
            gradient["encoder"][name] += 2.0 * anchor * away
            loss += anchor * jnp.square(away).sum()
        updates, opt = transformation.update(gradient, state.opt, state.params)
        params: Params = optax.apply_updates(state.params, updates)  # pyright: ignore
        decay = average_decay(optimizer.ema, state.step)
        average = jax.tree.map(
            lambda old, new: decay * old + (1.0 - decay) * new,
            state.average,
            params["encoder"],
        )
        spread = _spread(sums.directions, n_rows)
        metrics = [loss, spread, optax.tree.norm(gradient), sums.rows]
        return State(state.step + 1, params, average, opt), jnp.stack(metrics)

    def evaluate(params: Params, batch: Batch, fixed: Any) -> jax.Array:
        key = jax.random.fold_in(jax.random.key(seed), np.uint32(2**32 - 1))
        sums = shard(measure)(params, fixed, batch, mates_of(batch), key)
        return jnp.stack([sums.loss, sums.rows])

    train_program, evaluate_program = jax.jit(train, donate_argnums=0), jax.jit(evaluate)

    def begin(params: dict[str, dict[str, np.ndarray]]) -> State:
        placed = jax.device_put(params, everywhere)
        average = jax.tree.map(jnp.copy, placed["encoder"])
        opt = jax.jit(transformation.init, out_shardings=everywhere)(placed)
        return State(jax.device_put(np.uint32(0), everywhere), placed, average, opt)

    return Steps(
        start=begin,
        train=lambda state, batch: train_program(state, batch, fixed, origin),
        evaluate=lambda params, batch: evaluate_program(params, batch, fixed),
    )


def place_batch(batch: Batch, mesh: Mesh) -> Batch:
    """This process's rows as its part of the batch of all processes."""
    sharding = NamedSharding(mesh, PartitionSpec(None, AXIS))
    return jax.tree.map(
        lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)), batch
    )


def average_decay(ema: float, step: jax.Array) -> jax.Array:
    """What of the average stays in a step, counted from 0.

    Less than `ema` at first: at .99, half of what 60 steps leave would be the weights before them.
    """
    done = step.astype(jnp.float32)
    return jnp.minimum(ema, (1.0 + done) / (10.0 + done))


def averaged(state: State, ema: float) -> Params:
    """The parameters to judge and to keep: the running average, if there is one."""
    if not ema:
        return state.params
    return {**state.params, "encoder": state.average}


def _spread(directions: jax.Array, n_rows: jax.Array) -> jax.Array:
    """1 - |mean direction|^2: 0 where all embeddings point the same way, 1 where none agree."""
    return jnp.maximum(1.0 - jnp.square(directions / n_rows).sum(), 0.0)
