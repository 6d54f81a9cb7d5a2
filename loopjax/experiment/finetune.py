"""One fine-tuning from its configuration: before, training, the new encoder, after, tables."""

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import jax
import numpy as np

from loopjax import parallel
from loopjax.audio.loop import Failure
from loopjax.audio.sources.selection import Selection
from loopjax.audio.sources.source import Source, open_source
from loopjax.config import DataConfig, EmbedConfig, to_dict
from loopjax.config.finetuning import (
    FinetuneConfig,
    LoopsConfig,
    check_finetuning,
    read_finetuning,
)
from loopjax.embedding.chain import embed_corpus
from loopjax.encoders.encoder import HtsatEncoder
from loopjax.encoders.load import load_encoder, record_of
from loopjax.encoders.space import Precision
from loopjax.errors import UserError
from loopjax.evaluation.tables import Evaluation
from loopjax.experiment.before_after import compare_encoders
from loopjax.experiment.groups import cut_groups
from loopjax.experiment.labels import (
    LabelFile,
    join_labels,
    label_path,
    read_labels,
    require_labeled,
)
from loopjax.experiment.load import find_config, trainings
from loopjax.experiment.manifest import STORE, discard_files, gone_if_refused
from loopjax.finetuning.batches import BatchReader, Loops, list_loops
from loopjax.finetuning.export import export_encoder, with_corpus_statistics
from loopjax.finetuning.loop import (
    COLUMNS,
    OnStep,
    Trained,
    require_trainable,
    train,
    training_precision,
)
from loopjax.finetuning.objectives import Objective, make_objective
from loopjax.io import is_empty, locked, require_apart, write_json
from loopjax.store.read import Embeddings, read_embeddings
from loopjax.training.sinks import (
    METRICS_NAME,
    Sink,
    open_sinks,
    reporting,
    require_sinks,
)

ENCODER, STATES, RECORD = "encoder", "states", "finetune.json"
# Everything that a fine-tuning writes into its folder.
_STORES = ("before", "before-measured", "after", "teacher")
WRITTEN = (
    *(f"{ENCODER}/config.json", f"{ENCODER}/weights/*", f"{STATES}/*", RECORD),
    *(METRICS_NAME, "tb/events.out.tfevents.*", "wandb/*", ".*"),  # a kill leaves hidden names
    *(f"{store}/{name}" for store in _STORES for name in STORE),
    *(f"{store}.damaged/*" for store in _STORES),
)
CENTERED = ("mean-shifted", "one-class")

Log = Callable[[str], None]
OnMetrics = Callable[[int, dict[str, float]], None]


@dataclass(frozen=True)
class FinetuneResult:
    """What a fine-tuning leaves.

    Attributes:
        encoder: the folder of the tuned encoder, for `load_encoder` and `--encoder`.
        best_step: the step whose weights it holds.
        curve: float32 [steps, 5]: loss, spread, norm of the gradient, readable loops, loss of the
            held-out loops (NaN where it was not computed).
        evaluation: tables before and after.
        rejected: loops that could not be read.
    """

    encoder: Path
    best_step: int
    curve: np.ndarray
    evaluation: Evaluation
    rejected: list[Failure]


def finetune(
    config: FinetuneConfig | str | Path,
    out: str | Path | None = None,
    *,
    restart: bool = False,
    log: Log = lambda line: None,
    on_step: OnMetrics | None = None,
    loggers: Sequence[str] = (),
) -> FinetuneResult:
    """Trains an encoder further on one's own loops; a killed run of the same settings goes on.

    Args:
        config: settings, or the file that holds them.
        out: folder of the run: encoder/, embeddings before and after, finetune.json,
            metrics.jsonl (a line per step); default out/NAME. All processes of a run must see it.
        restart: discard what an earlier run wrote there.
        log: receives one line per stage.
        on_step: called with the number of finished steps and the metrics of the last one.
        loggers: further sinks of `metrics.jsonl`: "tensorboard" and "wandb".

    Raises:
        UserError: mistakes in the settings or their inputs, `out` holds something else or another
            run, or another process is at work there; with `restart`, files that no fine-tuning has
            written.
        ModelCheckError: the embeddings collapsed, or are no numbers.
        TooManyRejectedError: more rejected inputs than the settings allow.
        WriteError: the disk is full and the like; finished checkpoints stay.
        StoppedError: another process of the run met an error; finished checkpoints stay.
    """
    if not isinstance(config, FinetuneConfig):
        config = read_finetuning(find_config(config, trainings()))
    check_finetuning(config)
    training_precision(config)
    require_sinks(loggers)
    folder = Path("out") / config.name if out is None else Path(out)
    require_apart(folder, [*config.data.sources, *config.data.measure_on])
    with gone_if_refused(folder), contextlib.ExitStack() as stack:

        def take_over() -> None:
            _require_ours(folder)
            stack.enter_context(locked(folder))
            if restart:  # states/ go last: cut off in between, it can be done again
                discard_files(folder, WRITTEN, last=(f"{STATES}/*",))
            (folder / STATES).mkdir(exist_ok=True)

        parallel.first_process_does(take_over)
        return _finetune(config, folder, log, on_step, loggers)


def _finetune(
    config: FinetuneConfig,
    folder: Path,
    log: Log,
    on_step: OnMetrics | None,
    loggers: Sequence[str],
) -> FinetuneResult:
    first = parallel.process_slot()[0] == 0
    source = _open(config.data.sources, config.embed)
    parent = _load(config, "fp32")
    loops = list_loops(source, config.data, config.optimizer.batch_size)
    if config.input_statistics == "corpus":
        log("measuring the mel bands")
        parent = with_corpus_statistics(parent, source, config.embed, loops.train, config.seed)
    log(f"{len(loops.train)} loops train, {len(loops.held_out)} pick the best step")
    # What is wrong with the settings is told before hours of work.
    named = config.objective.teacher
    teacher = load_encoder(named, config.embed.precision) if named else None
    labels = _label_file(config, log) if config.detectors else None
    require_trainable(config, parent, loops)
    before = _before(config, parent, labels, folder, log)
    targets = {} if teacher is None else _targets(config, teacher, folder, log)
    objective = _objective(config, parent, loops, before.training, targets)
    started_s = time.monotonic()
    with _telling(config, folder, loggers, on_step) as tell:
        trained = train(
            config,
            parent,
            loops,
            objective,
            lambda slot: BatchReader(
                source, parent, config.embed, config.augment, loops, slot, targets, config.seed
            ),
            folder / STATES,
            tell,
        )
    duration_s = time.monotonic() - started_s
    record = {} if config.input_statistics == "corpus" else record_of(config.embed.encoder)
    parallel.first_process_does(
        lambda: export_encoder(folder / ENCODER, config, parent, record, trained, loops)
    )
    evaluation = Evaluation(())
    if before.measured is not None:
        after = _after(config, folder, log)
        if first:
            log("measuring before and after")
            evaluation = compare_encoders(
                before.measured, after, before.labels, config.detectors, config.seeds
            )
    if first:
        _write_record(folder, config, trained, evaluation, duration_s)
    parallel.wait_for_all()
    return FinetuneResult(
        folder / ENCODER, trained.best_step, trained.curve, evaluation, trained.rejected
    )


@contextlib.contextmanager
def _telling(
    config: FinetuneConfig, folder: Path, loggers: Sequence[str], on_step: OnMetrics | None
) -> Iterator[OnStep]:
    """Tells every step to the caller and, in the first process, to all sinks.

    The sinks of a run that goes on begin with the steps before.
    """
    first = parallel.process_slot()[0] == 0
    with contextlib.ExitStack() as stack:
        sinks: list[Sink] = []
        report = reporting(config.name, [config.seed], sinks)

        def tell(done: int, curve: np.ndarray) -> None:
            told = done - 1
            if first and not sinks:
                sinks.extend(stack.enter_context(open_sinks(loggers, folder)))
                told = 0
            for step in range(told, done):
                report(config.objective.kind, step, _known(curve[step]))
            if on_step is not None:
                on_step(done, _known(curve[-1]))

        yield tell


def _known(row: np.ndarray) -> dict[str, float]:
    """What was computed in a step of the curve, by name."""
    return {name: float(v) for name, v in zip(COLUMNS, row, strict=True) if not np.isnan(v)}


def _require_ours(folder: Path) -> None:
    """Refuses a folder of other things; states/ is the first thing that a fine-tuning makes."""
    ours = (folder / STATES).is_dir() or (folder / RECORD).is_file()
    if folder.is_dir() and not ours and not is_empty(folder):
        raise UserError(f"{folder} holds something else than a fine-tuning; choose another -o")


def _load(
    config: FinetuneConfig, precision: Precision | Literal["auto"] | None = None
) -> HtsatEncoder:
    """The encoder to start from; for training in float32, for embedding as the settings say."""
    parent = load_encoder(config.embed.encoder, precision or config.embed.precision)
    if type(parent) is not HtsatEncoder:
        raise UserError(f"embed.encoder: {config.embed.encoder} has no weights to train")
    return parent


def _open(sources: Sequence[str], embed: EmbedConfig) -> Source:
    return open_source(sources, Selection(embed.include, embed.exclude))


def _embed(
    sources: Sequence[str], encoder: HtsatEncoder, config: FinetuneConfig, store: Path
) -> Embeddings:
    embed_corpus(sources, encoder, store, config.embed)
    parallel.wait_for_all()
    return read_embeddings(store)


@dataclass(frozen=True)
class _Before:
    """Embeddings by the parent, where something needs them.

    Attributes:
        training: of the loops that train.
        measured: of those that the tables are of.
        labels: int [N] beside `measured`.
    """

    training: Embeddings | None = None
    measured: Embeddings | None = None
    labels: np.ndarray | None = None


def _before(
    config: FinetuneConfig,
    parent: HtsatEncoder,
    labels: LabelFile | None,
    folder: Path,
    log: Log,
) -> _Before:
    elsewhere, training, measured = config.data.measure_on, None, None
    own = parent if config.input_statistics == "corpus" else _load(config)
    if config.objective.kind in CENTERED or (config.detectors and not elsewhere):
        log(f"embedding with {parent.id}")
        training = measured = _embed(config.data.sources, own, config, folder / "before")
    if not config.detectors:
        return _Before(training)
    if elsewhere:
        log(f"embedding data.measure_on with {parent.id}")
        measured = _embed(elsewhere, own, config, folder / "before-measured")
    assert measured is not None
    measured = _grouped(measured, config.data)
    if labels is None:
        return _Before(training, measured)
    paths = measured.table["path"].to_pylist()
    joined = join_labels(labels, paths, elsewhere or config.data.sources)
    require_labeled(labels, joined)
    return _Before(training, measured, joined.values)


def _label_file(config: FinetuneConfig, log: Log) -> LabelFile | None:
    sources = config.data.measure_on or config.data.sources
    path = label_path(DataConfig(sources=tuple(sources), labels=config.data.labels))
    return None if path is None else read_labels(path, log)


def _targets(
    config: FinetuneConfig, teacher: HtsatEncoder, folder: Path, log: Log
) -> dict[str, np.ndarray]:
    """What loops are to follow: sha256 -> the teacher's embedding."""
    log(f"embedding with {teacher.id}, the teacher")
    found = _embed(config.data.sources, teacher, config, folder / "teacher")
    return dict(zip(found.table["sha256"].to_pylist(), found.matrix, strict=True))


def _objective(
    config: FinetuneConfig,
    parent: HtsatEncoder,
    loops: Loops,
    training: Embeddings | None,
    targets: dict[str, np.ndarray],
) -> Objective:
    start = None
    if config.objective.kind in CENTERED and training is not None:
        # Sorted, so that sums do not depend on the order in which a store was filled.
        order = np.argsort(training.table["key"].to_numpy(zero_copy_only=False).astype(str))
        start = training.matrix[order]
    return make_objective(
        config.objective,
        parent.embedding_dim,
        config.seed,
        start=start,
        n_groups=len(loops.groups),
        target_width=len(next(iter(targets.values()))) if targets else 0,
    )


def _after(config: FinetuneConfig, folder: Path, log: Log) -> Embeddings:
    tuned = load_encoder(folder / ENCODER, config.embed.precision)
    log(f"embedding with {tuned.id}")
    return _embed(config.data.measure_on or config.data.sources, tuned, config, folder / "after")


def _grouped(found: Embeddings, data: LoopsConfig) -> Embeddings:
    """Embeddings with the groups that the settings name.

    Raises:
        UserError: the measured loops have no such column.
    """
    if data.group_column is None:
        return cut_groups(found, data.group_depth)
    if data.group_column not in found.table.column_names:
        raise UserError(f"data.group_column: no loop of measure_on has {data.group_column!r}")
    return found.replacing("group", found.table[data.group_column])


def _write_record(
    folder: Path,
    config: FinetuneConfig,
    trained: Trained,
    evaluation: Evaluation,
    duration_s: float,
) -> None:
    """What was done and found, beside the encoder."""
    curve = [
        {name: None if np.isnan(value) else float(value) for name, value in zip(COLUMNS, row)}  # noqa: B905
        for row in trained.curve
    ]
    device = f"{jax.device_count()} x {jax.devices()[0].device_kind}"
    write_json(
        folder / RECORD,
        {
            "config": to_dict(config),
            "best_step": trained.best_step,
            "device": device,
            "last_part_s": round(duration_s, 1),
            "rejected": [
                {"path": failure.path, "reason": failure.reason, "message": failure.message}
                for failure in trained.rejected
            ],
            "evaluation": evaluation.to_json(),
            "curve": curve,
        },
    )
