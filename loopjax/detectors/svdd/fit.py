"""Training of Deep SVDD heads as a function: settings and rows in, fitted values out.

One head or many at once: seeds, learning rates, subsets of rows. Nothing here knows the estimator.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh

from loopjax.detectors.rows import RowBlocks, take_rows
from loopjax.detectors.svdd.network import (
    Arrays,
    NetworkConfig,
    encoder_part,
    initialize,
    skeleton,
)
from loopjax.detectors.svdd.objectives import OneClass, Reconstruction
from loopjax.detectors.svdd.rows import ResidentRows, StreamedRows, check_scale, split_rows
from loopjax.errors import ModelCheckError, ParameterError
from loopjax.training import loop as training_loop
from loopjax.training import steps as training
from loopjax.training.checkpoints import Checkpoints
from loopjax.training.recipe import EPOCH_METRICS, Hyperparams, Objective, Recipe, State

# Bytes of training state per call; more heads go in further calls.
_STATE_BYTES = 2**30
# Matrices of up to this many rows go to the device whole, so that all subsets share programs; of
# larger ones only the rows that a training sees.
_WHOLE = 16_384
# Held-out rows at most where a part of them is enough, and where the others stream.
_MAX_VALIDATION = 8192

# Called with stage ("pretrain" or "one-class"), epoch and the epoch's metrics.
OnEpoch = Callable[[str, int, dict[str, float]], None]
Curves = dict[str, list[float | None]]


@dataclass(frozen=True)
class TrainingConfig:
    """What heads that train together share; the meaning of each is `DeepSVDD`'s.

    Attributes:
        reference_shuffle: split by the reference's shuffle, which copies rows.
        last_weights: the second stage starts from the last weights of the first, not the best.
    """

    network: NetworkConfig
    batch_size: int
    steps_per_epoch: int | None
    pretrain_epochs: int
    epochs: int
    schedule_epochs: int | None
    patience: int
    validation_fraction: float
    bn_scale: float
    bn_warmup_passes: int
    soft_boundary: bool
    warmup_epochs: int
    reference_shuffle: bool
    last_weights: bool
    data_parallel: bool


# A head learns from steps, not from rows: an epoch is this many batches of this many rows, whatever
# the size of the corpus. A small one gives each row several times, a large one is sampled. Batches
# that grow with the corpus train further: AdamW moves faster where gradients agree.
STEPS_PER_EPOCH, BATCH_ROWS = 5, 32


@dataclass(frozen=True)
class HeadConfig:
    """What may differ between heads that train in one program."""

    seed: int
    pretrain_learning_rate: float
    learning_rate: float
    min_learning_rate: float
    weight_decay: float
    nu: float


@dataclass(frozen=True)
class RunOptions:
    """What steers a run and moves no number: progress and checkpoints."""

    on_epoch: OnEpoch | None = None
    checkpoint_dir: Path | None = None
    checkpoint_every_epochs: int = 25


@dataclass(frozen=True)
class FittedHead:
    """What training gives: see the fitted attributes of `DeepSVDD`.

    Attributes:
        origin: [D], what was taken off the rows; None for nothing. `Detector` has the reason.
    """

    encoder: dict[str, np.ndarray]
    center: np.ndarray
    radius: float | None
    history: dict[str, Curves]
    best_epochs: dict[str, int]
    train_rows: np.ndarray
    latent_shrinkage: float
    origin: np.ndarray | None = None


def train_heads(
    config: TrainingConfig,
    heads: Sequence[HeadConfig],
    X: np.ndarray,
    subsets: Sequence[np.ndarray],
    options: RunOptions | None = None,
) -> list[FittedHead]:
    """Train heads together, each on its own row numbers of X [N, D].

    Equal to training each alone up to float rounding.

    Raises:
        DataError: see `check_scale`.
    """
    if config.network.batch_norm:
        check_scale(X)
    mesh = _mesh(config)
    trained: list[FittedHead] = []
    size = group_size(config.network)
    for start in range(0, len(heads), size):
        group, own = heads[start : start + size], subsets[start : start + size]
        parts = [
            _train_and_val(config, head, len(rows)) for head, rows in zip(group, own, strict=True)
        ]
        places = [(rows[train], rows[val]) for rows, (train, val) in zip(own, parts, strict=True)]
        matrix = X
        if len(X) > _WHOLE:
            used = np.unique(np.concatenate([part for both in places for part in both]))
            matrix = X[used]
            places = [(np.searchsorted(used, t), np.searchsorted(used, v)) for t, v in places]
        source = ResidentRows(matrix, places, config.batch_size, config.steps_per_epoch, mesh)
        fitted = _Training(config, group, source, mesh, options or RunOptions()).run()
        trained += [
            replace(head, train_rows=train) for head, (train, _) in zip(fitted, parts, strict=True)
        ]
    return trained


def _train_and_val(
    config: TrainingConfig, head: HeadConfig, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """Which of `count` rows a head trains on and which stop it: no more than its steps can see."""
    train, val = split_rows(
        count, config.validation_fraction, head.seed, reference=config.reference_shuffle
    )
    if config.steps_per_epoch is None:
        return train, val
    epochs = max(config.pretrain_epochs + config.epochs, 1)
    return train[: config.batch_size * config.steps_per_epoch * epochs], val[:_MAX_VALIDATION]


def train_streamed(
    config: TrainingConfig, head: HeadConfig, blocks: RowBlocks, options: RunOptions | None = None
) -> FittedHead:
    """Train one head on row blocks: on the rows that its steps see, or on all of them.

    With `steps_per_epoch` those few rows are taken out of the blocks and give what `train_heads`
    gives; without, all blocks pass through the device in every epoch.

    Raises:
        ParameterError: the settings need the whole matrix.
        DataError: see `check_scale`.
    """
    if config.soft_boundary or config.reference_shuffle or config.data_parallel:
        raise ParameterError(
            "row blocks: objective soft-boundary, compat reference and data_parallel need the "
            "whole matrix"
        )
    if config.network.batch_norm:
        check_scale(blocks)
    if config.steps_per_epoch is not None:
        train, val = _train_and_val(config, head, blocks.n_rows)
        used = np.sort(np.concatenate([train, val]))
        place = (np.searchsorted(used, train), np.searchsorted(used, val))
        seen, options = take_rows(blocks, used), options or RunOptions()
        resident = ResidentRows(seen, [place], config.batch_size, config.steps_per_epoch, None)
        (fitted,) = _Training(config, [head], resident, None, options).run()
        return replace(fitted, train_rows=train)
    n_val = min(int(blocks.n_rows * config.validation_fraction), _MAX_VALIDATION)
    rng = np.random.default_rng([head.seed, 0])
    val_rows = np.sort(rng.choice(blocks.n_rows, n_val, replace=False))
    source = StreamedRows(blocks, val_rows, take_rows(blocks, val_rows), None, head.seed)
    (fitted,) = _Training(config, [head], source, None, options or RunOptions()).run()
    return fitted


def check_spread(
    best_epochs: Mapping[str, int], latent_shrinkage: float, scores: np.ndarray
) -> None:
    """Refuse a head whose training scores [N] no longer tell rows apart.

    Hypersphere collapse (Ruff et al. 2018, section 3.3) is silent: every row is mapped to the
    center. Checked are finite scores, a mean score above 1e-12, scores that differ by more than
    1e-4 of their mean, and latents that keep more than 1e-5 of their variance in stage 2 (sound
    trainings of the reference kept 7e-4 and more; a constant map keeps float32's rounding).

    Raises:
        ModelCheckError: names what is wrong and what helps.
    """
    advice = "train less, or set bn_shift=False and bias=False"
    if min(best_epochs.values(), default=0) < 0 or not np.all(np.isfinite(scores)):
        raise ModelCheckError("Deep SVDD diverged: not finite; lower the learning rates")
    if scores.mean() < 1e-12:
        raise ModelCheckError(f"Deep SVDD collapsed: mean score {scores.mean():.1e}; {advice}")
    if latent_shrinkage < 1e-5:
        raise ModelCheckError(
            "Deep SVDD collapsed: the latents kept "
            f"{latent_shrinkage:.1e} of their variance; {advice}"
        )
    if scores.std() < 1e-4 * scores.mean():
        spread = scores.std() / scores.mean()
        raise ModelCheckError(
            f"Deep SVDD collapsed: all scores lie within {spread:.1e} of their mean; {advice}"
        )


def group_size(network: NetworkConfig) -> int:
    """How many heads may train together without more than a gigabyte of state."""
    n_weights = sum(int(np.prod(leaf.shape)) for leaf in skeleton(network)[1].values())
    return max(1, _STATE_BYTES // (n_weights * 4 * 5))


@dataclass
class _Training:
    """Reconstruction, center, one-class objective: all heads at once, all on one source."""

    config: TrainingConfig
    heads: Sequence[HeadConfig]
    source: ResidentRows | StreamedRows
    mesh: Mesh | None
    options: RunOptions
    history: list[dict[str, Curves]] = field(default_factory=list)
    best_epochs: list[dict[str, int]] = field(default_factory=list)

    def run(self) -> list[FittedHead]:
        config, source = self.config, self.source
        network = config.network
        self.history = [{} for _ in self.heads]
        self.best_epochs = [{} for _ in self.heads]
        fresh = [
            initialize(network, np.random.default_rng([head.seed, 1]), config.bn_scale)
            for head in self.heads
        ]
        params, stats = (training_loop.stack([f[i] for f in fresh]) for i in (0, 1))
        nothing: list[Arrays] = [{} for _ in self.heads]
        if network.batch_norm and config.bn_warmup_passes:
            recipe = self._recipe(Reconstruction(network))
            starts = self._starts("pretrain", params, stats, nothing)
            stats = source.settled(recipe, starts, config.bn_warmup_passes)
        if config.pretrain_epochs:
            state = self._stage("pretrain", Reconstruction(network), params, stats, nothing)
            last = config.last_weights
            params = state.params if last else state.best_params
            stats = state.stats if last else state.best_stats
        params, stats = encoder_part(params), encoder_part(stats)
        before = after = source.latent_moments(network, params | stats)
        radii: list[float | None] = [None for _ in self.heads]
        if config.epochs:
            aux: list[Arrays] = [{"center": moments.mean} for moments in before]
            if config.soft_boundary:
                for head, entry in zip(self.heads, aux, strict=True):
                    entry |= {"radius_squared": np.float32(0.0), "nu": np.float32(head.nu)}
            # Both networks have the same encoder; described alike, it is compiled once.
            encoder = replace(network, residual=False)
            objective = OneClass(encoder, config.soft_boundary, config.warmup_epochs)
            state = self._stage("one-class", objective, params, stats, aux)
            params, stats = dict(state.best_params), dict(state.best_stats)
            if config.soft_boundary:
                radii = [float(np.sqrt(squared)) for squared in state.aux["radius_squared"]]
            after = source.latent_moments(network, params | stats)
        return [
            FittedHead(
                encoder=training_loop.unstack(params | stats, h),
                center=np.asarray(before[h].mean, np.float32),
                radius=radii[h],
                history=self.history[h],
                best_epochs=self.best_epochs[h],
                train_rows=source.train_rows[h],
                latent_shrinkage=(
                    after[h].variance / before[h].variance if before[h].variance else 0.0
                ),
            )
            for h in range(len(self.heads))
        ]

    def _stage(
        self,
        name: str,
        objective: Objective,
        params: Arrays,
        stats: Arrays,
        aux: list[Arrays],
    ) -> State:
        """Train one stage from stacked arrays; the final state, in host memory."""
        on_epoch = self.options.on_epoch
        state, curves = self.source.train(
            self._recipe(objective),
            self._starts(name, params, stats, aux),
            self._hyperparams(name),
            self._checkpoints(name),
            every_epochs=self.options.checkpoint_every_epochs,
            on_epoch=None if on_epoch is None else partial(on_epoch, name),
        )
        for h in range(len(self.heads)):
            own = curves[h, : int(state.epoch[h])]
            self.history[h][name] = {
                metric: [None if np.isnan(value) else float(value) for value in own[:, i]]
                for i, metric in enumerate(EPOCH_METRICS)
            }
            self.best_epochs[h][name] = int(state.best_epoch[h])
        return jax.tree.map(np.asarray, state)

    def _recipe(self, objective: Objective) -> Recipe:
        config = self.config
        return Recipe(
            objective, config.batch_size, mesh=self.mesh, max_steps=config.steps_per_epoch
        )

    def _starts(self, stage: str, params: Arrays, stats: Arrays, aux: list[Arrays]) -> list[State]:
        return [
            training.start(
                training_loop.unstack(params, h),
                training_loop.unstack(stats, h),
                aux[h],
                seed=2 * head.seed + (stage != "pretrain"),
            )
            for h, head in enumerate(self.heads)
        ]

    def _hyperparams(self, stage: str) -> Hyperparams:
        config, heads = self.config, self.heads
        pretrain = stage == "pretrain"
        epochs = config.pretrain_epochs if pretrain else config.epochs
        rates = [h.pretrain_learning_rate if pretrain else h.learning_rate for h in heads]
        columns = (
            rates,
            [min(head.min_learning_rate, rate) for head, rate in zip(heads, rates, strict=True)],
            [config.schedule_epochs or epochs for _ in heads],
            [head.weight_decay for head in heads],
        )
        limits = (np.full(len(heads), n, np.int32) for n in (epochs, config.patience))
        return Hyperparams(*(np.array(c, np.float32) for c in columns), *limits)

    def _checkpoints(self, stage: str) -> Checkpoints | None:
        folder = self.options.checkpoint_dir
        if folder is None:
            return None
        described = {
            "stage": stage,
            "data_sha256": self.source.fingerprint(),
            "config": asdict(self.config),
            "heads": [asdict(head) for head in self.heads],
        }
        return Checkpoints(folder / stage, described)


def _mesh(config: TrainingConfig) -> Mesh | None:
    devices = jax.local_devices()
    if not config.data_parallel or len(devices) == 1:
        return None
    if config.batch_size % len(devices):
        raise ParameterError(
            f"batch_size {config.batch_size} does not divide over {len(devices)} devices"
        )
    return Mesh(np.array(devices), ("data",))
