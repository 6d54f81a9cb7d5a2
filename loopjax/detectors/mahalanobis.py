"""Mahalanobis distance to the mean under a shrunk covariance."""

from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np

from loopjax.detectors.base import Detector
from loopjax.detectors.rows import DataError, score_in_blocks
from loopjax.detectors.spectrum import (
    HIGHEST,
    Spectrum,
    compute_spectrum,
    double_precision,
    fourth_moment,
)
from loopjax.errors import ParameterError


class Mahalanobis(Detector):
    """Squared Mahalanobis distance, covariance shrunk towards a multiple of the identity.

    Args:
        shrinkage: "ledoit-wolf" (Ledoit and Wolf 2004, estimated from the rows) or a number in
            [0, 1]: 0 keeps the sample covariance, 1 gives the plain Euclidean distance.
        contamination: fraction of training rows above `threshold_`; "auto" is 0.05.

    Fitted: `mean_` [D]; `axes_` [D, K], `variances_` [K] of the shrunk covariance along them;
    `floor_`, its variance along every other axis; `shrinkage_`.
    """

    kind: ClassVar[str] = "mahalanobis"

    mean_: np.ndarray
    axes_: np.ndarray
    variances_: np.ndarray
    floor_: float
    shrinkage_: float

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
        if found.total_variance <= 0.0:
            raise DataError("all rows are identical: there is no variance to learn from")
        width = self.n_features_in_
        shrinkage = (
            _ledoit_wolf(found, fourth_moment(rows, found.mean))
            if isinstance(self.shrinkage, str)
            else float(self.shrinkage)
        )
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
