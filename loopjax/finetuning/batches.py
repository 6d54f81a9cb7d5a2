"""Which loops train when, and batches of them for this process.

The order is a function of the seed alone: row r of step s is loop number s * B + r of one long
sequence, in which every loop comes once per pass, shuffled anew for each. So a run goes on in the
middle of a pass as if it had never stopped, on any number of devices and processes.
"""

from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import jax
import numpy as np

from loopjax.audio.loop import Failure, Loop, cut_group
from loopjax.audio.mixdown import to_int16
from loopjax.audio.perturb import PERTURBATIONS, perturb, require_eval_extra
from loopjax.audio.sources.source import Source
from loopjax.config import EmbedConfig
from loopjax.config.finetuning import AugmentConfig, LoopsConfig
from loopjax.embedding.ordered import Change, LoopFeatures, OrderedReader
from loopjax.embedding.read import make_decoders
from loopjax.embedding.samples import as_float
from loopjax.encoders.protocol import Encoder
from loopjax.errors import UserError
from loopjax.finetuning.augment import GRID, SILENCE_DB
from loopjax.finetuning.objectives import Rows
from loopjax.finetuning.steps import Batch

HELD_OUT_BATCHES = 4  # at most


@dataclass(frozen=True)
class Loops:
    """The loops of a training.

    Attributes:
        train: those that train.
        held_out: those that pick the best step.
        unlisted: what a source names and could not list, such as a missing file.
        groups: the groups of all of them, and their numbers.
        config: says what names a group.
    """

    train: list[Loop]
    held_out: list[Loop]
    unlisted: list[Failure]
    groups: dict[str, int]
    config: LoopsConfig

    def label(self, loop: Loop) -> int:
        """The number of a loop's group; -1 for one that has none or that the list did not show."""
        group = _group(loop, self.config)
        return -1 if group is None else self.groups.get(group, -1)


@dataclass(frozen=True)
class Slot:
    """This process's part of every batch.

    Attributes:
        batch_size: loops of a batch, over all processes.
        accumulate: parts of a batch.
        index: of this process.
        count: of processes.
    """

    batch_size: int
    accumulate: int
    index: int = 0
    count: int = 1

    @property
    def places(self) -> np.ndarray:
        """Rows of the batch that this process reads, int [A, B / A / count]."""
        return np.arange(self.batch_size).reshape(self.accumulate, self.count, -1)[:, self.index]


def list_loops(source: Source, config: LoopsConfig, batch_size: int) -> Loops:
    """Lists a corpus and holds some loops back, by their key.

    Raises:
        UserError: fewer loops than a batch takes, or no record has the column of the groups.
    """
    listed = list(source.loops())
    loops = sorted((i for i in listed if isinstance(i, Loop)), key=lambda loop: loop.key)
    n_held_out = min(round(config.holdout * len(loops)), HELD_OUT_BATCHES * batch_size)
    if len(loops) - n_held_out < batch_size:
        raise UserError(
            f"{len(loops)} loops, of which {n_held_out} are held out, do not fill a batch of "
            f"{batch_size}: give more loops, or a smaller optimizer.batch_size"
        )
    found = (_group(loop, config) for loop in loops)
    names = sorted({group for group in found if group is not None})
    if config.group_column is not None and not names:
        known = sorted({name for loop in loops for name in loop.columns})
        raise UserError(
            f"data.group_column: no loop has {config.group_column!r}; "
            + (f"its records have {', '.join(known)}" if known else "only records have columns")
        )
    groups = {name: number for number, name in enumerate(names)}
    unlisted = [item for item in listed if isinstance(item, Failure)]
    return Loops(loops[n_held_out:], loops[:n_held_out], unlisted, groups, config)


def _group(loop: Loop, config: LoopsConfig) -> str | None:
    """What the settings call a loop's group; None for a record that has no value there."""
    if config.group_column is None:
        return cut_group(loop.group, config.group_depth)
    return loop.columns.get(config.group_column) or None


class BatchReader:
    """Reads the loops of an encoder's training into batches."""

    def __init__(
        self,
        source: Source,
        encoder: Encoder,
        embed: EmbedConfig,
        augmentation: AugmentConfig,
        loops: Loops,
        slot: Slot,
        targets: Mapping[str, np.ndarray],
        seed: int,
    ):
        """Reads nothing yet.

        Args:
            source: decodes the loops.
            encoder: gives the front end.
            embed: how audio enters it.
            augmentation: says whether pitch and time change on the host.
            loops: see `list_loops`.
            slot: this process's part.
            targets: sha256 of a loop -> what it is to follow, float32 [W]; empty = nothing.
            seed: of the order, the crops, pitch and time.

        Raises:
            UserError: pitch or time is to change without the extra [eval].
        """
        self._source, self._encoder, self._embed = source, encoder, embed
        self._augmentation, self._loops, self._slot = augmentation, loops, slot
        self._targets, self._seed = targets, seed
        self._target_width = len(next(iter(targets.values()))) if targets else 0
        # key -> why a loop could not be read
        self.rejected = {failure.key: failure for failure in loops.unlisted}
        if augmentation.pitch_cents or augmentation.stretch_percent:
            require_eval_extra()

    def train(self, first_step: int) -> Generator[Batch]:
        """Batches from a step on, without end."""
        places = self._slot.places.ravel()

        def positions() -> Iterator[int]:
            step = first_step
            while True:
                yield from (step * self._slot.batch_size + int(place) for place in places)
                step += 1

        def position_of(number: int) -> int:
            step, at = divmod(number, len(places))
            return (first_step + step) * self._slot.batch_size + int(places[at])

        reader = OrderedReader(
            self._encoder,
            self._embed,
            change=self._change(position_of),
            crop_fractions=lambda number: self._rng(position_of(number), 1).random(3),
        )
        order = _Order(self._loops.train, self._seed)
        read = reader.read(map(order.loop, positions()), self._decoders())
        return self._batches(read)

    def held_out(self) -> list[Batch]:
        """The held-out loops, the same in each call."""
        places, size = self._slot.places, self._slot.batch_size
        loops = self._loops.held_out
        n_batches = -(-len(loops) // size)
        numbers = [step * size + int(place) for step in range(n_batches) for place in places.flat]
        here = [loops[number] for number in numbers if number < len(loops)]
        found = OrderedReader(self._encoder, self._embed).read(here, self._decoders())
        features = [next(found) if number < len(loops) else None for number in numbers]
        return list(self._batches(features))

    def _decoders(self):
        return make_decoders(self._source, self._encoder, self._embed)

    def _rng(self, position: int, use: int) -> np.random.Generator:
        return np.random.default_rng([self._seed, use, position])

    def _change(self, position_of) -> Change | None:
        """Pitch and time of the loop at a place in the order; None where neither changes."""
        cents, percent = self._augmentation.pitch_cents, self._augmentation.stretch_percent
        amounts = {"pitch shift": cents, "time stretch": percent}
        if not any(amounts.values()):
            return None

        def change(number: int, samples: np.ndarray, rate_hz: int) -> np.ndarray:
            rng, changed = self._rng(position_of(number), 2), as_float(samples)
            for name, most in amounts.items():
                amount, seed = rng.uniform(0.0, most), int(rng.integers(1 << 31))
                if most:
                    changed = perturb(PERTURBATIONS[name], changed, rate_hz, amount, [seed])
            return to_int16(changed) if samples.dtype == np.int16 else changed

        return change

    def _batches(self, features: Iterable[LoopFeatures | Failure | None]) -> Generator[Batch]:
        waiting: list[LoopFeatures | None] = []
        for item in features:
            if isinstance(item, Failure):
                self.rejected[item.key] = item
                item = None
            waiting.append(item)
            if len(waiting) == self._slot.places.size:
                yield self._batch(waiting)
                waiting = []

    def _batch(self, features: Sequence[LoopFeatures | None]) -> Batch:
        """Batch arrays of this process's rows; None is an empty row."""
        views, frames, bins = self._encoder.mel_shape
        # Several processes cannot ask one another each time, and must run the same program.
        all_views = self._slot.count > 1 or any(f is not None and f.longer for f in features)
        n_rows = len(features)
        mel = np.full((n_rows, views if all_views else 1, frames, bins), SILENCE_DB, np.float32)
        longer, mask = np.zeros(n_rows, bool), np.zeros(n_rows, bool)
        period, label = np.zeros(n_rows, np.int32), np.full(n_rows, -1, np.int32)
        content = np.zeros(n_rows, np.uint32)
        target = np.zeros((n_rows, self._target_width), np.float32)
        frames_per_s = self._encoder.sample_rate_hz / self._encoder.mel_config.hop_samples
        for row, found in enumerate(features):
            if found is None:
                continue
            sha256 = found.info.sha256
            mel[row], longer[row], mask[row] = found.mel, found.longer, True
            period[row] = 0 if found.longer else round(found.seconds * frames_per_s * GRID)
            label[row] = self._loops.label(found.loop)
            content[row] = int(sha256[:8], 16)
            if self._targets:
                mask[row] = sha256 in self._targets
                target[row] = self._targets.get(sha256, 0.0)
        rows = Rows(mask=mask, content=content, label=label, target=target)  # pyright: ignore
        batch = Batch(mel, longer, period, self._slot.places.ravel().astype(np.int32), rows)  # pyright: ignore
        parts = self._slot.accumulate
        return jax.tree.map(lambda x: x.reshape(parts, n_rows // parts, *x.shape[1:]), batch)


class _Order:
    """The endless sequence of loops, shuffled anew for each pass."""

    def __init__(self, loops: Sequence[Loop], seed: int):
        self._loops, self._seed = loops, seed
        self._known: dict[int, np.ndarray] = {}

    def loop(self, position: int) -> Loop:
        """The loop at a place of the sequence."""
        n_pass, at = divmod(position, len(self._loops))
        if n_pass not in self._known:
            order = np.random.default_rng([self._seed, 0, n_pass]).permutation(len(self._loops))
            self._known = {n_pass: order}
        return self._loops[self._known[n_pass][at]]
