"""Training of Deep SVDD heads, one or many at once: seeds, learning rates, subsets of rows."""

import hashlib
import random
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from loopjax import training
from loopjax.checkpoints import Checkpoints
from loopjax.detectors.autoencoder import (
    Arrays,
    NetworkConfig,
    build_encoder,
    encoder_part,
    encoder_skeleton,
    initialise,
    skeleton,
)
from loopjax.detectors.base import DataError, score_in_blocks
from loopjax.detectors.objectives import OneClass, Reconstruction
from loopjax.detectors.saving import nest_arrays
from loopjax.errors import UserError

if TYPE_CHECKING:
    from loopjax.detectors.deep_svdd import DeepSVDD

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
    """How many heads may train in one call without more than a gigabyte of state."""
    n_weights = sum(int(np.prod(leaf.shape)) for leaf in skeleton(network)[1].values())
    return max(1, _STATE_BYTES // (n_weights * 4 * 5))


def train_heads(
    detectors: Sequence["DeepSVDD"], X: np.ndarray, subsets: Sequence[np.ndarray]
) -> None:
    """Both stages for all detectors at once; sets their fitted attributes but the scores."""
    first = detectors[0]
    _check_alike(detectors)
    network = first.network_config()
    parts = [_split(d, rows) for d, rows in zip(detectors, subsets, strict=True)]
    mesh = _mesh(first)
    data = training.place(training.pad_rows(X), mesh)
    split = training.pad_split([p[0] for p in parts], [p[1] for p in parts], first.batch_size)
    fresh = [initialise(network, np.random.default_rng([d.random_state, 1])) for d in detectors]
    params, stats = (training.stack([f[i] for f in fresh]) for i in (0, 1))
    keys = _fingerprint(detectors, X, parts)
    history: list[dict[str, Any]] = [{} for _ in detectors]
    best: list[dict[str, int]] = [{} for _ in detectors]
    warm = first.bn_warmup_passes if first.compat is None and first.batch_norm else 0

    def stage(name: str, objective: Any, params: Arrays, stats: Arrays, aux: list[Arrays]):
        nonlocal warm
        pretrain = name == "pretrain"
        epochs = first.pretrain_epochs if pretrain else first.epochs
        recipe = training.Recipe(
            objective=objective,
            batch_size=first.batch_size,
            max_epochs=epochs,
            patience=first.patience,
            mesh=mesh,
            serial_heads=jax.default_backend() == "cpu",
        )
        starts = [
            training.start(
                training.unstack(params, h), training.unstack(stats, h), aux[h],
                2 * d.random_state + (not pretrain),
            )
            for h, d in enumerate(detectors)
        ]  # fmt: skip
        state = training.place(training.stack(starts), mesh)
        if warm:
            state = training.warm_up_heads(state, data, split, recipe=recipe, passes=warm)
            warm = 0
        state, curves = training.run(
            recipe, state, data, split, _hyper(detectors, pretrain, epochs),
            checkpoints=_checkpoints(first, name, keys),
            every_epochs=first.checkpoint_every_epochs,
            on_epoch=first.on_epoch and partial(first.on_epoch, name),
        )  # fmt: skip
        for h in range(len(detectors)):
            count = int(state.epoch[h])
            history[h][name] = {
                metric: [None if np.isnan(v) else float(v) for v in curves[h, :count, i]]
                for i, metric in enumerate(training.METRICS)
            }
            best[h][name] = int(state.best_epoch[h])
        return jax.tree.map(np.asarray, state)

    if first.pretrain_epochs:
        state = stage("pretrain", Reconstruction(network), params, stats, [{} for _ in detectors])
        last = first.compat is not None
        params = state.params if last else state.best_params
        stats = state.stats if last else state.best_stats
    params, stats = encoder_part(params), encoder_part(stats)
    centers = [
        encode_rows(network, training.unstack(params | stats, h), X[parts[h][0]]).mean(axis=0)
        for h in range(len(detectors))
    ]
    radius = None
    if first.epochs:
        soft = first.objective == "soft-boundary"
        aux = [
            {"center": c, "radius_squared": np.float32(0.0), "nu": np.float32(d.nu)} if soft
            else {"center": c}
            for c, d in zip(centers, detectors, strict=True)
        ]  # fmt: skip
        state = stage("one-class", OneClass(network, soft, first.warmup_epochs), params, stats, aux)
        params, stats = state.best_params, state.best_stats
        radius = np.sqrt(state.aux["radius_squared"]) if soft else None
    for h, detector in enumerate(detectors):
        arrays = jax.tree.map(np.asarray, training.unstack(params | stats, h))
        detector.encoder_ = nest_arrays(arrays)
        detector.center_ = np.asarray(centers[h], np.float32)
        detector.radius_ = None if radius is None else float(radius[h])
        detector.history_, detector.best_epochs_ = history[h], best[h]
        local = {row: i for i, row in enumerate(subsets[h])}
        detector.train_rows_ = np.array([local[row] for row in parts[h][0]])


def encode_rows(network: NetworkConfig, arrays: Arrays, rows: np.ndarray) -> np.ndarray:
    """Latents [N, Z] float32 of rows [N, D], in evaluation mode."""
    arrays = {name: jnp.asarray(a) for name, a in arrays.items()}
    return score_in_blocks(lambda block: _encode(block, arrays, network=network), rows)


@partial(jax.jit, static_argnames="network")
def _encode(rows: jax.Array, arrays: Arrays, *, network: NetworkConfig) -> jax.Array:
    return build_encoder(network, arrays, {})(rows)


def check_encoder_arrays(network: NetworkConfig, arrays: Arrays) -> None:
    """Raise `UserError` listing missing, unknown and misshapen arrays of an encoder."""
    expected = {name: leaf.shape for name, leaf in encoder_skeleton(network)[1].items()}
    missing = sorted(expected.keys() - arrays.keys())
    unknown = sorted(arrays.keys() - expected.keys())
    shapes = [
        f"{name} {arrays[name].shape}, expected {shape}"
        for name, shape in sorted(expected.items())
        if name in arrays and arrays[name].shape != shape
    ]
    if missing or unknown or shapes:
        raise UserError(
            f"encoder arrays: missing {missing or 'none'}, unknown {unknown or 'none'}, "
            f"wrong shape {shapes or 'none'}"
        )


def duplicating_shuffle(count: int, seed: int) -> np.ndarray:
    """Row numbers after the reference's shuffle, which copies rows instead of swapping them.

    `random.shuffle` on a 2-D array assigns through views, so position i receives row j while j
    stays: about half of the rows are lost (reference `data/data_loader.py`).
    """
    rows: Any = np.arange(count)[:, None]
    random.Random(seed).shuffle(rows)
    return rows[:, 0]


def _split(detector: "DeepSVDD", rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Row numbers to train on and to stop by."""
    count, seed = len(rows), detector.random_state
    if detector.compat == "reference":
        order = rows[duplicating_shuffle(count, seed)]
    else:
        order = rows[np.random.default_rng([seed, 0]).permutation(count)]
    n_train = int(count * (1.0 - detector.validation_fraction))
    return order[:n_train], order[n_train:]


def _hyper(detectors: Sequence["DeepSVDD"], pretrain: bool, epochs: int) -> training.Hyper:
    rate = "pretrain_learning_rate" if pretrain else "learning_rate"
    period = detectors[0].schedule_epochs or epochs
    columns = [
        [getattr(d, rate) for d in detectors],
        [min(d.min_learning_rate, getattr(d, rate)) for d in detectors],
        [period for _ in detectors],
        [d.weight_decay for d in detectors],
    ]
    return training.Hyper(*(np.array(column, np.float32) for column in columns))


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


def _fingerprint(
    detectors: Sequence["DeepSVDD"], X: np.ndarray, parts: list[tuple[np.ndarray, np.ndarray]]
) -> dict[str, Any] | None:
    if detectors[0].checkpoint_dir is None:
        return None
    digest = hashlib.sha256(X.tobytes())
    for train, val in parts:
        digest.update(train.tobytes() + val.tobytes())
    skip = ("checkpoint_dir", "on_epoch", "checkpoint_every_epochs", "contamination")
    params = [{k: v for k, v in d.get_params().items() if k not in skip} for d in detectors]
    return {"data_sha256": digest.hexdigest(), "params": params}


def _checkpoints(
    detector: "DeepSVDD", stage: str, keys: dict[str, Any] | None
) -> Checkpoints | None:
    if keys is None:
        return None
    return Checkpoints(Path(str(detector.checkpoint_dir)) / stage, keys | {"stage": stage})
