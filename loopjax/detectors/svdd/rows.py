"""Where training rows come from: a matrix on the device, or blocks that pass through it."""

import hashlib
import random
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from loopjax.detectors.rows import DataError, RowBlocks, iter_blocks, len_rows
from loopjax.detectors.svdd.network import Arrays, NetworkConfig, encode_rows
from loopjax.training import loop as training_loop
from loopjax.training.checkpoints import Checkpoints
from loopjax.training.recipe import Hyperparams, Recipe, State

_GATHERED_ROWS = 32_768  # of a stream, mixed and on the device at a time: 100 MB of 768 numbers
_SPREAD = 4  # a sampled epoch reads this many times the rows that it trains on
_SMALLEST_DEVIATION, _SCALE_ROWS = 1e-4, 4096  # see `check_scale`


def check_scale(rows: np.ndarray | RowBlocks) -> None:
    """Refuse rows [N, D] that scatter so little that BatchNorm takes them for constant.

    It adds 1e-5 to every variance: scores of rows with a mean variance of 1e-11 are chance.

    Raises:
        DataError: says by how much they scatter.
    """
    sample = next(iter_blocks(rows, _SCALE_ROWS))
    deviation = float(np.sqrt(np.var(sample, axis=0, dtype=np.float64).mean()))
    if deviation == 0.0 and len(sample) == len_rows(rows):
        raise DataError("all rows are identical: there is nothing to learn from")
    if 0.0 < deviation < _SMALLEST_DEVIATION:
        raise DataError(
            f"columns scatter by {deviation:.1e} on average, which Deep SVDD's BatchNorm takes for "
            f"constant: multiply the rows until it is {_SMALLEST_DEVIATION:.0e} or more, or use "
            "another detector"
        )


class Moments(NamedTuple):
    """Mean [Z] and mean variance of latents."""

    mean: np.ndarray
    variance: float


class ResidentRows:
    """A matrix [N, D] on the device(s), of which every head sees its own rows.

    Args:
        X: [N, D].
        parts: per head, the row numbers of X that train and those that stop the training.
        batch_size: rows per step.
        steps_per_epoch: rows are given several times until they fill so many steps; None for once.
        mesh: devices that share every batch; None for one.

    Attributes:
        train_rows: per head, the row numbers that train.
    """

    def __init__(
        self,
        X: np.ndarray,
        parts: Sequence[tuple[np.ndarray, np.ndarray]],
        batch_size: int,
        steps_per_epoch: int | None,
        mesh: Mesh | None,
    ):
        self._X, self._mesh = X, mesh
        self.train_rows = [train for train, _ in parts]
        least = batch_size * (steps_per_epoch or 0)
        given = [np.tile(train, max(1, -(-least // len(train)))) for train in self.train_rows]
        self._split = training_loop.pad_split(given, [val for _, val in parts], batch_size)
        self._data = training_loop.place(training_loop.pad_rows(X), mesh)

    def fingerprint(self) -> str:
        """Hash of the rows and of how they are split."""
        digest = hashlib.sha256(self._X.tobytes())
        for part in self._split:
            digest.update(np.asarray(part).tobytes())
        return digest.hexdigest()

    def settled(self, recipe: Recipe, starts: Sequence[State], passes: int) -> Arrays:
        """BatchNorm statistics, stacked, averaged over passes that change no weight."""
        return training_loop.settle(recipe, starts, self._data, self._split, passes)

    def train(
        self,
        recipe: Recipe,
        starts: Sequence[State],
        hyperparams: Hyperparams,
        checkpoints: Checkpoints | None,
        *,
        every_epochs: int,
        on_epoch: training_loop.OnEpoch | None,
    ) -> tuple[State, np.ndarray]:
        """Train all heads until they stop; stacked state and metrics [H, E, 3]."""
        state = training_loop.place(training_loop.stack(list(starts)), self._mesh)
        return training_loop.run(
            recipe, state, self._data, self._split, hyperparams, checkpoints=checkpoints,
            every_epochs=every_epochs, on_epoch=on_epoch,
        )  # fmt: skip

    def latent_moments(self, network: NetworkConfig, arrays: Arrays) -> list[Moments]:
        """Moments of every head's latents of its training rows under its own (stacked) arrays."""
        latents = (
            encode_rows(network, training_loop.unstack(arrays, h), self._X[rows])
            for h, rows in enumerate(self.train_rows)
        )
        return [Moments(z.mean(axis=0), float(z.var(axis=0).mean())) for z in latents]


class StreamedRows:
    """Blocks that pass through the device one after another; one head.

    Rows of a block may be neighbors in the corpus and alike, so what is trained on is mixed: every
    epoch takes blocks in a new random order and gathers the rows of several at a time.

    Args:
        blocks: all rows.
        val_rows: ascending numbers of the rows that stop the training.
        val: those rows; they stay on the device.
        rows_per_epoch: train on this many rows, drawn anew every epoch; None for all.
        seed: of that draw and of the order of the blocks.

    Attributes:
        train_rows: one array, the numbers of the rows that are trained on.
    """

    def __init__(
        self,
        blocks: RowBlocks,
        val_rows: np.ndarray,
        val: np.ndarray,
        rows_per_epoch: int | None,
        seed: int,
    ):
        trained = np.ones(blocks.n_rows, bool)
        trained[val_rows] = False
        self._blocks = blocks.only(trained)
        self._val_rows, self._val = val_rows, val
        self.train_rows = [np.flatnonzero(trained)]
        self._per_epoch = min(rows_per_epoch or blocks.n_rows, self._blocks.n_rows)
        self._seed = seed

    def fingerprint(self) -> str:
        """Hash of the held-out rows and of the size of the stream."""
        digest = hashlib.sha256(self._val.tobytes() + self._val_rows.tobytes())
        digest.update(f"{self._blocks.n_rows} {self._blocks.n_features}".encode())
        return digest.hexdigest()

    def settled(self, recipe: Recipe, starts: Sequence[State], passes: int) -> Arrays:
        """BatchNorm statistics, stacked, averaged over passes that change no weight.

        The first rows of an epoch stand for all: statistics only have to be of the right size.
        """
        rows, numbers = next(self._drawn(0))
        split = training_loop.pad_split([numbers], [numbers[:0]], recipe.batch_size)
        data = jnp.asarray(training_loop.pad_rows(rows))
        return training_loop.settle(recipe, starts, data, split, passes)

    def train(
        self,
        recipe: Recipe,
        starts: Sequence[State],
        hyperparams: Hyperparams,
        checkpoints: Checkpoints | None,
        *,
        every_epochs: int,
        on_epoch: training_loop.OnEpoch | None,
    ) -> tuple[State, np.ndarray]:
        """Train the head until it stops; stacked state and metrics [1, E, 3]."""
        state = training_loop.place(starts[0], None)
        one = Hyperparams(*(column[0] for column in hyperparams))
        state, curves = training_loop.run_streamed(
            recipe, state, self._drawn, self._val, one, checkpoints=checkpoints,
            every_epochs=every_epochs, on_epoch=on_epoch,
        )  # fmt: skip
        return training_loop.stack([state]), curves

    def latent_moments(self, network: NetworkConfig, arrays: Arrays) -> list[Moments]:
        """Moments of the latents of the training rows, in a list of one."""
        own = training_loop.unstack(arrays, 0)
        total, squares = np.zeros(network.hidden_dims[-1]), 0.0
        for rows in iter_blocks(self._blocks, _GATHERED_ROWS):
            latents = encode_rows(network, own, rows).astype(np.float64)
            total += latents.sum(axis=0)
            squares += float((latents**2).sum())
        mean = total / len(self.train_rows[0])
        variance = squares / len(self.train_rows[0]) / len(mean) - float((mean**2).mean())
        return [Moments(mean.astype(np.float32), max(variance, 0.0))]

    def _drawn(self, epoch: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """The rows of one epoch in equal pieces, and their numbers in the piece."""
        rng = np.random.default_rng([self._seed, 5, epoch])
        sizes = self._blocks.sizes
        order = rng.permutation(len(sizes))
        # Enough blocks to draw a part of each, so that an epoch is no handful of neighborhoods.
        held = np.cumsum(sizes[order])
        order = order[: int(np.searchsorted(held, _SPREAD * self._per_epoch)) + 1]
        kept = np.zeros(int(sizes[order].sum()), bool)
        kept[rng.choice(len(kept), self._per_epoch, replace=False)] = True
        masks = np.split(kept, np.cumsum(sizes[order])[:-1])
        n_pieces = -(-self._per_epoch // _GATHERED_ROWS)
        for rows in iter_blocks(self._blocks.picked(order, masks), -(-self._per_epoch // n_pieces)):
            yield rows, np.arange(len(rows), dtype=np.int32)


def duplicating_shuffle(count: int, seed: int) -> np.ndarray:
    """Row numbers after the reference's shuffle, which copies rows instead of swapping them.

    `random.shuffle` on a 2-D array assigns through views, so position i receives row j while j
    stays: about half of the rows are lost (reference `data/data_loader.py`).
    """
    rows: Any = np.arange(count)[:, None]
    random.Random(seed).shuffle(rows)
    return rows[:, 0]


def split_rows(
    count: int, validation_fraction: float, seed: int, *, reference: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Which of `count` rows to train on and which to stop by.

    `reference` splits by `duplicating_shuffle`, so that rows may lie on both sides.
    """
    if reference:
        order = duplicating_shuffle(count, seed)
    else:
        order = np.random.default_rng([seed, 0]).permutation(count)
    n_train = int(count * (1.0 - validation_fraction))
    return order[:n_train], order[n_train:]
