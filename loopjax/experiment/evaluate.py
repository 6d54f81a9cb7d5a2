"""Evaluates a run: tables from its fitted detectors, and every detector on other encoders.

Figures and robustness curves are made here from what `report` and `robustness` return, so that one
call leaves the whole evaluation in the run folder.
"""

import dataclasses
import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from loopjax.audio.perturb import require_eval_extra
from loopjax.config import DetectorConfig, EvaluateConfig, ExperimentConfig
from loopjax.evaluation.conformal import discoveries
from loopjax.evaluation.metrics import group_rows, labeled_metrics
from loopjax.evaluation.separation import separation
from loopjax.evaluation.statistics import seed_interval, welch_tests
from loopjax.evaluation.tables import Evaluation, Row, Table
from loopjax.evaluation.thresholds import score_threshold
from loopjax.experiment.figures import draw_curves, draw_run
from loopjax.experiment.fit import fit_models
from loopjax.experiment.gain import gain_rows
from loopjax.experiment.splits import Split
from loopjax.io import write_json
from loopjax.model import Model, ScoredRows, rows_of
from loopjax.report.extra import require_report_extra
from loopjax.store.columns import places_of
from loopjax.store.read import Embeddings
from loopjax.store.stream import StoredEmbeddings, open_embeddings

Log = Callable[[str], None]
SEPARATION_COLUMNS = (
    "median",
    "gap_ratio",
    "robust_z_top5",
    "dynamic_range_log10",
    "ks_train_held_out",
)
# Columns of the table of detectors that depend on each score's unit or on its own threshold.
OWN_UNITS = ("threshold", "flagged", "flagged_held_out")


@dataclass(frozen=True)
class FittedRun:
    """A run whose detectors are fitted.

    Attributes:
        config: the experiment.
        models: detector name -> one model per seed.
        embeddings: all rows.
        split: which rows the detectors were fitted on, and in which folds they were scored.
        labels: int [N], 1 anomaly, 0 normal, -1 unknown; None without labels.
    """

    config: ExperimentConfig
    models: Mapping[str, list[Model]]
    embeddings: Embeddings | StoredEmbeddings
    split: Split
    labels: np.ndarray | None

    @cached_property
    def scored(self) -> dict[str, list[ScoredRows]]:
        """Detector name -> all rows scored unseen, per seed."""
        return {
            name: [model.score_rows(rows_of(self.embeddings)) for model in seeds]
            for name, seeds in self.models.items()
        }

    @cached_property
    def scores(self) -> dict[str, list[np.ndarray]]:
        """Detector name -> one row of scores [N] per seed."""
        return {name: [rows.scores for rows in seeds] for name, seeds in self.scored.items()}

    @cached_property
    def measured(self) -> np.ndarray:
        """Rows that labeled metrics are computed on, bool [N]: no score is of a row's own fit."""
        if self.labels is None:
            return np.zeros(len(self.split.train), bool)
        return self.labels >= 0

    @property
    def primary(self) -> str:
        """The detector that ranks the report."""
        return self.config.primary or self.config.detectors[0].name


def evaluate_fitted(run: FittedRun, out: Path, log: Log) -> Evaluation:
    """Writes evaluation.json and figures/ of a run, with robustness curves if its config asks.

    Args:
        run: what to evaluate.
        out: run folder.
        log: receives one line per step.

    Raises:
        UserError: the extra [report] is missing; for robustness curves also too few held-out
            normal loops, or the extra [eval] missing.
    """
    require_report_extra()
    if run.config.evaluate.robustness != "none":
        require_eval_extra()
    log("evaluating")
    evaluation = evaluation_of(run, out / "compare", log)
    draw_run(run.models, run.scores, run.embeddings, run.split.train, run.labels, out / "figures")
    write_json(out / "evaluation.json", evaluation.to_json())
    if run.config.evaluate.robustness == "none":
        return evaluation
    # Takes minutes and may fail: the tables above are safe by now.
    evaluation = Evaluation((*_robustness(run, out, log), *evaluation.tables), evaluation.headline)
    write_json(out / "evaluation.json", evaluation.to_json())
    return evaluation


def evaluation_of(run: FittedRun, compare: Path, log: Log) -> Evaluation:
    """The tables and the headline of a run.

    Args:
        run: what to evaluate.
        compare: folder for the embeddings of the encoders to compare with.
        log: receives one line per encoder.
    """
    detectors = _detectors(run)
    tables = [detectors]
    if run.labels is not None and run.config.compare_encoders:
        tables.append(_encoders(run, run.labels, compare, log))
    tables.append(_separation(run))
    tables += _groups(run)
    if len(run.models) > 1:
        tables.append(_tests(run))
    headline = {}
    if run.labels is not None:
        own = run.scores[run.primary][0][run.measured]
        found = labeled_metrics(run.labels[run.measured], own, bootstrap=0)
        headline["AUROC"] = found.auroc.value
    return Evaluation(tuple(tables), headline)


def _robustness(run: FittedRun, out: Path, log: Log) -> tuple[Table, ...]:
    """Robustness curves of held-out normal loops: robustness.json, their figure, their tables."""
    from loopjax.encoders.load import load_encoder
    from loopjax.experiment.robustness import measure_robustness

    unseen = ~run.split.train
    normal = unseen if run.labels is None else unseen & (run.labels == 0)
    curves = measure_robustness(
        run.embeddings.only(normal).columns(["id", "path_bytes", "group"]),
        {name: [model.detector for model in seeds] for name, seeds in run.models.items()},
        load_encoder(run.config.embed.encoder, run.config.embed.precision),
        out / "robustness",
        options=run.config.embed,
        quick=run.config.evaluate.robustness == "quick",
        log=log,
    )
    points = [dataclasses.asdict(point) for point in curves.points]
    write_json(out / "robustness.json", points, allow_nan=False)
    draw_curves(curves.points, out / "figures" / "robustness.svg")
    return curves.tables


def threshold_rule(
    settings: EvaluateConfig, detector: DetectorConfig
) -> Callable[[np.ndarray], float]:
    """How a detector's threshold follows from the scores [N] of rows it has not seen.

    A detector whose parameters give `contamination` keeps to that.
    """
    contamination = detector.params.get("contamination")
    if isinstance(contamination, float):
        return lambda scores: score_threshold(scores, quantile=1 - contamination)
    return lambda scores: score_threshold(
        scores,
        settings.threshold,
        quantile=settings.quantile,
        sigma=settings.sigma,
        calibration_scores=scores,
        target_fpr=settings.target_fpr,
    )


def _flagged_held_out(run: FittedRun, name: str) -> float:
    """Fraction of normal rows above a threshold that was set without them.

    Of the held-out rows; where there are none, of every fold by the threshold of the others.
    """
    scores, split = run.scores[name][0], run.split
    if split.held_out.any():
        return float(np.mean(scores[split.held_out] > run.models[name][0].detector.threshold_))
    config = next(d for d in run.config.detectors if d.name == name)
    rule = threshold_rule(run.config.evaluate, config)
    n_flagged = 0
    for fold in np.unique(split.folds[split.train]):
        own = split.train & (split.folds == fold)
        n_flagged += int(np.sum(scores[own] > rule(scores[split.train & ~own])))
    return n_flagged / int(split.train.sum())


def _detectors(run: FittedRun) -> Table:
    settings = run.config.evaluate
    rows = []
    for name, seeds in run.scores.items():
        cut = run.models[name][0].detector.threshold_
        row: Row = {"detector": name, "seeds": len(seeds), "threshold": cut}
        row["flagged"] = float(np.mean(seeds[0][run.split.train] > cut))
        row["flagged_held_out"] = _flagged_held_out(run, name)
        row["discoveries"] = int(discoveries(run.scored[name][0].p_values, settings.fdr).sum())
        if run.labels is not None:
            truth = run.labels[run.measured]
            row |= _labeled_cells(truth, [s[run.measured] for s in seeds], settings)
        rows.append(row)
    measured = [{k: v for k, v in row.items() if k not in OWN_UNITS} for row in rows]
    rows += gain_rows(measured, run.config.detectors)
    where = "of the held-out loops" if run.split.held_out.any() else "of each fold by the others"
    note = (
        f"No loop is scored by a detector that was fitted on it. Threshold: {settings.threshold}; "
        f"flagged: the fraction of fitted loops above it; flagged held out: {where}. Discoveries: "
        f"loops that stand out together at a false-discovery rate of {settings.fdr:g}; a corpus "
        "that calibrates itself can have none."
    )
    if run.labels is not None:
        note += (
            " AUROC, pAUC up to a false-positive rate of 0.1 and average precision with bootstrap "
            f"intervals, first seed, on {int(run.measured.sum())} labeled loops."
        )
    return Table("Detectors", note, tuple(rows))


def _labeled_cells(labels: np.ndarray, seeds: list[np.ndarray], settings: EvaluateConfig) -> Row:
    row = labeled_metrics(labels, seeds[0], bootstrap=settings.bootstrap).cells()
    if len(seeds) > 1:
        spread = seed_interval(
            [labeled_metrics(labels, scores, bootstrap=0).auroc.value for scores in seeds]
        )
        row |= {"auroc_seed_mean": spread.mean, "auroc_seed_sd": spread.sd}
    return row


def _folder_name(encoder: str) -> str:
    """A folder for an encoder that may be named by a path, which must not lead elsewhere."""
    if re.fullmatch(r"\w[\w.-]*", encoder):
        return encoder
    digest = hashlib.sha256(encoder.encode("utf-8", "surrogatepass")).hexdigest()
    readable = re.sub(r"[^\w.-]", "-", encoder).lstrip(".-")
    return f"{readable}-{digest[:8]}"


def _encoders(run: FittedRun, labels: np.ndarray, compare: Path, log: Log) -> Table:
    """AUROC of every detector on the run's encoder and on the encoders to compare with."""
    from loopjax.embedding.chain import embed_corpus
    from loopjax.encoders.load import load_encoder

    config, measured = run.config, run.measured
    own = {name: seeds[0] for name, seeds in run.scores.items()}
    rows = [_encoder_row(config.embed.encoder, labels, measured, own)]
    ids = run.embeddings.columns(["id"])["id"]
    for name in config.compare_encoders:
        log(f"comparing with {name}")
        encoder = load_encoder(name, config.embed.precision)
        store = compare / _folder_name(name)
        embed_corpus(config.data.sources, encoder, store, config.embed)
        other = open_embeddings(store)
        place = places_of(other.columns(["id"])["id"], ids)  # null where this run has none
        other = other.only(np.asarray(place.is_valid()))
        place = np.asarray(place.drop_null())
        found = {}
        for detector in config.detectors:
            (model,) = fit_models(
                other,
                run.split.train[place],
                detector,
                config.seeds[:1],
                folds=run.split.folds[place],
            )
            found[detector.name] = model.score_rows(rows_of(other)).scores
        rows.append(_encoder_row(name, labels[place], measured[place], found))
    note = "AUROC of each detector on embeddings of other encoders, same loops and split."
    return Table("Encoders", note, tuple(rows))


def _encoder_row(
    name: str, labels: np.ndarray, measured: np.ndarray, scores: Mapping[str, np.ndarray]
) -> Row:
    row: Row = {"encoder": name}
    for detector, values in scores.items():
        found = labeled_metrics(labels[measured], values[measured], bootstrap=0)
        row[detector] = found.auroc.value
    return row


def _separation(run: FittedRun) -> Table:
    rows = []
    for name, seeds in run.models.items():
        scores = run.scores[name][0]
        found = separation(
            scores[run.split.train],
            scores[run.split.held_out] if run.split.held_out.any() else None,
            threshold=seeds[0].detector.threshold_,
        )
        row: Row = {"detector": name}
        rows.append(row | {key: getattr(found, key) for key in SEPARATION_COLUMNS})
    note = (
        "Without labels, on the fitted loops. These numbers depend on each score's scale: compare "
        "them within one detector only."
    )
    return Table("Separation", note, tuple(rows))


def _groups(run: FittedRun) -> list[Table]:
    table = run.embeddings.columns(["group"])
    if "group" not in table.column_names:
        return []
    groups = [g or "" for g in table["group"].to_pylist()]
    if len(set(groups)) < 2:
        return []
    truth = None if run.labels is None or (run.labels < 0).any() else run.labels
    threshold = run.models[run.primary][0].detector.threshold_
    rows = group_rows(groups, run.scores[run.primary][0], threshold, truth)
    return [Table("Groups", f"Scores of {run.primary} by folder.", rows)]


def _tests(run: FittedRun) -> Table:
    train, held_out = run.split.train, run.split.held_out
    others = held_out if held_out.sum() > 1 else train
    tested = {name: seeds[0][others] for name, seeds in run.scores.items()}
    reference = {name: seeds[0][train] for name, seeds in run.scores.items()}
    rows = [
        {key: value for key, value in dataclasses.asdict(test).items() if value is not None}
        for test in welch_tests(tested, reference)
    ]
    note = (
        "Pairs of detectors on normal loops, Holm-corrected. Raw scores have different units; "
        "the log and percentile scales do not."
    )
    return Table("Welch tests", note, tuple(rows))
