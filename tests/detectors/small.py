"""Small data and quick detectors shared by the detector tests."""

import numpy as np

from loopjax.detectors.ensemble import Ensemble
from loopjax.detectors.isolation_forest import IsolationForest
from loopjax.detectors.knn import KNN, LocalKNN
from loopjax.detectors.mahalanobis import Mahalanobis
from loopjax.detectors.mean_cosine import MeanCosine
from loopjax.detectors.pca import PCA
from loopjax.detectors.rows import RowBlocks
from loopjax.detectors.svdd.estimator import DeepSVDD
from loopjax.detectors.svdd.sphere_svdd import SphereSVDD

# One network and few epochs everywhere, so that a test session compiles it once.
TINY = {
    "hidden_dims": (8, 4),
    "pretrain_epochs": 5,
    "epochs": 5,
    "batch_size": 16,
    "pretrain_learning_rate": 1e-3,
    "learning_rate": 1e-4,
}
DETECTORS = {
    "deep-svdd": lambda: DeepSVDD(**TINY),
    "sphere-svdd": lambda: SphereSVDD(steps=5, hidden_width=8),
    "isolation-forest": lambda: IsolationForest(n_estimators=20),
    "pca": lambda: PCA(),
    "knn": lambda: KNN(),
    "local-knn": lambda: LocalKNN(),
    "mahalanobis": lambda: Mahalanobis(),
    "mean-cosine": lambda: MeanCosine(),
    "ensemble": lambda: Ensemble(("knn", {"kind": "pca", "params": {"n_components": 3}})),
}


def rows(count: int = 60, width: int = 16, seed: int = 0) -> np.ndarray:
    """Correlated Gaussian rows around a mean away from zero; float32 [count, width]."""
    rng = np.random.default_rng(seed)
    mixing = np.random.default_rng(99).normal(size=(width // 2, width))
    x = rng.normal(size=(count, width // 2)) @ mixing + 0.3 * rng.normal(size=(count, width)) + 2.0
    return x.astype(np.float32)


def odd_rows(count: int = 12, width: int = 16) -> np.ndarray:
    """Rows far from those of `rows`, in other directions; float32 [count, width]."""
    return (-8.0 * np.random.default_rng(5).normal(size=(count, width)) - 10.0).astype(np.float32)


def blocks_of(x: np.ndarray, size: int = 13) -> RowBlocks:
    """The rows of a matrix as blocks of `size` rows."""
    starts = range(0, len(x), size)
    sizes = np.array([len(x[start : start + size]) for start in starts])
    return RowBlocks(
        lambda numbers: (x[starts[n] : starts[n] + size] for n in numbers), sizes, x.shape[1]
    )
