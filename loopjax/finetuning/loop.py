"""The host's side of a training: batch after batch, checkpoints, the best step, collapse."""

import hashlib
import itertools
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from loopjax import parallel
from loopjax.audio.loop import Failure
from loopjax.config import to_dict
from loopjax.config.finetuning import FinetuneConfig
from loopjax.encoders.encoder import HtsatEncoder
from loopjax.encoders.load import default_precision
from loopjax.encoders.space import Precision
from loopjax.errors import ModelCheckError, TooManyRejectedError, UserError
from loopjax.finetuning.batches import BatchReader, Loops, Slot
from loopjax.finetuning.network import build_network, plain_weights, split_weights
from loopjax.finetuning.objectives import Objective
from loopjax.finetuning.steps import METRICS, Params, State, averaged, make_steps, place_batch
from loopjax.training.checkpoints import Checkpoints

TRAINABLE_PRECISIONS = ("fp32", "tf32", "bf16")
COLUMNS = (*METRICS, "held_out_loss")

OnStep = Callable[[int, np.ndarray], None]


@dataclass(frozen=True)
class Trained:
    """What a training leaves.

    Attributes:
        weights: of the encoder at its best step, plain float32 arrays by flat name.
        best_step: steps after which that was.
        curve: float32 [steps, 5], see `COLUMNS`; NaN where the held-out loss was not computed.
        rejected: loops that could not be read.
    """

    weights: dict[str, np.ndarray]
    best_step: int
    curve: np.ndarray
    rejected: list[Failure]


def training_precision(config: FinetuneConfig) -> Precision:
    """The arithmetic of a training's steps; weights stay float32.

    Raises:
        UserError: one that has no gradient, or is not exact enough for one.
    """
    wanted = config.embed.precision
    precision = default_precision() if wanted == "auto" else wanted
    if precision not in TRAINABLE_PRECISIONS:
        raise UserError(
            f"embed.precision: {precision} is for inference; train in "
            f"{', '.join(TRAINABLE_PRECISIONS)}"
        )
    return precision


def require_trainable(config: FinetuneConfig, parent: HtsatEncoder, loops: Loops) -> None:
    """Refuses settings that do not fit the encoder, the loops or the devices.

    Raises:
        UserError: no such stage, a single group for objective groups, or a batch that cannot be
            split over the devices.
    """
    trainable, n_stages = config.trainable, len(parent.config.depths)
    if trainable.what == "stages" and trainable.from_stage >= n_stages:
        raise UserError(
            f"trainable.from_stage: {trainable.from_stage}, but {parent.id} has {n_stages} stages, "
            "counted from 0"
        )
    if config.objective.kind == "groups" and len(loops.groups) < 2:
        raise UserError(
            "objective groups needs loops of at least two folders; see data.group_depth, "
            "data.group_column"
        )
    optimizer, n_devices = config.optimizer, jax.device_count()
    if optimizer.batch_size % (optimizer.accumulate * n_devices):
        raise UserError(
            f"optimizer.batch_size: {optimizer.batch_size} loops cannot be split evenly over "
            f"{n_devices} devices in {optimizer.accumulate} parts"
        )


def train(
    config: FinetuneConfig,
    parent: HtsatEncoder,
    loops: Loops,
    objective: Objective,
    reader: Callable[[Slot], BatchReader],
    folder: Path,
    on_step: OnStep | None = None,
) -> Trained:
    """Trains, or goes on where a killed run of the same settings was.

    Args:
        config: all settings, see `require_trainable`.
        parent: the encoder to start from.
        loops: enter the identity of the run.
        objective: what it is trained for.
        reader: gives the batches of this process's part.
        folder: of the checkpoints.
        on_step: called after each step with the number of finished ones, those of a run that goes
            on included, and the curve as far as that.

    Raises:
        UserError: checkpoints of another run lie there.
        ModelCheckError: embeddings collapsed, or a loss is no number.
        TooManyRejectedError: more unreadable loops than `embed.max_failures` allows, or nothing
            but unreadable ones in the first batch. One process counts in every step; several
            count together at every checkpoint.
        WriteError: a checkpoint cannot be written; earlier ones stay.
        StoppedError: another process of the run met an error; checkpoints stay.
    """
    settings, mesh = config.optimizer, parallel.global_mesh()
    slot = Slot(settings.batch_size, settings.accumulate, *parallel.process_slot())
    network = build_network(
        parent.config, config.trainable, training_precision(config), settings.remat
    )
    trained, frozen = split_weights(network, parent, config.trainable, config.seed)
    steps = make_steps(
        network, objective, frozen, mesh,
        optimizer=settings, augmentation=config.augment, anchor=config.objective.anchor,
        start=trained, seed=config.seed,
    )  # fmt: skip
    batches = reader(slot)
    state = steps.start({"encoder": dict(trained), "head": objective.head})
    best = _Best(jax.tree.map(jnp.copy, averaged(state, settings.ema)["encoder"]))
    curve = np.full((settings.steps, len(COLUMNS)), np.nan, np.float32)
    checkpoints = Checkpoints(folder, _fingerprint(config, parent, loops))
    try:
        saved = checkpoints.restore(_record(state, best, curve))
        if saved is not None:
            state, curve = State(*saved["state"]), np.array(saved["curve"])
            best = _Best(saved["best"], float(saved["best_loss"]), int(saved["best_step"]))
            batches.rejected |= _noted(checkpoints)
        held_out = [place_batch(batch, mesh) for batch in batches.held_out()]
        first = int(state.step)
        with closing(batches.train(first)) as read:
            batch = next(read) if first < settings.steps else None
            for step in range(first, settings.steps):
                assert batch is not None
                parallel.wait_for_all()  # no step begins without a process that met an error
                state, metrics = steps.train(state, place_batch(batch, mesh))
                done = step + 1
                batch = next(read) if done < settings.steps else None  # while the device works
                curve[step, : len(METRICS)] = np.asarray(metrics)
                _check(curve[:done], config)
                if slot.count == 1:  # of several, one that stopped would leave the others waiting
                    _check_budget(batches.rejected, loops, config)
                keep = done % config.every_steps == 0 or done == settings.steps
                if keep:
                    params = averaged(state, settings.ema)
                    curve[step, -1] = loss = _held_out_loss(steps.evaluate, params, held_out, done)
                    if not loss >= best.loss:  # NaN where nothing is held out: the last is the best
                        best = _Best(jax.tree.map(jnp.copy, params["encoder"]), loss, done)
                if on_step is not None:
                    on_step(done, curve[:done])
                if keep:  # at the end, so that what is kept has been told
                    _share_rejected(checkpoints, slot, batches, loops, config)
                    checkpoints.save(done, _record(state, best, curve))
        _share_rejected(checkpoints, slot, batches, loops, config)
        rejected = _noted(checkpoints)
    finally:
        checkpoints.close()
    weights = frozen | {name: np.asarray(value) for name, value in best.weights.items()}
    return Trained(
        weights=plain_weights(weights, config.trainable),
        best_step=best.step,
        curve=curve,
        rejected=sorted(rejected.values(), key=lambda failure: failure.path),
    )


@dataclass(frozen=True)
class _Best:
    """The trained weights of the encoder with the lowest held-out loss so far."""

    weights: dict[str, jax.Array]
    loss: float = float("inf")
    step: int = 0


def _record(state: State, best: _Best, curve: np.ndarray) -> dict[str, Any]:
    """Everything that the next step depends on, and what was found so far."""
    return {
        "state": tuple(state),
        "best": best.weights,
        "best_loss": np.float32(best.loss),
        "best_step": np.int32(best.step),
        "curve": curve,
    }


def _share_rejected(
    checkpoints: Checkpoints, slot: Slot, batches: BatchReader, loops: Loops, config: FinetuneConfig
) -> None:
    """Keeps which loops this process could not read: one that goes on may not meet them again.

    Raises:
        TooManyRejectedError: all processes together know of more than the settings allow; told by
            the first one.
        StoppedError: by the others, then.
    """
    rows = [asdict(f) | {"path_bytes": f.path_bytes.hex()} for f in batches.rejected.values()]
    checkpoints.write_note(f"rejected-{slot.index}", {"rejected": rows})
    parallel.wait_for_all()
    parallel.first_process_does(lambda: _check_budget(_noted(checkpoints), loops, config))


def _noted(checkpoints: Checkpoints) -> dict[str, Failure]:
    """The loops that any process could not read, by key."""
    rows = [row for note in checkpoints.read_notes("rejected-*") for row in note["rejected"]]
    rows = [row | {"path_bytes": bytes.fromhex(row["path_bytes"])} for row in rows]
    return {row["key"]: Failure(**row) for row in rows}


def _held_out_loss(evaluate, params: Params, batches: list, done: int) -> float:
    """The mean over held-out loops, no finer than a checkpoint keeps it; NaN without any.

    Raises:
        ModelCheckError: it is no number.
    """
    sums = [np.asarray(evaluate(params, batch), np.float64) for batch in batches]
    loss, n_rows = np.sum(sums, axis=0) if sums else (0.0, 0.0)
    if not n_rows:
        return float("nan")
    if not np.isfinite(loss):
        raise ModelCheckError(_no_number(f"the held-out loss after step {done}", loss))
    return float(np.float32(loss / n_rows))


def _no_number(what: str, value: float) -> str:
    return f"{what} is {value}: lower optimizer.learning_rate, or train in fp32"


def _check_budget(rejected: Mapping[str, Failure], loops: Loops, config: FinetuneConfig) -> None:
    """Stops where too many loops cannot be read.

    Raises:
        TooManyRejectedError: more than the settings allow.
    """
    n_rejected = len(rejected)
    n_loops = len(loops.train) + len(loops.held_out) + len(loops.unlisted)
    embed = config.embed
    if n_rejected > embed.max_failures * n_loops or (embed.strict and n_rejected):
        example = next(iter(rejected.values()))
        raise TooManyRejectedError(
            f"{n_rejected} of {n_loops} loops cannot be read, such as {example.path} "
            f"({example.reason}: {example.message})"
        )


def _check(curve: np.ndarray, config: FinetuneConfig) -> None:
    """Stops a training that leads nowhere.

    Raises:
        ModelCheckError: the loss is no number, or all embeddings have become alike.
        TooManyRejectedError: the first batch is empty.
    """
    loss, spread, _, n_loops, _ = curve[-1]
    if not curve[0, 3]:
        raise TooManyRejectedError(
            f"none of the first {config.optimizer.batch_size} loops can be read; `loopjax embed` "
            "says why"
        )
    if not np.isfinite(loss):
        raise ModelCheckError(_no_number(f"the loss of step {len(curve)}", loss))
    # A few loops may be alike by chance.
    if 2 * n_loops >= config.optimizer.batch_size and spread < config.min_spread * curve[0, 1]:
        raise ModelCheckError(
            f"collapsed: after {len(curve)} steps embeddings spread {spread:.2g}, at the start "
            f"{curve[0, 1]:.2g} (min_spread {config.min_spread:g}); lower "
            "optimizer.learning_rate, raise objective.anchor, or train fewer weights"
        )


def _fingerprint(config: FinetuneConfig, parent: HtsatEncoder, loops: Loops) -> dict[str, Any]:
    keys = "".join(loop.key for loop in itertools.chain(loops.held_out, loops.train))
    return {
        "config": to_dict(config),
        "parent": parent.weights_sha256,
        "loops": hashlib.sha256(keys.encode()).hexdigest(),
    }
