"""scikit-learn's own estimator checks, with every exclusion and its reason."""

import pytest
from sklearn.utils.estimator_checks import estimator_checks_generator

from loopjax.detectors.isolation_forest import IsolationForest
from loopjax.detectors.knn import KNN, LocalKNN
from loopjax.detectors.mahalanobis import Mahalanobis
from loopjax.detectors.mean_cosine import MeanCosine
from loopjax.detectors.pca import PCA
from loopjax.detectors.svdd.estimator import DeepSVDD
from loopjax.detectors.svdd.sphere_svdd import SphereSVDD

ESTIMATORS = [
    IsolationForest(n_estimators=5),
    PCA(),
    KNN(n_neighbors=2),
    LocalKNN(n_neighbors=2),
    Mahalanobis(),
    MeanCosine(),
    DeepSVDD(hidden_dims=(3, 2), pretrain_epochs=1, epochs=1, batch_size=16, bn_warmup_passes=0),
    SphereSVDD(n_neighbors=2, steps=1, hidden_width=2),
]
# Check name -> reason why it does not apply.
EXCLUDED: dict[str, str] = {}


def _cases():
    for estimator in ESTIMATORS:
        for instance, check in estimator_checks_generator(estimator):
            name = getattr(check, "func", check).__name__
            kind = type(instance).__name__
            # Every check has its own shapes, so the heads compile anew each time.
            marks = [pytest.mark.slow] if kind in ("DeepSVDD", "SphereSVDD") else []
            yield pytest.param(instance, check, id=f"{kind}-{name}", marks=marks)


@pytest.mark.parametrize(("estimator", "check"), _cases())
def test_estimator_check(estimator, check):
    name = getattr(check, "func", check).__name__
    if name in EXCLUDED:
        pytest.skip(EXCLUDED[name])
    check(estimator)
