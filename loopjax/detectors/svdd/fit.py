"""Training of Deep SVDD heads, one or many at once: seeds, learning rates, subsets of rows."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jax.sharding import Mesh

from loopjax.detectors.base import DataError, RowBlocks
from loopjax.detectors.svdd.network import NetworkConfig, encoder_part, initialize, skeleton
from loopjax.detectors.svdd.objectives import OneClass, Reconstruction
from loopjax.detectors.svdd.rows import ResidentRows, StreamedRows
from loopjax.errors import UserError
from loopjax.training import loop as training_loop
from loopjax.training import steps as training
from loopjax.training.checkpoints import Checkpoints

if TYPE_CHECKING:
    from loopjax.detectors.svdd.estimator import DeepSVDD

# What may differ between heads that train in one program.
PER_HEAD = (
    "random_state",
    "pretrain_learning_rate",
    "learning_rate",
    "min_learning_rate",
    "weight_decay",
    "nu",
)
# Bytes of training state per call; more heads go in further calls.
_STATE_BYTES = 2**30


def fit_heads(
    detectors: Sequence["DeepSVDD"], X: np.ndarray, subsets: Sequence[np.ndarray] | None = None
) -> list["DeepSVDD"]:
    """Fit detectors together; each on all of X [N, D] or on its own row numbers of X.

    The detectors may differ in `PER_HEAD`. Equal to fitting each alone up to float rounding.

    Raises:
        UserError: other parameters differ, or a hyper-parameter is out of range.
        DataError: X cannot be used.
        ModelCheckError: a head collapsed.
    """
    first = detectors[0]
    X = first._validate(X, reset=True)
    subsets = [np.arange(len(X))] * len(detectors) if subsets is None else list(subsets)
    for detector in detectors:
        detector._check_params()
        detector.n_features_in_ = first.n_features_in_
    if min(len(rows) for rows in subsets) < first._min_rows:
        raise DataError(f"every head needs at least {first._min_rows} rows")
    size = group_size(first.network_config())
    for start in range(0, len(detectors), size):
        part = slice(start, start + size)
        train_heads(detectors[part], X, subsets[part])
    for detector, rows in zip(detectors, subsets, strict=True):
        detector.decision_scores_ = detector._finish(X[rows])
        detector.threshold_ = detector._threshold_from(detector.decision_scores_)
    return list(detectors)


def group_size(network: NetworkConfig) -> int:
    """How many heads may train together without more than a gigabyte of state."""
    n_weights = sum(int(np.prod(leaf.shape)) for leaf in skeleton(network)[1].values())
    return max(1, _STATE_BYTES // (n_weights * 4 * 5))


def train_heads(
    detectors: Sequence["DeepSVDD"], X: np.ndarray, subsets: Sequence[np.ndarray]
) -> None:
    """Train heads on rows of a matrix; sets their fitted attributes but the scores."""
    _check_alike(detectors)
    mesh = _mesh(detectors[0])
    _train_stages(detectors, ResidentRows(detectors, X, subsets, mesh), mesh)


def train_streamed(detector: "DeepSVDD", blocks: RowBlocks) -> None:
    """Train one head on row blocks; sets its fitted attributes but the scores."""
    _train_stages([detector], StreamedRows(detector, blocks), None)


def _train_stages(
    detectors: Sequence["DeepSVDD"], source: ResidentRows | StreamedRows, mesh: Mesh | None
) -> None:
    """Reconstruction, center, one-class objective: all heads at once, all on one source."""
    first = detectors[0]
    network = first.network_config()
    scale = first.bn_scale if first.compat is None else 1.0
    fresh = [
        initialize(network, np.random.default_rng([d.random_state, 1]), scale) for d in detectors
    ]
    params, stats = (training_loop.stack([f[i] for f in fresh]) for i in (0, 1))
    for detector, rows in zip(detectors, source.train_rows, strict=True):
        detector.train_rows_, detector.radius_ = rows, None
        detector.history_, detector.best_epochs_ = {}, {}
    stage = partial(_stage, detectors, source, mesh)
    if first.compat is None and first.batch_norm and first.bn_warmup_passes:
        recipe = training.Recipe(Reconstruction(network), first.batch_size, mesh=mesh)
        starts = _starts(detectors, params, stats, [{} for _ in detectors], "pretrain")
        stats = source.settled(recipe, starts, first.bn_warmup_passes)
    if first.pretrain_epochs:
        state = stage("pretrain", Reconstruction(network), params, stats, [{} for _ in detectors])
        last = first.compat is not None
        params = state.params if last else state.best_params
        stats = state.stats if last else state.best_stats
    params, stats = encoder_part(params), encoder_part(stats)
    before = source.latent_moments(network, params | stats)
    if first.epochs:
        soft = first.objective == "soft-boundary"
        aux: list[dict[str, Any]] = [{"center": moments.mean} for moments in before]
        for detector, entry in zip(detectors, aux, strict=True):
            if soft:
                entry |= {"radius_squared": np.float32(0.0), "nu": np.float32(detector.nu)}
        # Both networks have the same encoder; described alike, it is compiled once.
        encoder = replace(network, residual=False)
        state = stage("one-class", OneClass(encoder, soft, first.warmup_epochs), params, stats, aux)
        params, stats = state.best_params, state.best_stats
        for h, detector in enumerate(detectors):
            if soft:
                detector.radius_ = float(np.sqrt(state.aux["radius_squared"][h]))
    after = source.latent_moments(network, params | stats) if first.epochs else before
    for h, detector in enumerate(detectors):
        detector.encoder_ = training_loop.unstack(params | stats, h)
        detector.center_ = np.asarray(before[h].mean, np.float32)
        shrinkage = after[h].variance / before[h].variance if before[h].variance else 0.0
        detector.latent_shrinkage_ = shrinkage


def _stage(
    detectors: Sequence["DeepSVDD"],
    source: ResidentRows | StreamedRows,
    mesh: Mesh | None,
    name: str,
    objective: training.Objective,
    params: Any,
    stats: Any,
    aux: list[dict[str, Any]],
) -> training.State:
    """Train one stage of all heads from stacked arrays; the final state, in host memory."""
    first = detectors[0]
    epochs = first.pretrain_epochs if name == "pretrain" else first.epochs
    state, curves = source.train(
        training.Recipe(objective, first.batch_size, mesh=mesh),
        _starts(detectors, params, stats, aux, name),
        _hyper(detectors, name == "pretrain", epochs),
        _checkpoints(detectors, name, source),
        every_epochs=first.checkpoint_every_epochs,
        on_epoch=first.on_epoch and partial(first.on_epoch, name),
    )
    for h, detector in enumerate(detectors):
        own = curves[h, : int(state.epoch[h])]
        detector.history_[name] = {
            metric: [None if np.isnan(value) else float(value) for value in own[:, i]]
            for i, metric in enumerate(training.METRICS)
        }
        detector.best_epochs_[name] = int(state.best_epoch[h])
    return jax.tree.map(np.asarray, state)


def _starts(
    detectors: Sequence["DeepSVDD"], params: Any, stats: Any, aux: list[dict[str, Any]], stage: str
) -> list[training.State]:
    return [
        training.start(
            training_loop.unstack(params, h),
            training_loop.unstack(stats, h),
            aux[h],
            seed=2 * detector.random_state + (stage != "pretrain"),
        )
        for h, detector in enumerate(detectors)
    ]


def _hyper(detectors: Sequence["DeepSVDD"], pretrain: bool, epochs: int) -> training.Hyper:
    rate = "pretrain_learning_rate" if pretrain else "learning_rate"
    period = detectors[0].schedule_epochs or epochs
    columns = [
        [getattr(d, rate) for d in detectors],
        [min(d.min_learning_rate, getattr(d, rate)) for d in detectors],
        [period for _ in detectors],
        [d.weight_decay for d in detectors],
    ]
    rates = (np.array(column, np.float32) for column in columns)
    limits = (np.full(len(detectors), n, np.int32) for n in (epochs, detectors[0].patience))
    return training.Hyper(*rates, *limits)


def _check_alike(detectors: Sequence["DeepSVDD"]) -> None:
    first = detectors[0].get_params()
    for other in detectors[1:]:
        params = other.get_params()
        differing = [k for k in first if k not in PER_HEAD and params[k] != first[k]]
        if differing:
            raise UserError(
                f"heads trained together may not differ in {', '.join(differing)}; "
                f"only in {', '.join(PER_HEAD)}"
            )


def _mesh(detector: "DeepSVDD") -> Mesh | None:
    devices = jax.devices()
    if not detector.data_parallel or len(devices) == 1:
        return None
    if detector.batch_size % len(devices):
        raise UserError(
            f"batch_size {detector.batch_size} does not divide over {len(devices)} devices"
        )
    return Mesh(np.array(devices), ("data",))


def _checkpoints(
    detectors: Sequence["DeepSVDD"], stage: str, source: ResidentRows | StreamedRows
) -> Checkpoints | None:
    folder = detectors[0].checkpoint_dir
    if folder is None:
        return None
    # Neither moves the curve, so a run may be continued with other values.
    free = ("checkpoint_dir", "checkpoint_every_epochs", "on_epoch", "contamination")
    params = [{k: v for k, v in d.get_params().items() if k not in free} for d in detectors]
    described = {"stage": stage, "data_sha256": source.fingerprint(), "params": params}
    return Checkpoints(Path(str(folder)) / stage, described)
