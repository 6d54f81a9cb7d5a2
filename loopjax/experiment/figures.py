"""The figures of a run: what the detectors say of its loops, handed to `report.figures`."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from loopjax.detectors.svdd.estimator import DeepSVDD
from loopjax.evaluation.robustness import CurvePoint
from loopjax.model import Model
from loopjax.report.extra import require_report_extra
from loopjax.store.read import Embeddings
from loopjax.store.stream import StoredEmbeddings

MAX_DRAWN = 20_000  # loops in a figure; of more, so many are drawn by lot
CURVES = {"train_loss": "train", "val_loss": "validation"}  # of a history


def draw_run(
    models: Mapping[str, Sequence[Model]],
    scores: Mapping[str, Sequence[np.ndarray]],
    embeddings: Embeddings | StoredEmbeddings,
    train: np.ndarray,
    labels: np.ndarray | None,
    folder: Path,
    prefix: str = "",
) -> None:
    """Draws the paper's figures of a run as SVG.

    Args:
        models: detector name -> one model per seed; the first is drawn.
        scores: detector name -> scores [N] per seed.
        embeddings: all rows.
        train: bool [N], the rows the detectors were fitted on.
        labels: int [N], 1 anomaly; None without labels.
        folder: for the files.
        prefix: of their names.

    Raises:
        UserError: the extra [report] is missing.
    """
    require_report_extra()
    from loopjax.report import figures

    folder.mkdir(parents=True, exist_ok=True)
    if len(embeddings) > MAX_DRAWN:
        drawn = np.zeros(len(embeddings), bool)
        drawn[np.random.default_rng(0).choice(len(embeddings), MAX_DRAWN, replace=False)] = True
        scores = {name: [own[drawn] for own in seeds] for name, seeds in scores.items()}
        embeddings, train = embeddings.only(drawn), train[drawn]
        labels = None if labels is None else labels[drawn]
    anomalous = np.zeros(len(train), bool) if labels is None else labels == 1
    splits = {
        name: {
            "train": own[0][train & ~anomalous],
            "held out": own[0][~train & ~anomalous],
            "anomaly": own[0][anomalous],
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
    matrix = embeddings.load().matrix
    latents = {n: detector.latents(matrix) for n, detector in deep.items()}
    figures.latent_distributions(latents, folder / f"{prefix}latent-distributions.svg")
    flagged = {n: scores[n][0] > cuts[n] for n in deep}
    figures.latent_pca(latents, flagged, folder / f"{prefix}latent-pca.svg")
    figures.latent_heat_map(
        latents, {n: scores[n][0] for n in deep}, folder / f"{prefix}latent-map.svg"
    )
    curves = {
        f"{name}, {stage}": {
            CURVES[curve]: [np.nan if v is None else v for v in values]
            for curve, values in metrics.items()
            if curve in CURVES
        }
        for name, detector in deep.items()
        for stage, metrics in detector.history_.items()
    }
    curves = {panel: c for panel, c in curves.items() if c}
    if curves:
        figures.training_curves(curves, folder / f"{prefix}training-curves.svg")


def draw_curves(points: Sequence[CurvePoint], out: Path) -> None:
    """Draws robustness curves as SVG.

    Raises:
        UserError: the extra [report] is missing.
    """
    require_report_extra()
    from loopjax.report import figures

    figures.robustness_curves(points, out)
