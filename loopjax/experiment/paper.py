"""The paper's experiment on given embeddings.

Labeled protocols and unlabeled measures, several seeds, beside the published and independently
reproduced values.
"""

import dataclasses
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from loopjax.config import DetectorConfig, ExperimentConfig
from loopjax.errors import ModelCheckError, UserError
from loopjax.evaluation.statistics import compare_with_published
from loopjax.experiment.evaluate import draw
from loopjax.experiment.protocols import run_protocols
from loopjax.io import write_json
from loopjax.model import check_params, fit_models, split_rows
from loopjax.store.read import Embeddings, read_embeddings

LABELED = ("P1", "P3")
UNLABELED = ("threshold", "median", "gap_ratio", "robust_z_top5", "dynamic_range_log10")
PUBLISHED_NAME = {"threshold": "threshold_q95"}
DEEP = "deep-svdd"
Log = Callable[[str], None]
Row = dict[str, Any]


def reproduce(config: ExperimentConfig, out: Path, log: Log) -> dict[str, Any]:
    """Runs the protocols of a config on each of its embedding sets.

    Args:
        config: with `data.sets` (name -> embedding file), detectors, seeds, `evaluate.protocols`
            and optionally `evaluate.reference`.
        out: folder for evaluation.json, figures/ and the cache of finished fits.
        log: receives one line per finished group of fits.

    Returns:
        {"headline", "tables"} as written to evaluation.json.

    Raises:
        UserError: no sets, a file without folder names, mistakes in the config.
    """
    if not config.data.sets:
        raise UserError("evaluate.protocols needs data.sets: {name: embeddings file}")
    for detector in config.detectors:
        check_params(detector)
    methods = {d.name: dataclasses.asdict(d) for d in config.detectors}
    tables: list[dict[str, Any]] = []
    measured: list[Row] = []
    labeled_rows: dict[str, list[Row]] = {}
    for set_name, path in config.data.sets.items():
        embeddings = read_embeddings(path)
        groups = _folders(embeddings, path)
        log(f"{set_name}: {len(groups)} loops in {len(set(groups))} folders")
        rows = run_protocols(
            embeddings.matrix,
            groups,
            methods,
            config.evaluate.protocols,
            config.seeds,
            cache=out / f"protocols-{set_name}.jsonl",
            log=lambda line, name=set_name: log(f"{name}: {line}"),
        )
        labeled_rows[set_name] = rows
        tables += list(_labeled_tables(rows, set_name))
        tables += list(_unlabeled_table(rows, set_name))
        tables += list(_collapsed(rows, set_name))
        measured += _measures(rows, set_name)
        _figures(config, embeddings, set_name, out, log)
    kinds = {d.name: d.kind for d in config.detectors}
    tables[:0] = [*_means(measured), *_losses(labeled_rows, kinds)]
    if config.evaluate.reference is not None:
        tables.insert(0, _published(measured, Path(config.evaluate.reference)))
    evaluation = {"headline": {}, "tables": tables}
    write_json(out / "evaluation.json", evaluation)
    return evaluation


def _folders(embeddings: Embeddings, path: str) -> list[str]:
    if "group" not in embeddings.table.column_names:
        raise UserError(f"{path} names no folders (`group` or `family`), which the protocols need")
    return [group or "" for group in embeddings.table["group"].to_pylist()]


def _labeled_tables(rows: list[Row], set_name: str) -> Iterable[dict[str, Any]]:
    """Per protocol: one row per method, AUROC by folder and on average."""
    for protocol in LABELED:
        own = [row for row in rows if row["protocol"] == protocol and not row["collapsed"]]
        if not own:
            continue
        folders = sorted({row["folder"] for row in own})
        table = []
        for method in dict.fromkeys(row["method"] for row in own):
            by_seed = _mean_by_seed(own, method, "auroc")
            line: Row = {
                "detector": method,
                "mean": float(np.mean(by_seed)),
                "mean_low": float(np.min(by_seed)),
                "mean_high": float(np.max(by_seed)),
                "pauc_0.1": float(np.mean(_mean_by_seed(own, method, "pauc_0.1"))),
                "average_precision": float(
                    np.mean(_mean_by_seed(own, method, "average_precision"))
                ),
            }
            for folder in folders:
                values = [
                    r["auroc"] for r in own if r["method"] == method and r["folder"] == folder
                ]
                line[folder] = float(np.mean(values)) if values else None
            table.append(line)
        table.sort(key=lambda line: -line["mean"])
        role = "normal" if protocol == "P1" else "odd"
        yield {
            "title": f"{protocol} on {set_name}: one folder {role}",
            "note": f"AUROC by the {role} folder; mean over folders with its range over seeds.",
            "rows": table,
        }


def _means(measured: list[Row]) -> Iterable[dict[str, Any]]:
    """One row per detector: its mean AUROC on every set and protocol."""
    lines: dict[str, Row] = {}
    for row in measured:
        if row["measure"].startswith("auroc_"):
            key = f"{row['embeddings']} {row['measure'].removeprefix('auroc_')}"
            line = lines.setdefault(row["detector"], {"detector": row["detector"]})
            line |= {key: row["value"], f"{key}_low": row["low"], f"{key}_high": row["high"]}
    if lines:
        note = "Mean over folders with its range over seeds."
        yield {"title": "AUROC by detector", "note": note, "rows": list(lines.values())}


def _losses(by_set: dict[str, list[Row]], kinds: dict[str, str]) -> Iterable[dict[str, Any]]:
    """One row per head, set and protocol: the cheap methods that do better on average."""
    table = []
    for set_name, rows in by_set.items():
        for protocol in LABELED:
            own = [row for row in rows if row["protocol"] == protocol and not row["collapsed"]]
            means = {name: _mean_by_folder(own, name) for name in kinds}
            cheap = {n: m for n, m in means.items() if kinds[n] != DEEP and m}
            for head in (n for n in means if kinds[n] == DEEP and means[n] and cheap):
                mean = _average(means[head])
                better = {n: _average(m) for n, m in cheap.items() if _average(m) > mean}
                best = max(cheap, key=lambda n: _average(cheap[n]))
                won = [auroc > cheap[best].get(f, 0) for f, auroc in means[head].items()]
                table.append({
                    "embeddings": set_name,
                    "protocol": protocol,
                    "head": head,
                    "mean": mean,
                    "best_cheap": f"{best} {_average(cheap[best]):.3f}",
                    "difference": mean - _average(cheap[best]),
                    "folders_won": f"{sum(won)} of {len(won)}",
                    "loses_to": ", ".join(sorted(better, key=lambda n: -better[n])) or "none",
                })  # fmt: skip
    if table:
        note = "AUROC, mean over folders and seeds; folders won against the best cheap method."
        yield {"title": "Where Deep SVDD loses to a cheap method", "note": note, "rows": table}


def _unlabeled_table(rows: list[Row], set_name: str) -> Iterable[dict[str, Any]]:
    own = [row for row in rows if row["protocol"] == "unlabeled" and not row["collapsed"]]
    table = []
    for method in dict.fromkeys(row["method"] for row in own):
        line: Row = {"detector": method}
        for key in (*UNLABELED, "share_above_threshold"):
            values = _values(own, method, key)
            if values:
                line |= {key: float(np.mean(values))}
                line |= {f"{key}_low": min(values), f"{key}_high": max(values)}
        table.append(line)
    if table:
        yield {
            "title": f"Without labels, {set_name}",
            "note": "Mean and range over seeds. Scale-dependent: compare within one detector only.",
            "rows": table,
        }


def _collapsed(rows: list[Row], set_name: str) -> Iterable[dict[str, Any]]:
    own = [
        {k: row[k] for k in ("method", "protocol", "folder", "seed", "collapsed")}
        for row in rows
        if row["collapsed"]
    ]
    if own:
        note = "Fits that failed the collapse guard; they count in no mean above."
        yield {"title": f"Collapsed heads, {set_name}", "note": note, "rows": own}


def _measures(rows: list[Row], set_name: str) -> list[Row]:
    """Our values in the form that `compare_with_published` reads."""
    found: list[Row] = []
    for method in dict.fromkeys(row["method"] for row in rows):
        for protocol in LABELED:
            own = [row for row in rows if row["protocol"] == protocol and not row["collapsed"]]
            values = _mean_by_seed(own, method, "auroc")
            found += _measure(f"auroc_{protocol}", set_name, method, values)
        own = [row for row in rows if row["protocol"] == "unlabeled" and not row["collapsed"]]
        for key in (*UNLABELED, "share_above_threshold"):
            name = PUBLISHED_NAME.get(key, key)
            found += _measure(name, set_name, method, _values(own, method, key))
    return found


def _measure(measure: str, set_name: str, method: str, values: list[float]) -> list[Row]:
    if not values:
        return []
    row: Row = {"measure": measure, "embeddings": set_name, "detector": method}
    row |= {"value": float(np.mean(values)), "low": min(values), "high": max(values)}
    return [row | {"n_seeds": len(values)}]


def _mean_by_seed(rows: list[Row], method: str, key: str) -> list[float]:
    own = [row for row in rows if row["method"] == method]
    seeds = sorted({row["seed"] for row in own})
    return [float(np.mean([r[key] for r in own if r["seed"] == seed])) for seed in seeds]


def _mean_by_folder(rows: list[Row], method: str) -> dict[str, float]:
    own = [row for row in rows if row["method"] == method]
    folders = sorted({row["folder"] for row in own})
    return {f: float(np.mean([r["auroc"] for r in own if r["folder"] == f])) for f in folders}


def _average(by_folder: dict[str, float]) -> float:
    return float(np.mean(list(by_folder.values())))


def _values(rows: list[Row], method: str, key: str) -> list[float]:
    found = (row.get(key) for row in rows if row["method"] == method)
    return [float(value) for value in found if value is not None]


def _published(measured: list[Row], reference: Path) -> dict[str, Any]:
    try:
        published = json.loads(reference.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read evaluate.reference {reference}: {error}") from None
    rows = compare_with_published(measured, published)
    rows = [row for row in rows if row["published"] is not None or row["reproduced"] is not None]
    return {"title": "Ours beside the published values", "note": published["source"], "rows": rows}


def _figures(
    config: ExperimentConfig, embeddings: Embeddings, set_name: str, out: Path, log: Log
) -> None:
    """The paper's figures: every detector fitted once on 80 % of the loops."""
    train = split_rows(embeddings, config.split)
    models = {}
    for detector in _drawn(config.detectors):
        log(f"{set_name}: fitting {detector.name} for the figures")
        try:
            models[detector.name] = fit_models(embeddings, train, detector, config.seeds[:1])
        except ModelCheckError as error:
            log(f"{set_name}: {detector.name} is left out of the figures: {error}")
    scores = {
        name: [m.detector.decision_function(embeddings.matrix) for m in seeds]
        for name, seeds in models.items()
    }
    draw(models, scores, embeddings, train, None, out / "figures", prefix=f"{set_name}-")


def _drawn(detectors: Iterable[DetectorConfig]) -> list[DetectorConfig]:
    """The paper's own comparison, or everything where a config has none of it."""
    detectors = list(detectors)
    paper = ("standard", "residual", "isolation-forest", "pca")
    return [d for d in detectors if d.name in paper] or detectors
