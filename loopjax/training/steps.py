"""Compiled epochs: AdamW, cosine schedule, early stopping, for one head or many.

A whole epoch is one compiled loop over data that already lies on the device, several epochs go into
one call, and many heads (seeds, hyper-parameters, subsets of rows) can train in the same call.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding, PartitionSpec

from loopjax.training.keys import derive, new_key, random_bits
from loopjax.training.recipe import EPOCH_METRICS, Hyperparams, Recipe, Split, State, Tree

# Rows evaluated at once; larger sets go block by block.
_EVAL_ROWS = 4096
_ADAM = optax.scale_by_adam(b1=0.9, b2=0.999, eps=1e-8)


def start(params: Tree, stats: Tree, aux: Tree, seed: int) -> State:
    """State before the first epoch of one head."""
    return State(
        params=params,
        stats=stats,
        optimizer=_ADAM.init(params),
        aux=aux,
        best_params=params,
        best_stats=stats,
        best_loss=np.float32(np.inf),
        best_epoch=np.int32(-1),
        epoch=np.int32(0),
        stopped=np.bool_(False),
        key=new_key(seed),
    )


def adamw_step(
    params: Tree, optimizer: Tree, grads: Tree, learning_rate: Any, weight_decay: Any
) -> tuple[Tree, Tree]:
    """One AdamW update (betas .9/.999, eps 1e-8, decay on every parameter) as in PyTorch."""
    updates, optimizer = _ADAM.update(grads, optimizer)
    params = jax.tree.map(lambda p, u: p - learning_rate * (u + weight_decay * p), params, updates)
    return params, optimizer


def cosine(hyperparams: Hyperparams, epoch: Any) -> jax.Array:
    """Learning rate of an epoch."""
    phase = jnp.cos(jnp.pi * epoch / hyperparams.period_epochs)
    spread = hyperparams.learning_rate - hyperparams.min_learning_rate
    return (hyperparams.min_learning_rate + 0.5 * spread * (1.0 + phase)).astype(jnp.float32)


def steps_per_epoch(recipe: Recipe, count: Any) -> Any:
    """Steps of one pass over `count` rows, a NumPy or JAX number or array."""
    size = recipe.batch_size
    steps = (count + size - 1) // size
    # One row has no variance to normalize by; it is left out of this epoch only.
    steps -= (count % size == 1) & (count > 1)
    if recipe.max_steps is not None:
        steps -= (steps > recipe.max_steps) * (steps - recipe.max_steps)
    return steps


def train_block(
    recipe: Recipe,
    state: State,
    X: jax.Array,
    rows: jax.Array,
    count: jax.Array,
    learning_rate: jax.Array,
    weight_decay: Any,
    key: jax.Array,
    loop_steps: int,
) -> tuple[State, jax.Array]:
    """One pass over rows [T] of X in random order; the new state and the summed loss.

    The loop runs `loop_steps` times, which the compiler knows: steps beyond the block's own change
    nothing. A GPU would make the host wait at every step of a loop whose end only the data tell.
    """
    size = recipe.batch_size
    order = rows[_permutation(derive(key, 0), len(rows), count)]
    order = jnp.pad(order, (0, -len(rows) % size))
    steps = steps_per_epoch(recipe, count)
    lane = jnp.arange(size, dtype=jnp.int32)

    def step(i, carry):
        params, stats, optimizer, total = carry
        batch = _spread(recipe, X[jax.lax.dynamic_slice_in_dim(order, i * size, size)])
        weights = (i * size + lane < count).astype(jnp.float32)

        def mean_loss(params):
            losses, new_stats = recipe.objective.train_losses(
                params, stats, batch, weights, derive(key, i + 1),
                jnp.float32(recipe.momentum), state.aux,
            )  # fmt: skip
            return jnp.sum(losses * weights) / jnp.sum(weights), new_stats

        (loss, stats), grads = jax.value_and_grad(mean_loss, has_aux=True)(params)
        params, optimizer = adamw_step(params, optimizer, grads, learning_rate, weight_decay)
        new = params, stats, optimizer, total + loss * jnp.sum(weights)
        return _kept_while(i < steps, new, carry)

    first = (state.params, state.stats, state.optimizer, jnp.float32(0.0))
    params, stats, optimizer, total = jax.lax.fori_loop(0, loop_steps, step, first)
    return state._replace(params=params, stats=stats, optimizer=optimizer), total


def eval_block(
    recipe: Recipe, state: State, X: jax.Array, rows: jax.Array, count: jax.Array
) -> jax.Array:
    """Summed evaluation loss over the first `count` of rows [V] of X."""
    losses, weights = _over_rows(
        lambda x: recipe.objective.eval_losses(state.params, state.stats, x, state.aux),
        X, rows, count,
    )  # fmt: skip
    return jnp.sum(losses * weights)


def close_epoch(
    state: State,
    hyperparams: Hyperparams,
    train_loss: jax.Array,
    val_loss: jax.Array,
    has_val: jax.Array,
) -> State:
    """Keep the weights if they are the best so far and decide whether to go on.

    Stops like Lightning's EarlyStopping(min_delta=0): `patience` epochs without a strictly lower
    validation loss, or a loss that is no longer finite.
    """
    watched = jnp.where(has_val, val_loss, train_loss)
    better = (watched < state.best_loss) | ~has_val
    keep = partial(jax.tree.map, lambda new, old: jnp.where(better, new, old))
    best_epoch = jnp.where(better, state.epoch, state.best_epoch)
    waited = state.epoch - best_epoch
    epoch = state.epoch + 1
    return state._replace(
        best_params=keep(state.params, state.best_params),
        best_stats=keep(state.stats, state.best_stats),
        best_loss=jnp.where(better, watched, state.best_loss),
        best_epoch=best_epoch,
        epoch=epoch,
        stopped=(waited >= hyperparams.patience)
        | (epoch >= hyperparams.max_epochs)
        | ~(jnp.isfinite(train_loss) & jnp.isfinite(watched)),
    )


@partial(jax.jit, static_argnames=("recipe", "passes", "loop_steps"))
def warmup_statistics(
    recipe: Recipe,
    state: State,
    X: jax.Array,
    rows: jax.Array,
    count: jax.Array,
    passes: int,
    loop_steps: int,
) -> Tree:
    """One head's BatchNorm statistics averaged over `passes` epochs that update no weight.

    `loop_steps` as in `train_block`, of one pass.
    """
    size = recipe.batch_size
    steps = jnp.maximum(count // size, 1)
    if recipe.max_steps is not None:
        steps = jnp.minimum(steps, recipe.max_steps)
    lane = jnp.arange(size, dtype=jnp.int32)
    base = derive(state.key, np.uint32(2**32 - 1))

    def step(i, stats):
        key = derive(base, i)
        start_ = (i % steps) * size
        picked = jax.lax.dynamic_slice_in_dim(jnp.pad(rows, (0, size)), start_, size)
        weights = (start_ + lane < count).astype(jnp.float32)
        _, new = recipe.objective.train_losses(
            state.params, stats, X[picked], weights, key, 1.0 / (i + 1.0), state.aux
        )
        return _kept_while(i < passes * steps, new, stats)

    return jax.lax.fori_loop(0, passes * loop_steps, step, state.stats)


def _one_epoch(
    recipe: Recipe, loop_steps: int, state: State, X: jax.Array, split: Split, hyperparams: Any
) -> tuple[State, jax.Array]:
    """One epoch of one head: the new state and its `EPOCH_METRICS`."""
    objective = recipe.objective
    aux = objective.begin_epoch(
        state.params, state.stats, state.aux, state.epoch,
        lambda f: _over_rows(f, X, split.train, split.n_train),
    )  # fmt: skip
    state = state._replace(aux=aux)
    rate = cosine(hyperparams, state.epoch)
    key = derive(state.key, state.epoch)
    state, total = train_block(
        recipe, state, X, split.train, split.n_train, rate, hyperparams.weight_decay, key,
        loop_steps,
    )  # fmt: skip
    seen = split.n_train
    if recipe.max_steps is not None:
        seen = jnp.minimum(seen, recipe.max_steps * recipe.batch_size)
    train_loss = total / seen
    has_val = split.n_val > 0
    val_sum = eval_block(recipe, state, X, split.val, split.n_val)
    val_loss = jnp.where(has_val, val_sum / jnp.maximum(split.n_val, 1), jnp.nan)
    metrics = jnp.stack([train_loss, val_loss, rate])
    return close_epoch(state, hyperparams, train_loss, val_loss, has_val), metrics


def _advance_one(
    recipe: Recipe,
    epochs: int,
    loop_steps: int,
    state: State,
    X: jax.Array,
    split: Split,
    hyperparams: Hyperparams,
) -> tuple[State, jax.Array]:
    """Up to `epochs` epochs of one head; metrics [epochs, 3], NaN where it had stopped."""

    def epoch(state: State, _: None) -> tuple[State, jax.Array]:
        return jax.lax.cond(
            state.stopped,
            lambda: (state, jnp.full(len(EPOCH_METRICS), jnp.nan, jnp.float32)),
            lambda: _one_epoch(recipe, loop_steps, state, X, split, hyperparams),
        )

    return jax.lax.scan(epoch, state, length=epochs)


@partial(jax.jit, static_argnames=("recipe", "epochs", "loop_steps"), donate_argnames="state")
def advance(
    state: State,
    X: jax.Array,
    split: Split,
    hyperparams: Hyperparams,
    *,
    recipe: Recipe,
    epochs: int,
    loop_steps: int,
) -> tuple[State, jax.Array]:
    """Up to `epochs` more epochs of every head that has not stopped, heads side by side.

    Args:
        state: stacked over heads, leading axis H.
        X: [N, D] rows shared by all heads.
        split: `Split` with arrays [H, T], [H], [H, V], [H].
        hyperparams: `Hyperparams` with arrays [H].
        recipe: static.
        epochs: static; how many epochs this call may run.
        loop_steps: static; at least the steps of an epoch of every head (`steps_per_epoch`).

    Returns:
        The new state and metrics [H, epochs, 3] in the order of `EPOCH_METRICS`.
    """
    one = partial(_advance_one, recipe, epochs, loop_steps)
    if len(state.epoch) > 1:
        return jax.vmap(one, in_axes=(0, None, 0, 0))(state, X, split, hyperparams)
    only = partial(jax.tree.map, lambda a: a[0])
    new, log = one(only(state), X, only(split), only(hyperparams))
    return jax.tree.map(lambda a: a[None], new), log[None]


@partial(jax.jit, static_argnames=("recipe", "loop_steps"), donate_argnames="state")
def advance_block(
    state: State,
    X: jax.Array,
    rows: jax.Array,
    count: jax.Array,
    hyperparams: Hyperparams,
    number: jax.Array,
    *,
    recipe: Recipe,
    loop_steps: int,
) -> tuple[State, jax.Array]:
    """One head over the first `count` of rows [T] of block `number`; also the summed loss."""
    key = derive(derive(state.key, state.epoch), number)
    rate = cosine(hyperparams, state.epoch)
    decay = hyperparams.weight_decay
    return train_block(recipe, state, X, rows, count, rate, decay, key, loop_steps)


@partial(jax.jit, static_argnames="recipe", donate_argnames="state")
def advance_epoch(
    state: State,
    val: jax.Array,
    n_val: jax.Array,
    train_loss: jax.Array,
    hyperparams: Hyperparams,
    *,
    recipe: Recipe,
) -> tuple[State, jax.Array]:
    """Evaluate one head after its last block on rows [V, D], `n_val` of them; `EPOCH_METRICS`."""
    rate = cosine(hyperparams, state.epoch)
    total = eval_block(recipe, state, val, jnp.arange(len(val)), n_val)
    val_loss = jnp.where(n_val > 0, total / jnp.maximum(n_val, 1), jnp.nan)
    metrics = jnp.stack([train_loss, val_loss, rate])
    return close_epoch(state, hyperparams, train_loss, val_loss, n_val > 0), metrics


def _kept_while(going: jax.Array, new: Tree, old: Tree) -> Tree:
    """The new arrays while a loop's own steps last, the old ones after."""
    return jax.tree.map(lambda after, before: jnp.where(going, after, before), new, old)


def _permutation(key: jax.Array, size: int, count: jax.Array) -> jax.Array:
    """Random order of the first `count` of `size` positions, the others behind them."""
    behind = jnp.arange(size) >= count
    order = jnp.arange(size, dtype=jnp.int32)
    return jax.lax.sort((behind, random_bits(key, size), order), num_keys=2)[2]


def _over_rows(
    function: Callable[[jax.Array], jax.Array], X: jax.Array, rows: jax.Array, count: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """function(X[rows]) as [V], block by block, and weights [V] of the rows that count."""
    total = len(rows)
    weights = (jnp.arange(total) < count).astype(jnp.float32)
    if total <= _EVAL_ROWS:
        return function(X[rows]), weights
    blocks = jnp.pad(rows, (0, -total % _EVAL_ROWS)).reshape(-1, _EVAL_ROWS)
    return jax.lax.map(lambda block: function(X[block]), blocks).reshape(-1)[:total], weights


def _spread(recipe: Recipe, batch: jax.Array) -> jax.Array:
    if recipe.mesh is None:
        return batch
    return jax.lax.with_sharding_constraint(
        batch, NamedSharding(recipe.mesh, PartitionSpec("data"))
    )
