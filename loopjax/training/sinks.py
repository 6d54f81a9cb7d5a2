"""Where the numbers of a training go: a file always, TensorBoard and Weights & Biases on request.

A sink takes one `Epoch` after the other and is closed at the end. It begins its curves anew, and a
run that goes on tells it what it keeps of the epochs before: none is there twice, however many a
killed run had told and has to train again. None of them needs a network: Weights & Biases writes
below the run folder, for `wandb sync`, unless WANDB_MODE says otherwise.
"""

import contextlib
import dataclasses
import importlib.util
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from loopjax.errors import UserError, WriteError
from loopjax.io import write_text
from loopjax.json_files import parse_json

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

    def __init__(self, path: Path, before: Iterable[Epoch] = ()):
        """Begins the file with the epochs before; a kill leaves the old one or the new one.

        Raises:
            WriteError: the file cannot be written.
        """
        self._path = path
        text = "".join(map(_line, before))
        with _writing(path):
            if text:
                write_text(path, text)
            else:
                path.unlink(missing_ok=True)

    def write(self, epoch: Epoch) -> None:
        """Appends a line.

        Raises:
            WriteError: the file cannot be written.
        """
        with _writing(self._path):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a", encoding="utf-8") as file:
                file.write(_line(epoch))

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
    """An event file in `tb/`, for `tensorboard --logdir`: a tag per detector, stage and metric.

    A `SummaryWriter` writes in a thread, which dies when the disk is full; the training would then
    wait for it without end.
    """

    package = "tensorboardX"

    def __init__(self, folder: Path):
        from tensorboardX.event_file_writer import EventsWriter

        self._folder, self._flushed_s = folder / "tb", time.monotonic()
        with _writing(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
            for file in self._folder.glob("events.out.tfevents.*"):
                file.unlink()
            self._writer = EventsWriter(str(self._folder / "events"))

    def write(self, epoch: Epoch) -> None:
        """Adds a point to every curve.

        Raises:
            WriteError: the file cannot be written.
        """
        from tensorboardX.proto.event_pb2 import Event  # pyright: ignore - made when it is imported
        from tensorboardX.summary import scalar

        with _writing(self._folder):
            for tag, value in _tagged(epoch).items():
                point = scalar(tag, value)
                self._writer.write_event(
                    Event(wall_time=time.time(), step=epoch.epoch, summary=point)
                )
            if time.monotonic() - self._flushed_s >= LINE_EVERY_S:
                self._flushed_s = time.monotonic()
                self._writer.flush()

    def close(self) -> None:
        """Ends the file.

        Raises:
            WriteError: the rest of it cannot be written.
        """
        with _writing(self._folder):
            self._writer.close()


class WeightsAndBiases:
    """A run of Weights & Biases in `wandb/`; without a network unless WANDB_MODE says otherwise.

    Every start is a run of its own there.
    """

    package = "wandb"

    def __init__(self, folder: Path):
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
def open_sinks(
    names: Sequence[str], folder: Path, before: Sequence[Epoch] = ()
) -> Iterator[list[Sink]]:
    """`metrics.jsonl` and the sinks of these names, below a folder, until the context ends.

    Args:
        names: see `require_sinks`.
        folder: of the run; the curves of earlier trainings there are deleted.
        before: epochs with which curves begin.

    Raises:
        UserError: see `require_sinks`.
        WriteError: they cannot write there.
    """
    require_sinks(names)
    lines = JsonLines(folder / METRICS_NAME, before)
    with contextlib.ExitStack() as stack:
        try:
            further = [SINKS[name](folder) for name in dict.fromkeys(names)]
        except OSError as error:
            raise WriteError(f"cannot write below {folder}: {error.strerror or error}") from None
        for sink in further:
            stack.callback(sink.close)
            for epoch in before:
                sink.write(epoch)
        yield [lines, *further]


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


def read_epochs(folder: Path) -> list[Epoch]:
    """What `metrics.jsonl` in a folder holds; a killed run may have cut its last line.

    Raises:
        UserError: the file cannot be read.
    """
    path, found = folder / METRICS_NAME, []
    try:
        lines = path.read_text("utf-8", "replace").splitlines() if path.exists() else []
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None
    for line in lines:
        with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError):
            row = parse_json(line)
            detector, seeds = row.pop("detector"), tuple(row.pop("seeds"))
            found.append(Epoch(detector, seeds, row.pop("stage"), row.pop("epoch"), row))
    return found


@contextlib.contextmanager
def _writing(place: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise WriteError(f"cannot write {place}: {error.strerror or error}") from None


def _line(epoch: Epoch) -> str:
    row = dataclasses.asdict(epoch)
    return json.dumps(row | row.pop("metrics")) + "\n"


def _tagged(epoch: Epoch) -> dict[str, float]:
    return {f"{epoch.detector}/{epoch.stage}/{k}": v for k, v in epoch.metrics.items()}
