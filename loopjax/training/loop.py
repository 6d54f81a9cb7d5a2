"""The host's side of training: call after call of compiled epochs, progress, checkpoints."""

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from loopjax.training.checkpoints import Checkpoints
from loopjax.training.recipe import EPOCH_METRICS, Hyperparams, Recipe, Split, State, Tree
from loopjax.training.steps import (
    advance,
    advance_block,
    advance_epoch,
    steps_per_epoch,
    warmup_statistics,
)

# Steps that one call should hold at least, so that dispatch costs nothing beside the work.
_STEPS_PER_CALL = 250

OnEpoch = Callable[[int, dict[str, float]], None]


def stack(trees: list[Tree]) -> Tree:
    """Trees of equal structure as one tree with a leading head axis."""
    return jax.tree.map(lambda *leaves: np.stack([np.asarray(leaf) for leaf in leaves]), *trees)


def unstack(tree: Tree, head: int) -> Tree:
    """One head of a stacked tree."""
    return jax.tree.map(lambda leaf: leaf[head], tree)


def place(tree: Tree, mesh: Mesh | None) -> Tree:
    """Put a tree on the device, or replicate it over a mesh."""
    if mesh is None:
        return jax.tree.map(jnp.asarray, tree)
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))


def settle(
    recipe: Recipe, states: Sequence[State], X: jax.Array, split: Split, passes: int
) -> Tree:
    """BatchNorm statistics of every head, stacked, averaged over passes that change no weight."""
    steps = loop_steps(recipe, split.n_train)
    return stack(
        [
            warmup_statistics(recipe, state, X, split.train[h], split.n_train[h], passes, steps)
            for h, state in enumerate(states)
        ]
    )


def pad_split(train: list[np.ndarray], val: list[np.ndarray], batch_size: int) -> Split:
    """Row numbers per head as one padded `Split`; sizes are rounded up so that programs recur.

    A second of compiling costs more than what small sets lose by padding.
    """

    def padded(parts: list[np.ndarray], least: int, multiple: int) -> tuple[np.ndarray, np.ndarray]:
        longest = max(max(len(p) for p in parts), least)
        size = -(-_rounded(longest) // multiple) * multiple
        table = np.zeros((len(parts), size), np.int32)
        for row, part in zip(table, parts, strict=True):
            row[: len(part)] = part
        return table, np.array([len(p) for p in parts], np.int32)

    return Split(*padded(train, 512, batch_size), *padded(val, 128, 1))


def pad_rows(X: np.ndarray) -> np.ndarray:
    """Rows padded with zeros so that sets of similar size share compiled programs."""
    return np.pad(X, ((0, _rounded(len(X)) - len(X)), (0, 0)))


def loop_steps(recipe: Recipe, n_train: np.ndarray) -> int:
    """Steps to compile for heads with these numbers of training rows [H].

    Above 16 rounded up, by an eighth at most, so that sets of similar size share programs.
    """
    steps = int(np.max(steps_per_epoch(recipe, np.asarray(n_train))))
    unit = 1 << max(0, (steps - 1).bit_length() - 4)
    return -(-steps // unit) * unit


def epochs_per_call(rows: int, batch_size: int) -> int:
    """How many epochs to put into one call: few for large sets, more for small ones."""
    steps = -(-rows // batch_size)
    wanted = _STEPS_PER_CALL // max(steps, 1)
    return max((size for size in (1, 5, 25) if size <= wanted), default=1)


def run(
    recipe: Recipe,
    state: State,
    X: jax.Array,
    split: Split,
    hyperparams: Hyperparams,
    *,
    checkpoints: Checkpoints | None = None,
    every_epochs: int = 25,
    on_epoch: OnEpoch | None = None,
    heads_per_call: int | None = None,
) -> tuple[State, np.ndarray]:
    """Train every head until it stops; resumes from `checkpoints` to the same curve.

    Args:
        recipe: static.
        state: stacked over heads; may be donated.
        X: [N, D] on the device.
        split: stacked over heads.
        hyperparams: stacked over heads.
        checkpoints: where to resume from and to save the state (best and last weights, optimizer,
            random key, epoch) every `every_epochs` epochs and at the end.
        every_epochs: how much work a kill may cost.
        on_epoch: called with the epoch and its metrics, averaged over the heads still training;
            first with those before the state that it resumes from.
        heads_per_call: heads side by side in one call; None for all of them on an accelerator and
            on several devices, and for one on a CPU, where threads take head after head.

    Returns:
        The final state and metrics [H, E, 3], NaN after a head stopped.
    """
    n_heads = len(state.epoch)
    if heads_per_call is None:
        one_by_one = recipe.mesh is None and jax.default_backend() == "cpu"
        heads_per_call = 1 if one_by_one else n_heads
    groups = [slice(h, h + heads_per_call) for h in range(0, n_heads, heads_per_call)]
    per_call = epochs_per_call(int(np.max(split.n_train)), recipe.batch_size)
    steps = loop_steps(recipe, split.n_train)
    longest = int(np.max(hyperparams.max_epochs))
    history = np.full((n_heads, longest, len(EPOCH_METRICS)), np.nan, np.float32)
    if checkpoints is not None:
        saved = checkpoints.restore({"state": state, "history": history})
        if saved is not None:
            state, history = saved["state"], np.array(saved["history"])
    done = int(np.max(state.epoch))
    if on_epoch is not None:
        _report(on_epoch, history, 0, done)
    last_saved = done
    states = [state] if len(groups) == 1 else [_cut(state, heads) for heads in groups]

    def call(number: int) -> np.ndarray:
        heads = groups[number]
        states[number], log = advance(
            states[number], X, _cut(split, heads), _cut(hyperparams, heads),
            recipe=recipe, epochs=per_call, loop_steps=steps,
        )  # fmt: skip
        return np.asarray(log)

    with ThreadPoolExecutor(min(len(groups), os.cpu_count() or 1)) as threads:
        finished = _all_stopped(states)
        while not finished:
            width = min(per_call, longest - done)
            for heads, log in zip(groups, threads.map(call, range(len(groups))), strict=True):
                history[heads, done : done + width] = log[:, :width]
            if on_epoch is not None:
                _report(on_epoch, history, done, width)
            done += width
            finished = _all_stopped(states)
            if checkpoints is not None and (finished or done - last_saved >= every_epochs):
                checkpoints.save(done, {"state": _join(states), "history": history})
                last_saved = done
    state = _join(states)
    return state, history[:, : int(np.max(state.epoch))]


def run_streamed(
    recipe: Recipe,
    state: State,
    blocks: Callable[[int], Iterable[tuple[np.ndarray, np.ndarray]]],
    val: np.ndarray,
    hyperparams: Hyperparams,
    *,
    checkpoints: Checkpoints | None = None,
    every_epochs: int = 25,
    on_epoch: OnEpoch | None = None,
) -> tuple[State, np.ndarray]:
    """Train one head on data that does not fit the device, block by block.

    Args:
        recipe: static.
        state: of one head, not stacked.
        blocks: called with the number of every epoch; gives (rows [B, D], the row numbers [T] to
            train on). Blocks come in the reader's order, rows inside them in random order.
        val: [V, D] rows that stop the training; held on the device.
        hyperparams: scalars.
        checkpoints: see `run`.
        every_epochs: see `run`.
        on_epoch: see `run`.

    Returns:
        The final state and metrics [1, E, 3].
    """
    history = np.full((1, int(hyperparams.max_epochs), len(EPOCH_METRICS)), np.nan, np.float32)
    if checkpoints is not None:
        saved = checkpoints.restore({"state": state, "history": history})
        if saved is not None:
            state, history = saved["state"], np.array(saved["history"])
    if on_epoch is not None:
        _report(on_epoch, history, 0, int(state.epoch))
    held_out, n_val = jnp.asarray(pad_rows(val)), np.int32(len(val))
    while not bool(state.stopped):
        epoch, total, seen = int(state.epoch), 0.0, 0
        for number, (block, rows) in enumerate(blocks(epoch)):
            padded = np.pad(rows, (0, len(pad_rows(block)) - len(rows))).astype(np.int32)
            state, loss = advance_block(
                state, jnp.asarray(pad_rows(block)), padded, np.int32(len(rows)), hyperparams,
                np.uint32(number + 1), recipe=recipe,
                loop_steps=loop_steps(recipe, np.array(len(rows))),
            )  # fmt: skip
            total, seen = total + loss, seen + len(rows)
        state, metrics = advance_epoch(
            state, held_out, n_val, np.float32(total) / np.float32(seen), hyperparams, recipe=recipe
        )
        history[0, epoch] = np.asarray(metrics)
        if on_epoch is not None:
            _report(on_epoch, history, epoch, 1)
        stopped = bool(state.stopped)
        if checkpoints is not None and (stopped or (epoch + 1) % every_epochs == 0):
            checkpoints.save(epoch + 1, {"state": state, "history": history})
    return state, history[:, : int(state.epoch)]


def _cut(tree: Tree, heads: slice) -> Tree:
    return jax.tree.map(lambda leaf: leaf[heads], tree)


def _join(states: list[State]) -> State:
    if len(states) == 1:
        return states[0]
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *states)


def _all_stopped(states: list[State]) -> bool:
    return all(bool(np.all(state.stopped)) for state in states)


def _report(on_epoch, history: np.ndarray, first: int, count: int) -> None:
    for epoch in range(first, first + count):
        active = history[~np.isnan(history[:, epoch, 0]), epoch]
        if len(active):
            mean = active.mean(axis=0)
            on_epoch(epoch, {k: float(v) for k, v in zip(EPOCH_METRICS, mean, strict=True)})


def _rounded(n: int) -> int:
    return max(64, 1 << (n - 1).bit_length()) if n <= 1024 else -(-n // 1024) * 1024
