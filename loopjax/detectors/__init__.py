"""Detectors: embeddings in, one anomaly score per row out; they know nothing of audio."""

from typing import Any

from loopjax.detectors.base import DataError, Detector, RowBlocks
from loopjax.detectors.isolation_forest import IsolationForest
from loopjax.detectors.knn import KNN
from loopjax.detectors.mahalanobis import Mahalanobis
from loopjax.detectors.mean_cosine import MeanCosine
from loopjax.detectors.pca import PCA
from loopjax.detectors.storage import load_detector
from loopjax.detectors.svdd.estimator import REFERENCE, DeepSVDD
from loopjax.detectors.svdd.fit import fit_heads
from loopjax.errors import UserError

__all__ = [
    "KINDS",
    "KNN",
    "PCA",
    "REFERENCE",
    "DataError",
    "DeepSVDD",
    "Detector",
    "IsolationForest",
    "Mahalanobis",
    "MeanCosine",
    "RowBlocks",
    "fit_heads",
    "load_detector",
    "make_detector",
]

KINDS: dict[str, type[Detector]] = {
    cls.kind: cls for cls in (DeepSVDD, IsolationForest, PCA, KNN, Mahalanobis, MeanCosine)
}


def make_detector(kind: str, **params: Any) -> Detector:
    """An unfitted detector by its kind, for example `make_detector("knn", n_neighbors=10)`.

    Raises:
        UserError: unknown kind or parameter; the message lists the known ones.
    """
    if kind not in KINDS:
        raise UserError(f"unknown detector {kind!r}; known: {', '.join(KINDS)}")
    known = KINDS[kind]().get_params()
    unknown = sorted(set(params) - set(known))
    if unknown:
        raise UserError(
            f"detector {kind} has no parameter {', '.join(unknown)}; known: {', '.join(known)}"
        )
    return KINDS[kind](**params)
