"""Judges a run: tables and figures from its trained models, and every detector on other encoders.

Joins `trained`, `evaluate`, `figures`, `protocols` and `ladder`; writes evaluation.json, which the
report and the command line print.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from loopjax.config import ExperimentConfig
from loopjax.detectors.svdd.estimator import DeepSVDD
from loopjax.evaluation import metrics as evaluate
from loopjax.io import write_json
from loopjax.model import TrainedModel, fit_models, held_out_rows
from loopjax.report import figures
from loopjax.store.read import Embeddings

Log = Callable[[str], None]
Models = Mapping[str, list[TrainedModel]]
Row = dict[str, Any]


def assess(
    config: ExperimentConfig,
    models: Models,
    embeddings: Embeddings,
    train: np.ndarray,
    labels: np.ndarray | None,
    out: Path,
    log: Log,
) -> dict[str, Any]:
    """Writes evaluation.json and figures/ of a run, with the ladder if its config asks for it.

    Args:
        config: the experiment.
        models: detector name -> one model per seed.
        embeddings: all rows.
        train: bool [N], the rows the detectors were fitted on.
        labels: int [N], 1 anomaly, 0 normal, -1 unknown; None without labels.
        out: run folder.
        log: receives one line per step.

    Returns:
        {"headline": {label: value}, "tables": [{title, note, rows}]}.
    """
    log("evaluating")
    scores = {
        name: [model.detector.decision_function(embeddings.matrix) for model in seeds]
        for name, seeds in models.items()
    }
    judged = judged_rows(config, train, labels)
    tables = [
        _comparison(config, models, scores, train, labels, judged),
        _separation(models, scores, train, held_out_rows(config.split, train, labels)),
    ]
    if labels is not None and config.compare_encoders:
        tables.insert(1, _encoders(config, embeddings, train, labels, judged, scores, out, log))
    primary = config.primary or config.detectors[0].name
    tables += _groups(embeddings, scores[primary][0], models[primary][0], labels, primary)
    if len(scores) > 1:
        tables.append(_tests(scores, train))
    evaluation: dict[str, Any] = {"tables": tables, "headline": {}}
    best = tables[0]["rows"]
    if labels is not None:
        own = next(row for row in best if row["detector"] == primary)
        evaluation["headline"]["AUROC"] = own["auroc"]
    draw(models, scores, embeddings, train, labels, out / "figures")
    write_json(out / "evaluation.json", evaluation)
    if config.evaluate.ladder != "none":  # takes minutes and may fail: the tables are safe by now
        held_out = ~train if labels is None else ~train & (labels == 0)
        evaluation["tables"][:0] = _climb(config, models, embeddings, held_out, out, log)
        write_json(out / "evaluation.json", evaluation)
    return evaluation


def _climb(
    config: ExperimentConfig,
    models: Models,
    embeddings: Embeddings,
    held_out_normal: np.ndarray,
    out: Path,
    log: Log,
) -> list[dict[str, Any]]:
    """The variation ladder of a run's detectors: its tables; its figure lands in `out`.

    Args:
        config: the experiment.
        models: detector name -> one model per seed.
        embeddings: all rows.
        held_out_normal: bool [N], the loops to vary.
        out: run folder.
        log: receives one line per variation.

    Raises:
        UserError: too few held-out normal loops, or the extra [eval] is missing.
    """
    from loopjax.encoders.load import load_encoder
    from loopjax.experiment.robustness import run_ladder

    result = run_ladder(
        embeddings.table.filter(pa.array(held_out_normal)),
        {name: [m.detector for m in seeds] for name, seeds in models.items()},
        load_encoder(config.embed.encoder, config.embed.precision),
        out,
        options=config.embed,
        quick=config.evaluate.ladder == "quick",
        log=log,
    )
    return result["tables"]


def judged_rows(
    config: ExperimentConfig, train: np.ndarray, labels: np.ndarray | None
) -> np.ndarray:
    """Rows that labeled metrics are computed on, bool [N].

    Trained on everything, every labeled row counts (the detector never saw a label). Trained on
    normals alone, only held-out normals count, or they would look more normal than they are.
    """
    if labels is None:
        return np.zeros(len(train), bool)
    known = labels >= 0
    return known & ~train if config.split.train_on == "normal" else known


def _comparison(
    config: ExperimentConfig,
    models: Models,
    scores: Mapping[str, list[np.ndarray]],
    train: np.ndarray,
    labels: np.ndarray | None,
    judged: np.ndarray,
) -> dict[str, Any]:
    settings = config.evaluate
    held_out = held_out_rows(config.split, train, labels)
    rows = []
    for name, seeds in models.items():
        own = scores[name][0]
        cut = evaluate.thresholds(
            own[train],
            settings.threshold,
            quantile=settings.quantile,
            sigma=settings.sigma,
            calibration_scores=own[held_out] if held_out.any() else None,
            target_fpr=settings.target_fpr,
        )
        row: Row = {"detector": name, "seeds": len(seeds), "threshold": cut}
        row["flagged_train"] = float(np.mean(own[train] > cut))
        if held_out.any():
            row["flagged_held_out"] = float(np.mean(own[held_out] > cut))
        if labels is not None:
            row |= _labeled_row(labels[judged], [s[judged] for s in scores[name]], settings)
        rows.append(row)
    note = f"Threshold: {settings.threshold}. Shares are of loops above it."
    if labels is not None:
        note += (
            " AUROC, pAUC up to a false-positive rate of 0.1 and average precision with bootstrap "
            f"intervals, first seed, on {int(judged.sum())} labeled loops."
        )
    return {"title": "Detectors", "note": note, "rows": rows}


def _labeled_row(labels: np.ndarray, seeds: list[np.ndarray], settings: Any) -> Row:
    row = evaluate.labeled(labels, seeds[0], bootstrap=settings.bootstrap)
    drop = ("n_normal", "n_anomaly")
    row = {key: value for key, value in row.items() if key not in drop}
    if len(seeds) > 1:
        others = [evaluate.labeled(labels, s, bootstrap=0)["auroc"] for s in seeds]
        row["auroc_seed_mean"] = float(np.mean(others))
        row["auroc_seed_sd"] = float(np.std(others, ddof=1))
    return row


def _encoders(
    config: ExperimentConfig,
    embeddings: Embeddings,
    train: np.ndarray,
    labels: np.ndarray,
    judged: np.ndarray,
    scores: Mapping[str, list[np.ndarray]],
    out: Path,
    log: Log,
) -> dict[str, Any]:
    """AUROC of every detector on the run's encoder and on the encoders to compare with."""
    from loopjax.embedding.corpus import embed_corpus
    from loopjax.encoders.load import load_encoder
    from loopjax.store.read import read_embeddings

    rows = [
        _encoder_row(config.embed.encoder, labels, judged, {k: v[0] for k, v in scores.items()})
    ]
    ids = embeddings.table["id"].to_pylist()
    for name in config.compare_encoders:
        log(f"comparing with {name}")
        store = out / "compare" / name
        encoder = load_encoder(name, config.embed.precision)
        embed_corpus(config.data.sources, encoder, store, config.embed)
        other = read_embeddings(store)
        place = {row_id: i for i, row_id in enumerate(other.table["id"].to_pylist())}
        order = np.array([place[row_id] for row_id in ids])
        matrix = other.matrix[order]
        aligned = Embeddings(matrix, embeddings.table, other.metadata)
        found = {
            d.name: fit_models(aligned, train, d, config.seeds[:1])[0].detector.decision_function(
                matrix
            )
            for d in config.detectors
        }
        rows.append(_encoder_row(name, labels, judged, found))
    return {
        "title": "Encoders",
        "note": "AUROC of each detector on embeddings of other encoders, same loops and split.",
        "rows": rows,
    }


def _encoder_row(
    name: str, labels: np.ndarray, judged: np.ndarray, scores: Mapping[str, np.ndarray]
) -> Row:
    aurocs = {
        detector: evaluate.labeled(labels[judged], values[judged], bootstrap=0)["auroc"]
        for detector, values in scores.items()
    }
    return {"encoder": name, **aurocs}


def _separation(
    models: Models,
    scores: Mapping[str, list[np.ndarray]],
    train: np.ndarray,
    others: np.ndarray,
) -> dict[str, Any]:
    keys = ("median", "gap_ratio", "robust_z_top5", "dynamic_range_log10", "ks_train_held_out")
    rows = []
    for name, seeds in models.items():
        held_out = scores[name][0][others] if others.any() else None
        row = evaluate.separation(
            scores[name][0][train], held_out, threshold=seeds[0].detector.threshold_
        )
        rows.append({"detector": name} | {key: row.get(key) for key in keys})
    note = (
        "Without labels, on training scores. These numbers depend on each score's scale: compare "
        "them within one detector only."
    )
    return {"title": "Separation", "note": note, "rows": rows}


def _groups(
    embeddings: Embeddings,
    scores: np.ndarray,
    model: TrainedModel,
    labels: np.ndarray | None,
    name: str,
) -> list[dict[str, Any]]:
    if "group" not in embeddings.table.column_names:
        return []
    groups = [g or "" for g in embeddings.table["group"].to_pylist()]
    if len(set(groups)) < 2:
        return []
    truth = None if labels is None or (labels < 0).any() else labels
    rows = evaluate.per_group(groups, scores, model.detector.threshold_, truth)
    return [{"title": "Groups", "note": f"Scores of {name} by folder.", "rows": rows}]


def _tests(scores: Mapping[str, list[np.ndarray]], train: np.ndarray) -> dict[str, Any]:
    tested = {name: s[0][~train] if (~train).any() else s[0] for name, s in scores.items()}
    reference = {name: s[0][train] for name, s in scores.items()}
    return {
        "title": "Welch tests",
        "note": "Pairs of detectors on held-out loops, Holm-corrected. Raw scores have different "
        "units; the log and percentile scales do not.",
        "rows": evaluate.welch_tests(tested, reference),
    }


def draw(
    models: Models,
    scores: Mapping[str, list[np.ndarray]],
    embeddings: Embeddings,
    train: np.ndarray,
    labels: np.ndarray | None,
    folder: Path,
    prefix: str = "",
) -> None:
    """Draws the paper's figures of a run as SVG, file names with `prefix`.

    Raises:
        UserError: the extra [report] is missing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    odd = np.zeros(len(train), bool) if labels is None else labels == 1
    splits = {
        name: {
            "train": own[0][train & ~odd],
            "held out": own[0][~train & ~odd],
            "anomaly": own[0][odd],
        }
        for name, own in scores.items()
    }
    splits = {n: {k: v for k, v in parts.items() if len(v)} for n, parts in splits.items()}
    cuts = {name: seeds[0].detector.threshold_ for name, seeds in models.items()}
    figures.score_boxes(splits, folder / f"{prefix}scores-by-detector.svg", cuts)
    figures.score_histograms(splits, cuts, folder / f"{prefix}score-histograms.svg")
    deep = {
        name: seeds[0].detector
        for name, seeds in models.items()
        if isinstance(seeds[0].detector, DeepSVDD)
    }
    if not deep:
        return
    latents = {n: detector.latents(embeddings.matrix) for n, detector in deep.items()}
    figures.latent_distributions(latents, folder / f"{prefix}latent-distributions.svg")
    flagged = {n: scores[n][0] > cuts[n] for n in deep}
    figures.latent_pca(latents, flagged, folder / f"{prefix}latent-pca.svg")
    figures.latent_heat_map(
        latents, {n: scores[n][0] for n in deep}, folder / f"{prefix}latent-map.svg"
    )
    curves = {
        f"{name}, {stage}": {
            curve: [np.nan if v is None else v for v in values]
            for curve, values in metrics.items()
            if "loss" in curve
        }
        for name, detector in deep.items()
        for stage, metrics in detector.history_.items()
    }
    curves = {panel: c for panel, c in curves.items() if c}
    if curves:
        figures.training_curves(curves, folder / f"{prefix}training-curves.svg")
