"""What a training is: a loss, numbers that may differ between heads, rows, and state.

A loss function is any hashable object with the methods of `Objective`; state is a plain pytree.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import jax
from jax.sharding import Mesh

Tree = Any
EPOCH_METRICS = ("train_loss", "val_loss", "learning_rate")


class Objective(Protocol):
    """A loss per row; implementations are hashable, because compiled programs are keyed by them."""

    def train_losses(
        self,
        params: Tree,
        stats: Tree,
        rows: jax.Array,
        weights: jax.Array,
        key: jax.Array,
        momentum: jax.Array,
        aux: Tree,
    ) -> tuple[jax.Array, Tree]:
        """Losses [B] in training mode and the updated running statistics."""
        ...

    def eval_losses(self, params: Tree, stats: Tree, rows: jax.Array, aux: Tree) -> jax.Array:
        """Losses [B] in evaluation mode."""
        ...

    def begin_epoch(
        self,
        params: Tree,
        stats: Tree,
        aux: Tree,
        epoch: jax.Array,
        evaluate: Callable[[Callable[[jax.Array], jax.Array]], tuple[jax.Array, jax.Array]],
    ) -> Tree:
        """`aux` for this epoch; `evaluate(f)` gives f over all training rows and their weights."""
        ...


class Hyperparams(NamedTuple):
    """Per-head numbers; scalars or arrays with one entry per head.

    The learning rate of epoch e is low + (high - low) (1 + cos(pi e / period)) / 2. A head stops
    after `max_epochs`, or after `patience` epochs without a strictly lower validation loss.
    """

    learning_rate: Any
    min_learning_rate: Any
    period_epochs: Any
    weight_decay: Any
    max_epochs: Any
    patience: Any


class Split(NamedTuple):
    """Row numbers of a head: training rows [T] of which `n_train` count, validation likewise.

    T and V are padded; `n_val` 0 turns early stopping off and the last weights are the best.
    """

    train: Any
    n_train: Any
    val: Any
    n_val: Any


@dataclass(frozen=True)
class Recipe:
    """What is fixed when a training program is compiled.

    Attributes:
        objective: the loss.
        batch_size: rows per step; a short last batch is masked, a last batch of one row dropped.
        momentum: fraction of a batch in the running statistics.
        max_steps: steps of an epoch at most, on rows drawn anew every epoch; None for all rows.
        mesh: spread every batch over its "data" axis; None for one device.
    """

    objective: Objective
    batch_size: int
    momentum: float = 0.1
    mesh: Mesh | None = None
    max_steps: int | None = None


class State(NamedTuple):
    """Everything a training needs to go on; saved as it is."""

    params: Tree
    stats: Tree
    optimizer: Tree
    aux: Tree
    best_params: Tree
    best_stats: Tree
    best_loss: Any
    best_epoch: Any
    epoch: Any
    stopped: Any
    key: Any
