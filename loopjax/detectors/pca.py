"""PCA: how much of a row lies outside the subspace that normal rows span."""

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
    extend_spectrum,
)
from loopjax.errors import ParameterError, UserError


class PCA(Detector):
    """Squared reconstruction error of the standardized row (paper section IV, baseline).

    Args:
        n_components: number of axes (int), or the fraction of variance they must hold (0 < x < 1).
            At least one axis of the data is always left out, else nothing could be measured.
        standardize: divide columns by their standard deviation first, as the reference does.
        statistic: "reconstruction", the sum of squared residuals, or "hotelling", Hotelling's T2
            inside the subspace (squared coordinates over their variances).
        solver: "auto" takes the exact decomposition up to 4,096 columns and "randomized" subspace
            iteration above; "exact" and "randomized" force one.
        max_components: axes the randomized solver looks for when `n_components` is a fraction.
        contamination: fraction of training rows above `threshold_`; "auto" is 0.05.
        random_state: seed of the randomized solver.

    Fitted: `mean_`, `scale_` [D]; `components_` [K, D]; `explained_variance_` [K] (divisor n - 1);
    what `partial_fit` needs, `left_out_` [L, D] and `left_out_variance_` [L], the other axes along
    which rows vary, None after subspace iteration.
    Scores equal scikit-learn's StandardScaler + PCA to 1e-4 relative.
    """

    kind: ClassVar[str] = "pca"

    mean_: np.ndarray
    scale_: np.ndarray
    components_: np.ndarray
    explained_variance_: np.ndarray
    left_out_: np.ndarray | None
    left_out_variance_: np.ndarray | None

    def __init__(
        self,
        n_components: int | float = 0.95,
        standardize: bool = True,
        statistic: Literal["reconstruction", "hotelling"] = "reconstruction",
        solver: Literal["auto", "exact", "randomized"] = "auto",
        max_components: int = 512,
        contamination: float | Literal["auto"] = 0.05,
        random_state: int | None = 0,
    ):
        self.n_components = n_components
        self.standardize = standardize
        self.statistic = statistic
        self.solver = solver
        self.max_components = max_components
        self.contamination = contamination
        self.random_state = random_state

    def check_params(self) -> None:
        """Check every hyper-parameter; see `Detector.check_params`."""
        super().check_params()
        wanted = self.n_components
        if not (0.0 < wanted < 1.0 if isinstance(wanted, float) else wanted >= 1):
            raise ParameterError(
                f"n_components must be a count >= 1 or a fraction in (0, 1); got {wanted!r}"
            )
        if self.max_components < 1:
            raise ParameterError(f"max_components must be at least 1; got {self.max_components!r}")

    def _learn(self, rows: Any) -> None:
        by_fraction = isinstance(self.n_components, float)
        wanted = self.max_components if by_fraction else int(self.n_components) + 1
        rank = wanted if self._iterates else None
        found = compute_spectrum(rows, standardize=self.standardize, rank=rank, seed=self._seed())
        self._take(found)

    def _learn_more(self, rows: Any) -> None:
        if self._iterates or self.left_out_ is None or self.left_out_variance_ is None:
            raise UserError(
                "PCA by subspace iteration keeps too few axes to learn further rows: fit it on all "
                'rows, or with solver="exact"'
            )
        n = self.n_samples_seen_
        variances = np.concatenate([self.explained_variance_, self.left_out_variance_])
        found = Spectrum(
            mean=self.mean_,
            scale=self.scale_,
            eigenvalues=variances * ((n - 1) / n),
            axes=np.concatenate([self.components_, self.left_out_]).T,
            total_variance=float(variances.sum()) * ((n - 1) / n),
            n_rows=n,
        )
        self._take(extend_spectrum(found, rows, standardize=self.standardize))

    @property
    def _iterates(self) -> bool:
        wide = self.n_features_in_ > 4096
        return self.solver == "randomized" or (self.solver == "auto" and wide)

    def _take(self, found: Spectrum) -> None:
        """Sets what is fitted."""
        width, iterate = self.n_features_in_, self._iterates
        by_fraction = isinstance(self.n_components, float)
        variances = found.eigenvalues
        if found.total_variance <= 0.0 or variances[0] <= 0.0:
            raise DataError("all rows are identical: there is no variance to learn from")
        available = int(np.sum(variances > variances[0] * 1e-10))
        if available < 2:
            raise DataError(
                "the rows vary along 1 axis only, so PCA leaves no residual to score "
                f"(n_features = {width})"
            )
        held = np.cumsum(variances) / found.total_variance
        k = (
            int(np.searchsorted(held, self.n_components, side="right")) + 1
            if by_fraction
            else int(self.n_components)
        )
        if iterate and by_fraction and held[-1] < self.n_components:
            raise ParameterError(
                f"{len(variances)} axes hold {held[-1]:.3f} of the variance, less than "
                f"{self.n_components}: raise max_components"
            )
        k = min(k, available - 1)
        self.mean_, self.scale_ = found.mean, found.scale
        self.components_ = np.ascontiguousarray(found.axes[:, :k].T)
        unbiased = variances * (found.n_rows / (found.n_rows - 1))
        self.explained_variance_ = unbiased[:k]
        self.left_out_ = self.left_out_variance_ = None
        if not iterate:
            self.left_out_ = np.ascontiguousarray(found.axes[:, k:].T)
            self.left_out_variance_ = unbiased[k:]

    def _score(self, rows: np.ndarray) -> np.ndarray:
        with double_precision():
            model = [
                jnp.asarray(a)
                for a in (self.mean_, self.scale_, self.components_, self.explained_variance_)
            ]
            core = _residual if self.statistic == "reconstruction" else _hotelling
            return score_in_blocks(lambda block: core(block, *model), rows)


@jax.jit
def _residual(rows, mean, scale, components, variances):
    del variances
    z, inside = _project(rows, mean, scale, components)
    return jnp.sum((z - jnp.matmul(inside, components, precision=HIGHEST)) ** 2, axis=1)


@jax.jit
def _hotelling(rows, mean, scale, components, variances):
    _, inside = _project(rows, mean, scale, components)
    return jnp.sum(inside**2 / variances[None, :], axis=1)


def _project(rows, mean, scale, components):
    z = (jnp.asarray(rows, mean.dtype) - mean[None, :]) / scale[None, :]
    return z, jnp.matmul(z, components.T, precision=HIGHEST)
