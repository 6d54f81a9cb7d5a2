"""Detectors: embeddings in, one anomaly score per row out; they know nothing of audio.

A new detector is one file with one class and one line in the list below. The list is light: a
class, and with it jax, is imported when it is first asked for.
"""

import inspect
import pkgutil
import typing
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from loopjax.errors import ParameterError, UserError

if TYPE_CHECKING:  # the type of what this module returns; it imports scikit-learn
    from loopjax.detectors.base import Detector

# Kind, as config files and the command line name it -> its class.
_KINDS = {
    "deep-svdd": "loopjax.detectors.svdd.estimator:DeepSVDD",
    "sphere-svdd": "loopjax.detectors.svdd.sphere_svdd:SphereSVDD",
    "isolation-forest": "loopjax.detectors.isolation_forest:IsolationForest",
    "pca": "loopjax.detectors.pca:PCA",
    "knn": "loopjax.detectors.knn:KNN",
    "local-knn": "loopjax.detectors.knn:LocalKNN",
    "mahalanobis": "loopjax.detectors.mahalanobis:Mahalanobis",
    "mean-cosine": "loopjax.detectors.mean_cosine:MeanCosine",
    "ensemble": "loopjax.detectors.ensemble:Ensemble",
}

# What `fit` takes where nothing else is asked for: chosen by scripts/heads/choose_default.py.
DEFAULT_KIND = "sphere-svdd"


def detector_kinds() -> tuple[str, ...]:
    """Every kind of detector, in the order of tables; imports nothing."""
    return tuple(_KINDS)


def detector_class(kind: str) -> "type[Detector]":
    """The class of a kind.

    Raises:
        UserError: unknown kind; the message lists the known ones.
    """
    if kind not in _KINDS:
        raise UserError(f"unknown detector {kind!r}; known: {', '.join(_KINDS)}")
    return pkgutil.resolve_name(_KINDS[kind])


def parameter_types(kind: str) -> dict[str, Any]:
    """Hyper-parameters of a kind with their resolved annotations, in the constructor's order.

    Parameters that steer one run and are no part of the model (callbacks, checkpoint folders) are
    left out.

    Raises:
        UserError: unknown kind.
    """
    cls = detector_class(kind)
    types = typing.get_type_hints(cls.__init__)
    names = inspect.signature(cls).parameters
    return {name: types[name] for name in names if name not in cls.run_time_params}


def make_detector(kind: str, **params: Any) -> "Detector":
    """An unfitted detector by its kind, for example `make_detector("knn", n_neighbors=10)`.

    Raises:
        UserError: unknown kind; the message lists the known ones.
        ParameterError: likewise for a parameter.
    """
    cls = detector_class(kind)
    known = inspect.signature(cls).parameters
    unknown = sorted(set(params) - set(known))
    if unknown:
        raise ParameterError(
            f"detector {kind} has no parameter {', '.join(unknown)}; known: {', '.join(known)}"
        )
    return cls(**params)


def check_parameters(kind: str, params: Mapping[str, Any]) -> None:
    """Refuses hyper-parameters that no fit could use, before there is anything to fit on.

    Raises:
        UserError: unknown kind or parameter, or a value out of range.
    """
    make_detector(kind, **params).check_params()
