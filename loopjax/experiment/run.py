"""One experiment from one config: embed, fit, score, evaluate, report; a killed run continues."""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from loopjax.audio.perturb import require_eval_extra
from loopjax.audio.sources.selection import Selection
from loopjax.audio.sources.source import open_source
from loopjax.config import DetectorConfig, ExperimentConfig, ReportConfig
from loopjax.detectors import detector_class
from loopjax.errors import UserError
from loopjax.evaluation.tables import Evaluation
from loopjax.experiment.curation import curate, find_reasons
from loopjax.experiment.evaluate import FittedRun, evaluate_fitted, threshold_rule
from loopjax.experiment.fit import check_params, fit_digest, fit_models, rows_digest
from loopjax.experiment.groups import cut_groups
from loopjax.experiment.interrupt import stoppable
from loopjax.experiment.labels import (
    LabelFile,
    join_labels,
    label_path,
    read_labels,
    require_labeled,
    tell_unmatched,
)
from loopjax.experiment.manifest import gone_if_refused, step
from loopjax.experiment.paper import reproduce
from loopjax.experiment.record import claim, note_missing_limits, read_record, require_run_or_empty
from loopjax.experiment.splits import Split, split_rows
from loopjax.io import locked
from loopjax.model import Model, load_model
from loopjax.report.extra import require_report_extra
from loopjax.report.lists import write_reasons
from loopjax.store.read import Embeddings
from loopjax.store.scores import SCORED_COLUMNS, Scores, score_table, write_scores
from loopjax.store.stream import StoredEmbeddings, open_embeddings
from loopjax.training.sinks import (
    Epoch,
    ProgressLines,
    open_sinks,
    read_epochs,
    reporting,
    require_sinks,
)

Log = Callable[[str], None]


@dataclass(frozen=True)
class RunResult:
    """What a finished run leaves for the caller to print.

    Attributes:
        scores: the ranking; None where the config asks for protocols, which rank nothing.
        evaluation: tables and headline.
        n_rejected: inputs that could not be embedded.
    """

    scores: Scores | None
    evaluation: Evaluation
    n_rejected: int


def run_experiment(
    config: ExperimentConfig,
    out: Path,
    *,
    restart: bool = False,
    log: Log,
    loggers: Sequence[str] = (),
) -> RunResult:
    """Runs an experiment into a folder, or continues one that was killed or had other settings.

    What is there and depends on nothing that has changed is used: embeddings, fitted models, and
    the embeddings of other encoders and of perturbed copies.

    Args:
        config: from `load_config`.
        out: run folder: run.json, embeddings/, models/, metrics.jsonl, scores.parquet,
            evaluation.json, figures/, report/index.html; for protocols, evaluation.json,
            figures/ and the finished fits.
        restart: discard what an earlier run wrote there.
        log: receives one line per step.
        loggers: further sinks of `metrics.jsonl`: "tensorboard" and "wandb".

    Raises:
        UserError: mistakes in the config or its inputs, or `out` holds embeddings of others.
        ModelCheckError: a detector collapsed.
        InterruptedRunError: SIGINT or SIGTERM; what was finished is saved.
    """
    from loopjax.report.page import write_report

    require_report_extra()
    if config.evaluate.robustness != "none":
        require_eval_extra()
    check_complete(config)
    require_run_or_empty(out)
    require_sinks(loggers)
    with stoppable(), gone_if_refused(out):
        label_file = check_labels(config, log)
        with locked(out):
            claim(out, config, restart)
            if config.evaluate.protocols:
                with step(out, "evaluate"):
                    return RunResult(None, reproduce(config, out, log), 0)
            with step(out, "embed"):
                embeddings, n_rejected = embed_or_read(config, out, log)
            labels = labels_of(config, label_file, embeddings)
            split = split_rows(embeddings, config.split, labels)
            with step(out, "fit"):
                models = fit_all(config, embeddings, split, out, log, loggers)
            fitted = FittedRun(config, models, embeddings, split, labels)
            scores = rank(fitted)
            with step(out, "score"):
                write_scores(scores, out / "scores.parquet", csv=out / "scores.csv")
            with step(out, "evaluate"):
                evaluation = evaluate_fitted(fitted, out, log)
            with step(out, "report"):
                store = config.data.embeddings or out / "embeddings"
                model = models[fitted.primary][0]
                found = find_reasons(model, scores, store, config.report.reasons)
                write_reasons(found, out)
                curated = curate(store, config.data.group_depth)
                log(f"report: {write_report(out, config=config.report, curated=curated)}")
    return RunResult(scores, evaluation, n_rejected)


def evaluate_run(run: Path, log: Log) -> Evaluation:
    """Evaluates a finished run folder again: evaluation.json and figures/ are written anew.

    Raises:
        UserError: no run there.
    """
    config = read_record(run).config
    with stoppable(), locked(run):
        if config.evaluate.protocols:
            with step(run, "evaluate"):
                return reproduce(config, run, log)
        embeddings = read_run_embeddings(config, run)
        labels = labels_of(config, check_labels(config, log), embeddings)
        split = split_rows(embeddings, config.split, labels)
        with step(run, "fit"):
            models = fit_all(config, embeddings, split, run, log)
        with step(run, "evaluate"):
            fitted = FittedRun(config, models, embeddings, split, labels)
            return evaluate_fitted(fitted, run, log)


def report_run(run: Path, config: ReportConfig | None = None) -> Path:
    """Writes the report of a run folder again and returns its file.

    Args:
        run: the folder.
        config: how it is drawn; None for what the run's own config says.

    Raises:
        UserError: no run there.
    """
    from loopjax.report.page import write_report

    record = read_record(run)
    data = record.config.data
    with locked(run), step(run, "report"):
        curated = curate(data.embeddings or run / "embeddings", data.group_depth)
        return write_report(run, config=config or record.config.report, curated=curated)


def check_complete(config: ExperimentConfig) -> None:
    """Refuses an experiment that lacks something, or says something that nothing would read.

    Raises:
        UserError: names the settings.
    """
    data, protocols = config.data, config.evaluate.protocols
    if not config.detectors:
        raise UserError(f"config {config.name!r} lists no detectors")
    for detector in config.detectors:
        check_params(detector)
    if protocols and not data.sets:
        raise UserError("evaluate.protocols needs data.sets: {name: embeddings file}")
    if data.sets and not protocols:
        raise UserError("data.sets is for evaluate.protocols, which is empty")
    if protocols and (data.sources or data.embeddings):
        raise UserError("evaluate.protocols reads data.sets; leave out data.sources and embeddings")
    if data.sources and data.embeddings is not None:
        raise UserError("give either data.sources or data.embeddings, not both")
    if not (data.sources or data.sets or data.embeddings):
        raise UserError("data.sources is empty: name files, folders, tfds:NAME or bundled:demo")
    if config.split.train_on == "normal" and not protocols and label_path(data) is None:
        raise UserError("split.train_on: normal needs labels; give data.labels")


def embed_or_read(
    config: ExperimentConfig, out: Path, log: Log
) -> tuple[Embeddings | StoredEmbeddings, int]:
    """The experiment's embeddings and how many inputs were rejected."""
    if config.data.embeddings is not None:
        embeddings = read_run_embeddings(config, out)
        return embeddings, len(embeddings.failures)
    from loopjax.embedding.chain import embed_corpus
    from loopjax.encoders.load import load_encoder

    encoder = load_encoder(config.embed.encoder, config.embed.precision)
    log(f"embedding {', '.join(config.data.sources)} with {encoder.id}")
    done = embed_corpus(config.data.sources, encoder, out / "embeddings", config.embed)
    note_missing_limits(out, done.missing_limits)
    embeddings = read_run_embeddings(config, out)
    return embeddings, len(embeddings.failures)


def read_run_embeddings(config: ExperimentConfig, out: Path) -> Embeddings | StoredEmbeddings:
    """The embeddings of a run that has embedded its sources, or the ones its config names."""
    found = open_embeddings(config.data.embeddings or out / "embeddings")
    return cut_groups(found, config.data.group_depth)


def check_labels(config: ExperimentConfig, log: Log) -> LabelFile | None:
    """Reads the label file, and joins it to the loops as far as they are known, before any work.

    Raises:
        UserError: see `read_labels` and `join_labels`.
    """
    path = label_path(config.data)
    if path is None:
        return None
    labels = read_labels(path, log)
    if config.data.sources and not config.data.sources[0].startswith("tfds:"):
        chosen = Selection(config.embed.include, config.embed.exclude)
        paths = [loop.path for loop in open_source(config.data.sources, chosen).loops()]
        tell_unmatched(labels, join_labels(labels, paths, config.data.sources), log)
    return labels


def labels_of(
    config: ExperimentConfig,
    labels: LabelFile | None,
    embeddings: Embeddings | StoredEmbeddings,
) -> np.ndarray | None:
    """Labels of the embedded loops, int [N]: 1 anomalous, 0 normal, -1 unknown."""
    if labels is None:
        return None
    paths = embeddings.columns(["path"])["path"].to_pylist()
    joined = join_labels(labels, paths, config.data.sources)
    require_labeled(labels, joined)
    return joined.values


def fit_all(
    config: ExperimentConfig,
    embeddings: Embeddings | StoredEmbeddings,
    split: Split,
    out: Path,
    log: Log,
    loggers: Sequence[str] = (),
) -> dict[str, list[Model]]:
    """Fits every detector with every seed; what was fitted on the same rows alike is loaded.

    Curves begin with those of what is loaded.
    """
    if split.n_alike:
        log(
            f"{split.n_alike} loops are equal or nearly equal to others (cosine {split.cosine:.6g} "
            "and above) and stay in one fold with them"
        )
    if split.n_moved:
        log(f"{split.n_moved} loops changed sides of the split, not to be parted from their like")
    store = config.data.embeddings or str((out / "embeddings").absolute())
    rows = rows_digest(embeddings, split)
    models: dict[str, dict[int, Model | None]] = {}
    for detector in config.detectors:
        varies = detector_class(detector.kind).depends_on_seed
        rule = threshold_rule(config.evaluate, detector)
        found = models[detector.name] = {}
        for seed in config.seeds if varies else config.seeds[:1]:
            digest = fit_digest(rows, detector, seed)
            found[seed] = _load_finished(_folder(out, detector, seed), digest, rule, log)
    told = read_epochs(out)
    missing = {name: _missing(name, found, told) for name, found in models.items()}
    unfitted = [detector for detector in config.detectors if missing[detector.name]]
    if unfitted:
        kept = [epoch for epoch in told if not {*epoch.seeds} & {*missing.get(epoch.detector, ())}]
        with open_sinks(loggers, out, kept) as sinks:
            for detector in unfitted:
                seeds = missing[detector.name]
                named = ", ".join(map(str, seeds))
                log(f"fitting {detector.name} (seed {named}) on {int(split.train.sum())} loops")
                report = reporting(detector.name, seeds, [*sinks, ProgressLines(log)])
                fitted = fit_models(
                    embeddings,
                    split.train,
                    detector,
                    seeds,
                    folds=split.folds,
                    threshold=threshold_rule(config.evaluate, detector),
                    embeddings_path=store,
                    extra={"on_epoch": report},
                )
                for seed, model in zip(seeds, fitted, strict=True):
                    model = replace(model, made_from=fit_digest(rows, detector, seed))
                    model.save(_folder(out, detector, seed))
                    models[detector.name][seed] = model
    return {name: [m for m in found.values() if m is not None] for name, found in models.items()}


def _missing(name: str, found: dict[int, Model | None], told: list[Epoch]) -> list[int]:
    """Seeds of a detector to train: those without a model, and those that trained with them.

    Seeds that train together have one curve, and their weights depend on the company by rounding:
    where a kill left some of their models, only all of them again give what they would have been.
    """
    missing = {seed for seed, model in found.items() if model is None}
    for epoch in told:
        if epoch.detector == name and missing & {*epoch.seeds}:
            missing |= {*epoch.seeds}
    return [seed for seed in found if seed in missing]


def _folder(out: Path, detector: DetectorConfig, seed: int) -> Path:
    return out / "models" / detector.name / f"seed-{seed}"


def _load_finished(
    folder: Path, digest: str, threshold: Callable[[np.ndarray], float], log: Log
) -> Model | None:
    """The model that an earlier run left; None where it has to be fitted (again)."""
    if not folder.exists():
        return None
    try:
        model = load_model(folder)
    except UserError as error:
        log(f"warning: {error}; it is fitted again")
        shutil.rmtree(folder)
        return None
    if model.made_from != digest:
        return None
    cut = threshold(model.detector.decision_scores_)
    if cut != model.detector.threshold_:
        model.detector.set_fitted({"threshold_": cut})
        model.save(folder)
    return model


def rank(run: FittedRun) -> Scores:
    """The primary detector's scores, with the other detectors' scores and the labels beside."""
    model, scored = run.models[run.primary][0], run.scored[run.primary][0]
    rows = run.embeddings.columns(SCORED_COLUMNS)
    columns = model.columns_of(rows["id"], scored)
    order = np.argsort(columns["rank"])
    table = score_table(rows, columns).take(order)
    # What the model calls new is, of its own corpus, what the split kept from it.
    said = ["held_out" if s == "new" else s for s in table["scored_as"].to_pylist()]
    table = table.set_column(table.column_names.index("scored_as"), "scored_as", pa.array(said))
    for name, (first, *_) in run.scores.items():
        table = table.append_column(f"score_{name}", pa.array(first[order]))
    if run.labels is not None:
        known = run.labels[order]
        table = table.append_column("is_labeled", pa.array(known == 1, mask=known < 0))
    return Scores(table, model.score_metadata())
