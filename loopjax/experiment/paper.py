"""The paper's experiment on given embeddings.

Labeled protocols and unlabeled measures, several seeds, beside the published and independently
reproduced values of "Learning Normal Patterns in Musical Loops" (arXiv 2505.23784).
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from loopjax.bundled import folder
from loopjax.config import DetectorConfig, ExperimentConfig
from loopjax.errors import ModelCheckError, UserError
from loopjax.evaluation.paired import compare_paired
from loopjax.evaluation.published import (
    Measurement,
    PublishedReference,
    compare_with_published,
    read_published,
)
from loopjax.evaluation.tables import Estimate, Evaluation, Row, Table
from loopjax.experiment.evaluate import Log
from loopjax.experiment.figures import draw_run
from loopjax.experiment.fit import check_params, fit_models
from loopjax.experiment.gain import gain_rows
from loopjax.experiment.groups import cut_groups
from loopjax.experiment.protocols import ProtocolRow, run_protocols
from loopjax.experiment.splits import split_rows
from loopjax.io import write_json
from loopjax.model import Model
from loopjax.report.extra import require_report_extra
from loopjax.store.read import Embeddings, read_embeddings

HEADS = ("deep-svdd", "sphere-svdd")
# Fields of a row and how tables and published references name them.
LABELED_FIELDS = {"auroc": "auroc", "pauc": "pauc_0.1", "average_precision": "average_precision"}
UNLABELED_FIELDS = {
    "threshold": "threshold_q95",
    "median": "median",
    "gap_ratio": "gap_ratio",
    "robust_z_top5": "robust_z_top5",
    "dynamic_range_log10": "dynamic_range_log10",
    "fraction_above_threshold": "fraction_above_threshold",
}


def reproduce(config: ExperimentConfig, out: Path, log: Log) -> Evaluation:
    """Runs the protocols of a config on each of its embedding sets.

    Args:
        config: with `data.sets` (name -> embedding file), detectors, seeds, `evaluate.protocols`
            and optionally `evaluate.reference`.
        out: folder for evaluation.json, figures/ and the cache of finished fits.
        log: receives one line per finished group of fits.

    Returns:
        What evaluation.json holds.

    Raises:
        UserError: no sets, a file without folder names, mistakes in the config.
    """
    if not config.data.sets:
        raise UserError("evaluate.protocols needs data.sets: {name: embeddings file}")
    require_report_extra()
    for detector in config.detectors:
        check_params(detector)
    published = _published(config.evaluate.reference)
    for set_name, path in config.data.sets.items():
        if not Path(path).exists():
            raise UserError(
                f"data.sets.{set_name}: {path} does not exist; the head of the experiment's file "
                f"says where it comes from; name another place by --set data.sets.{set_name}=PATH"
            )
    tables: list[Table] = []
    measured: list[Measurement] = []
    rows_by_set: dict[str, list[ProtocolRow]] = {}
    for set_name, path in config.data.sets.items():
        embeddings = cut_groups(read_embeddings(path), config.data.group_depth)
        groups = _folders(embeddings, path)
        log(f"{set_name}: {len(groups)} loops in {len(set(groups))} folders")
        rows = run_protocols(
            embeddings.matrix,
            groups,
            config.detectors,
            config.evaluate.protocols,
            config.seeds,
            cache=out / f"protocols-{set_name}.jsonl",
            log=lambda line, name=set_name: log(f"{name}: {line}"),
        )
        rows_by_set[set_name] = rows
        tables += _labeled_tables(rows, set_name, config.detectors)
        tables += _unlabeled_table(rows, set_name)
        tables += _collapsed(rows, set_name)
        measured += _measurements(rows, set_name)
        _draw(config, embeddings, set_name, out, log)
    tables[:0] = [
        *_means(measured, config.detectors),
        *_heads_beside_cheap(rows_by_set, config.detectors),
    ]
    if published is not None:
        tables.insert(0, compare_with_published(measured, published))
    evaluation = Evaluation(tuple(tables))
    write_json(out / "evaluation.json", evaluation.to_json())
    return evaluation


def _published(reference: str | None) -> PublishedReference | None:
    """The published values that a config names, relative to here or to the bundled files."""
    if reference is None:
        return None
    bundled = folder("configs").parent / reference
    return read_published(Path(reference) if Path(reference).exists() else bundled)


def _folders(embeddings: Embeddings, path: str) -> list[str]:
    if "group" not in embeddings.table.column_names:
        raise UserError(f"{path} names no folders (`group` or `family`), which the protocols need")
    return [group or "" for group in embeddings.table["group"].to_pylist()]


def _finished(rows: Sequence[ProtocolRow], protocol: str) -> list[ProtocolRow]:
    return [row for row in rows if row.protocol == protocol and not row.collapsed]


def _labeled_tables(
    rows: Sequence[ProtocolRow], set_name: str, detectors: Sequence[DetectorConfig]
) -> Iterator[Table]:
    """Per protocol: one row per method, AUROC by folder and on average."""
    for protocol in _labeled(rows):
        own = _finished(rows, protocol)
        folders = sorted({row.folder for row in own})
        lines: list[tuple[float, Row]] = []
        for method in dict.fromkeys(row.method for row in own):
            mean = _over_seeds(_mean_by_seed(own, method, "auroc"))
            line: Row = {"detector": method, "mean": mean}
            for field in ("pauc", "average_precision"):
                by_seed = _mean_by_seed(own, method, field)
                line[LABELED_FIELDS[field]] = float(np.mean(by_seed))
            by_folder = _mean_by_folder(own, method)
            line |= {folder: by_folder.get(folder) for folder in folders}
            lines.append((mean.value, line))
        lines.sort(key=lambda pair: -pair[0])
        ordered = [line for _, line in lines]
        role = "normal" if protocol == "P1" else "anomalous"
        percent = protocol.partition("-")[2]
        hidden = f", {percent} % of it in training" if percent else ""
        yield Table(
            f"{protocol} on {set_name}: one folder {role}{hidden}",
            f"AUROC by the {role} folder; mean over folders with its range over seeds. "
            f"{_copies_kept_together(own)}",
            (*ordered, *gain_rows(ordered, detectors)),
        )


def _copies_kept_together(rows: Sequence[ProtocolRow]) -> str:
    moved = max((row.n_moved for row in rows), default=0)
    if not moved:
        return "No loop has a copy on the other side of a split."
    return (
        f"Copies stay on one side: for that, up to {moved} loops of a split were moved or left out."
    )


def _means(measured: Sequence[Measurement], detectors: Sequence[DetectorConfig]) -> Iterator[Table]:
    """One row per detector: its mean AUROC on every set and protocol."""
    rows: dict[str, Row] = {}
    for own in measured:
        if own.measure.startswith("auroc_"):
            row = rows.setdefault(own.detector, {"detector": own.detector})
            row[f"{own.embeddings} {own.measure.removeprefix('auroc_')}"] = own.value
    if rows:
        note = "Mean over folders with its range over seeds."
        ordered = tuple(rows.values())
        yield Table("AUROC by detector", note, (*ordered, *gain_rows(ordered, detectors)))


def _heads_beside_cheap(
    rows_by_set: Mapping[str, Sequence[ProtocolRow]], detectors: Sequence[DetectorConfig]
) -> Iterator[Table]:
    """Per head, set and protocol: every cheap method on the same folders and seeds."""
    heads = [d.name for d in detectors if d.kind in HEADS]
    rows: list[Row] = []
    for set_name, found in rows_by_set.items():
        for protocol in _labeled(found):
            own = _finished(found, protocol)
            by_method = {d.name: _by_folder_and_seed(own, d.name) for d in detectors}
            for head in heads:
                for other in (name for name in by_method if name not in heads):
                    paired = compare_paired(by_method[head], by_method[other])
                    if paired is not None:
                        rows.append({
                            "embeddings": set_name,
                            "protocol": protocol,
                            "head": head,
                            "against": other,
                            "difference": paired.difference,
                            "folders_won": f"{paired.groups_won} of {paired.n_groups}",
                            "p_folders": paired.p_groups,
                            "p_folders_seeds": paired.p_groups_seeds,
                        })  # fmt: skip
    if rows:
        note = (
            "AUROC, mean over folders of the paired difference with its bootstrap interval over "
            "folders; Wilcoxon over folders, and over folders and seeds (which are not "
            "independent). sphere-svdd against local-knn is trained against untrained."
        )
        yield Table("Deep SVDD beside the cheap methods", note, tuple(rows))


def _labeled(rows: Sequence[ProtocolRow]) -> list[str]:
    """The protocols of rows that have a finished labeled test."""
    return list(dict.fromkeys(row.protocol for row in rows if row.auroc is not None))


def _by_folder_and_seed(rows: Sequence[ProtocolRow], method: str) -> dict[tuple[str, int], float]:
    return {
        (row.folder, row.seed): row.auroc
        for row in rows
        if row.method == method and row.auroc is not None
    }


def _unlabeled_table(rows: Sequence[ProtocolRow], set_name: str) -> Iterator[Table]:
    own = _finished(rows, "unlabeled")
    lines: list[Row] = []
    for method in dict.fromkeys(row.method for row in own):
        line: Row = {"detector": method}
        for field in UNLABELED_FIELDS:
            values = _values(own, method, field)
            if values:
                line[field] = _over_seeds(values)
        lines.append(line)
    if lines:
        note = "Mean and range over seeds. Scale-dependent: compare within one detector only."
        yield Table(f"Without labels, {set_name}", note, tuple(lines))


def _collapsed(rows: Sequence[ProtocolRow], set_name: str) -> Iterator[Table]:
    lines: list[Row] = [
        {
            "method": row.method,
            "protocol": row.protocol,
            "folder": row.folder,
            "seed": row.seed,
            "collapsed": row.collapsed,
        }
        for row in rows
        if row.collapsed
    ]
    if lines:
        note = "Fits that failed the collapse guard; they count in no mean above."
        yield Table(f"Collapsed heads, {set_name}", note, tuple(lines))


def _measurements(rows: Sequence[ProtocolRow], set_name: str) -> Iterator[Measurement]:
    """Our values under the names of the published reference."""
    for method in dict.fromkeys(row.method for row in rows):
        found = {
            f"auroc_{protocol}": _mean_by_seed(_finished(rows, protocol), method, "auroc")
            for protocol in _labeled(rows)
        }
        for field, name in UNLABELED_FIELDS.items():
            found[name] = _values(_finished(rows, "unlabeled"), method, field)
        for measure, values in found.items():
            if values:
                value = _over_seeds(values)
                yield Measurement(measure, set_name, method, value, len(values))


def _over_seeds(values: Sequence[float]) -> Estimate:
    """Mean and range."""
    return Estimate(float(np.mean(values)), min(values), max(values))


def _mean_by_seed(rows: Sequence[ProtocolRow], method: str, field: str) -> list[float]:
    seeds = sorted({row.seed for row in rows if row.method == method})
    by_seed = (_values([row for row in rows if row.seed == s], method, field) for s in seeds)
    return [float(np.mean(values)) for values in by_seed]


def _mean_by_folder(rows: Sequence[ProtocolRow], method: str) -> dict[str, float]:
    folders = sorted({row.folder for row in rows if row.method == method})
    by_folder = {f: _values([r for r in rows if r.folder == f], method, "auroc") for f in folders}
    return {folder: float(np.mean(values)) for folder, values in by_folder.items()}


def _values(rows: Sequence[ProtocolRow], method: str, field: str) -> list[float]:
    found = (getattr(row, field) for row in rows if row.method == method)
    return [float(value) for value in found if value is not None]


def _draw(
    config: ExperimentConfig, embeddings: Embeddings, set_name: str, out: Path, log: Log
) -> None:
    """The paper's figures: every detector fitted once on 80 % of the loops."""
    train = split_rows(embeddings, config.split).train
    models: dict[str, list[Model]] = {}
    for detector in _drawn(config.detectors):
        log(f"{set_name}: fitting {detector.name} for the figures")
        try:
            models[detector.name] = fit_models(embeddings, train, detector, config.seeds[:1])
        except ModelCheckError as error:
            log(f"{set_name}: {detector.name} is left out of the figures: {error}")
    scores = {
        name: [model.detector.decision_function(embeddings.matrix) for model in seeds]
        for name, seeds in models.items()
    }
    draw_run(models, scores, embeddings, train, None, out / "figures", prefix=f"{set_name}-")


def _drawn(detectors: Iterable[DetectorConfig]) -> list[DetectorConfig]:
    """The paper's own comparison, or everything where a config has none of it."""
    detectors = list(detectors)
    paper = ("standard", "residual", "isolation-forest", "pca")
    return [d for d in detectors if d.name in paper] or detectors
