"""`partial_fit` as an attribute of those detectors alone that can honor it."""

from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from loopjax.errors import UserError

# Kinds that learn further rows as if all had come at once.
GROWING = ("pca", "knn", "local-knn", "mahalanobis", "mean-cosine")

D = TypeVar("D")
D_co = TypeVar("D_co", covariant=True)


class NoPartialFitError(UserError, AttributeError):
    """A detector that learns from all rows together was asked to learn further ones.

    An AttributeError too: `hasattr(detector, "partial_fit")` says what it can, as in scikit-learn.
    """


class _PartialFit(Protocol[D_co]):
    def __call__(self, X: Any, y: Any = None) -> D_co: ...


class OfGrowing:
    """A method that only those classes have whose kind is in `GROWING`."""

    def __init__(self, method: Callable[..., Any]):
        self._method = method
        self.__doc__ = method.__doc__

    def __get__(self, detector: D, owner: Any) -> _PartialFit[D]:
        if getattr(owner, "kind", None) not in GROWING:
            raise NoPartialFitError(
                f"{owner.__name__} has no partial_fit, it learns from all rows together: fit it "
                f"again on all of them, or choose a detector that has it: {', '.join(GROWING)}"
            )
        return self._method.__get__(detector, owner)
