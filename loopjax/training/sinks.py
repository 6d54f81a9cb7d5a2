"""Where the numbers of a training go: a file always, TensorBoard and Weights & Biases on request.

A sink takes one `Epoch` after the other and is closed at the end. None of them needs a network:
Weights & Biases writes below the run folder, for `wandb sync`, unless WANDB_MODE says otherwise.
"""

import contextlib
import dataclasses
import importlib.util
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from loopjax.errors import UserError, WriteError

METRICS_NAME = "metrics.jsonl"
LINE_EVERY_S = 10.0


@dataclass(frozen=True)
class Epoch:
    """What one epoch of a training gave.

    Attributes:
        detector: by its name in the experiment.
        seeds: that train together; metrics are means over those that are still at it.
        stage: such as "pretrain" or "one-class".
        epoch: counted from 0 in each stage.
        metrics: by name.
    """

    detector: str
    seeds: tuple[int, ...]
    stage: str
    epoch: int
    metrics: Mapping[str, float]


class Sink(Protocol):
    """Takes what trainings report."""

    def write(self, epoch: Epoch) -> None:
        """Takes one epoch."""
        ...

    def close(self) -> None:
        """Everything has been written."""
        ...


class JsonLines:
    """`metrics.jsonl`: one line per epoch, appended at once."""

    def __init__(self, path: Path, *, anew: bool = False):
        """Appends to a file, or with `anew` begins it.

        Raises:
            WriteError: the file of an earlier training cannot be removed.
        """
        self._path = path
        try:
            if anew:
                path.unlink(missing_ok=True)
        except OSError as error:
            raise WriteError(f"cannot write {path}: {error.strerror or error}") from None

    def write(self, epoch: Epoch) -> None:
        """Appends a line.

        Raises:
            WriteError: the file cannot be written.
        """
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a", encoding="utf-8") as file:
                file.write(_line(epoch))
        except OSError as error:
            raise WriteError(f"cannot write {self._path}: {error.strerror or error}") from None

    def close(self) -> None:
        """Nothing is open."""


class ProgressLines:
    """A line of text every ten seconds, for terminals that cannot redraw one and for logs."""

    def __init__(self, say: Callable[[str], None]):
        self._say, self._said_s = say, time.monotonic()

    def write(self, epoch: Epoch) -> None:
        """Says where the training is, if it has not just done so."""
        if time.monotonic() - self._said_s >= LINE_EVERY_S:
            self._said_s = time.monotonic()
            self._say(describe(epoch))

    def close(self) -> None:
        """Nothing is open."""


class TensorBoard:
    """Event files in `tb/`, for `tensorboard --logdir`: a tag per detector, stage and metric."""

    package = "tensorboardX"

    def __init__(self, folder: Path, *, anew: bool = False):
        from tensorboardX import SummaryWriter

        if anew:
            for file in (folder / "tb").glob("events.out.tfevents.*"):
                file.unlink()
        self._writer = SummaryWriter(str(folder / "tb"), write_to_disk=True)

    def write(self, epoch: Epoch) -> None:
        """Adds a point to every curve."""
        for tag, value in _tagged(epoch).items():
            self._writer.add_scalar(tag, value, epoch.epoch)

    def close(self) -> None:
        """Ends the file."""
        self._writer.close()


class WeightsAndBiases:
    """A run of Weights & Biases in `wandb/`; without a network unless WANDB_MODE says otherwise.

    Every start is a run of its own there, in any case.
    """

    package = "wandb"

    def __init__(self, folder: Path, *, anew: bool = False):
        import wandb

        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "loopjax"),
            name=folder.name,
            dir=str(folder),
            mode=None if "WANDB_MODE" in os.environ else "offline",
            settings=wandb.Settings(silent=True, console="off", disable_git=True),
        )

    def write(self, epoch: Epoch) -> None:
        """Logs the metrics beside the epoch, which is the axis of their charts."""
        self._run.log({**_tagged(epoch), "epoch": epoch.epoch})

    def close(self) -> None:
        """Ends the run."""
        self._run.finish()


SINKS: Mapping[str, type[TensorBoard] | type[WeightsAndBiases]] = {
    "tensorboard": TensorBoard,
    "wandb": WeightsAndBiases,
}


OnEpoch = Callable[[str, int, Mapping[str, float]], None]


@contextlib.contextmanager
def open_sinks(names: Sequence[str], folder: Path, *, anew: bool = False) -> Iterator[list[Sink]]:
    """The sinks of these names, which write below a folder, until the context ends.

    Args:
        names: see `require_sinks`.
        folder: of the run.
        anew: curves begin again; those that an earlier training left there are deleted.

    Raises:
        UserError: see `require_sinks`.
        WriteError: they cannot write there.
    """
    require_sinks(names)
    with contextlib.ExitStack() as stack:
        try:
            opened: list[Sink] = [SINKS[name](folder, anew=anew) for name in dict.fromkeys(names)]
        except OSError as error:
            raise WriteError(f"cannot write below {folder}: {error.strerror or error}") from None
        for sink in opened:
            stack.callback(sink.close)
        yield opened


def reporting(detector: str, seeds: Sequence[int], sinks: Sequence[Sink]) -> OnEpoch:
    """What a detector calls as `on_epoch`, for all sinks."""

    def report(stage: str, epoch: int, metrics: Mapping[str, float]) -> None:
        for sink in sinks:
            sink.write(Epoch(detector, tuple(seeds), stage, epoch, metrics))

    return report


def require_sinks(names: Sequence[str]) -> None:
    """Refuses names of sinks that there are not, before any work is done.

    Raises:
        UserError: no such sink, or its package is not installed.
    """
    for name in names:
        if name not in SINKS:
            raise UserError(f"no logger {name!r}; there are {', '.join(SINKS)}")
        package = SINKS[name].package
        if importlib.util.find_spec(package) is None:
            raise UserError(f"--log {name} needs {package}: pip install 'loopjax[{name}]'")


def describe(epoch: Epoch) -> str:
    """An epoch in a line of text."""
    values = "  ".join(f"{key} {value:.4g}" for key, value in epoch.metrics.items())
    return f"{epoch.detector}: {epoch.stage} epoch {epoch.epoch}  {values}"


def _line(epoch: Epoch) -> str:
    row = dataclasses.asdict(epoch)
    return json.dumps(row | row.pop("metrics")) + "\n"


def _tagged(epoch: Epoch) -> dict[str, float]:
    return {f"{epoch.detector}/{epoch.stage}/{k}": v for k, v in epoch.metrics.items()}
