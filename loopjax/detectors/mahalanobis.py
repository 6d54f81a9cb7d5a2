"""Mahalanobis distance to the mean under a shrunk covariance."""

from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np

from loopjax.detectors.base import Detector
from loopjax.detectors.rows import DataError, len_rows, score_in_blocks
from loopjax.detectors.spectrum import (
    HIGHEST,
    Spectrum,
    compute_spectrum,
    double_precision,
    extend_spectrum,
    moved_moments,
    radial_moments,
)
from loopjax.errors import ParameterError, UserError


class Mahalanobis(Detector):
    """Squared Mahalanobis distance, covariance shrunk towards a multiple of the identity.

    Args:
        shrinkage: "ledoit-wolf" (Ledoit and Wolf 2004, estimated from the rows) or a number in
            [0, 1]: 0 keeps the sample covariance, 1 gives the plain Euclidean distance.
        contamination: fraction of training rows above `threshold_`; "auto" is 0.05.

    Fitted: `mean_` [D]; `axes_` [D, K], `variances_` [K] of the shrunk covariance along them;
    `floor_`, its variance along every other axis; `shrinkage_`; what `partial_fit` needs,
    `eigenvalues_` [K] before shrinkage and, with "ledoit-wolf", `third_` [D] and `fourth_`, see
    `radial_moments`.
    """

    kind: ClassVar[str] = "mahalanobis"

    mean_: np.ndarray
    axes_: np.ndarray
    variances_: np.ndarray
    floor_: float
    shrinkage_: float
    eigenvalues_: np.ndarray
    third_: np.ndarray | None
    fourth_: float | None

    def __init__(
        self,
        shrinkage: float | Literal["ledoit-wolf"] = "ledoit-wolf",
        contamination: float | Literal["auto"] = 0.05,
    ):
        self.shrinkage = shrinkage
        self.contamination = contamination

    def check_params(self) -> None:
        """Check every hyper-parameter; see `Detector.check_params`."""
        super().check_params()
        if not isinstance(self.shrinkage, str) and not 0.0 <= self.shrinkage <= 1.0:
            raise ParameterError(
                f'shrinkage must be "ledoit-wolf" or lie in [0, 1]; got {self.shrinkage!r}'
            )

    def _learn(self, rows: Any) -> None:
        found = compute_spectrum(rows, standardize=False)
        moments = None
        if isinstance(self.shrinkage, str):
            moments = radial_moments(rows, found.mean)
        self._take(found, moments)

    def _learn_more(self, rows: Any) -> None:
        n, further = self.n_samples_seen_, len_rows(rows)
        own = Spectrum(
            mean=self.mean_,
            scale=np.ones_like(self.mean_),
            eigenvalues=self.eigenvalues_,
            axes=self.axes_,
            total_variance=float(self.eigenvalues_.sum()),
            n_rows=n,
        )
        found = extend_spectrum(own, rows, standardize=False)
        moments = None
        if isinstance(self.shrinkage, str):
            if self.third_ is None or self.fourth_ is None:
                raise UserError(
                    "Mahalanobis was fitted with a number as shrinkage and did not keep what "
                    f"{self.shrinkage!r} needs: fit it on all rows"
                )
            old = moved_moments(self.third_, self.fourth_, own, found.mean)
            new = radial_moments(rows, found.mean)
            total = n + further
            moments = (
                (n * old[0] + further * new[0]) / total,
                (n * old[1] + further * new[1]) / total,
            )
        self._take(found, moments)

    def _take(self, found: Spectrum, moments: tuple[np.ndarray, float] | None) -> None:
        """Sets what is fitted; `moments` are there where they decide the shrinkage."""
        if found.total_variance <= 0.0:
            raise DataError("all rows are identical: there is no variance to learn from")
        width = self.n_features_in_
        third, fourth = (None, None) if moments is None else moments
        shrinkage = float(self.shrinkage) if fourth is None else _ledoit_wolf(found, fourth)
        floor = shrinkage * found.total_variance / width
        keep = found.eigenvalues > found.eigenvalues[0] * 1e-12
        if floor <= 0.0 and keep.sum() < width:
            raise DataError(
                f"the covariance of {found.n_rows} rows has no inverse in {width} dimensions: "
                "set shrinkage above 0"
            )
        self.shrinkage_, self.floor_ = shrinkage, float(floor)
        self.mean_ = found.mean
        self.axes_ = np.ascontiguousarray(found.axes[:, keep])
        self.variances_ = (1.0 - shrinkage) * found.eigenvalues[keep] + floor
        self.eigenvalues_ = found.eigenvalues[keep]
        self.third_, self.fourth_ = third, fourth

    def _score(self, rows: np.ndarray) -> np.ndarray:
        with double_precision():
            mean, axes = jnp.asarray(self.mean_), jnp.asarray(self.axes_)
            # Along the axes: 1 / variance; everywhere else: 1 / floor (absent at full rank).
            rest = 1.0 / self.floor_ if self.axes_.shape[1] < self.n_features_in_ else 0.0
            gain = jnp.asarray(1.0 / self.variances_)
            return score_in_blocks(lambda block: _distance(block, mean, axes, gain, rest), rows)


@jax.jit
def _distance(rows, mean, axes, gain, rest):
    x = jnp.asarray(rows, mean.dtype) - mean[None, :]
    inside = jnp.matmul(x, axes, precision=HIGHEST)
    outside = x - jnp.matmul(inside, axes.T, precision=HIGHEST)
    return jnp.sum(inside**2 * gain[None, :], axis=1) + rest * jnp.sum(outside**2, axis=1)


def _ledoit_wolf(found: Spectrum, fourth: float) -> float:
    """Optimal shrinkage towards the mean variance (Ledoit and Wolf 2004)."""
    width = len(found.mean)
    mean_variance = found.total_variance / width
    squared_norm = float(np.sum(found.eigenvalues**2))
    spread = (squared_norm - width * mean_variance**2) / width
    noise = (fourth - squared_norm) / (width * found.n_rows)
    return 0.0 if spread <= 0.0 else float(min(noise, spread) / spread)
