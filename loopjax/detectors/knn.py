"""k-nearest-neighbor distance: how far a row is from the normal rows closest to it."""

from collections.abc import Iterable
from typing import Any, ClassVar, Literal

import numpy as np

from loopjax.detectors.base import Detector
from loopjax.detectors.known_rows import KnownRows
from loopjax.detectors.nearest import NearestRows, local_radii
from loopjax.detectors.rows import DataError, iter_blocks, len_rows, places_among, take_rows
from loopjax.detectors.spectrum import column_moments
from loopjax.errors import ParameterError, UserError

# Radii below this fraction of the median one are raised to it.
RADIUS_FLOOR = 0.1
_UNIT_ROUNDING = 5e-7  # of unit vectors in float32


class KNN(Detector):
    """Distance to the k nearest training rows, found by blocked matrix products.

    Args:
        n_neighbors: k.
        aggregate: "mean" of the k distances, or "max", the distance to the k-th.
        metric: "euclidean", or "cosine" (Euclidean between unit vectors).
        standardize: divide every feature by its standard deviation first.
        density_exponent: divide the distance to a training row by the mean distance of that row to
            its own k nearest others, to this power: 0 plain distance, 1 ratio. A loop between
            tightly packed normal loops then counts as anomalous sooner than one between scattered
            ones (Wilkinghoff et al., arXiv 2509.10951).
        max_reference: keep at most this many training rows, drawn without replacement, so that cost
            grows linearly with the rows; None keeps all.
        contamination: fraction of training rows above `threshold_`; "auto" is 0.05.
        random_state: seed of that draw.

    Fitted: `reference_` float32 [M, D]; with `standardize` also `mean_` and `scale_` [D]; with a
    `density_exponent` also `radii_` [M]. No row is its own neighbor: a training row has the same
    score in `fit` and later.
    """

    kind: ClassVar[str] = "knn"

    reference_: np.ndarray
    radii_: np.ndarray | None
    mean_: np.ndarray | None
    scale_: np.ndarray | None
    _kept: np.ndarray
    _placed: tuple[NearestRows, KnownRows] | None = None

    def __init__(
        self,
        n_neighbors: int = 5,
        aggregate: Literal["mean", "max"] = "mean",
        metric: Literal["euclidean", "cosine"] = "euclidean",
        standardize: bool = False,
        density_exponent: float = 0.0,
        max_reference: int | None = 10_000,
        contamination: float | Literal["auto"] = 0.05,
        random_state: int | None = 0,
    ):
        self.n_neighbors = n_neighbors
        self.aggregate = aggregate
        self.metric = metric
        self.standardize = standardize
        self.density_exponent = density_exponent
        self.max_reference = max_reference
        self.contamination = contamination
        self.random_state = random_state

    @property
    def depends_on_origin(self) -> bool:
        """Angles do, distances do not."""
        return self.metric == "cosine"

    def check_params(self) -> None:
        """Check every hyper-parameter; see `Detector.check_params`."""
        super().check_params()
        if self.n_neighbors < 1:
            raise ParameterError(f"n_neighbors must be at least 1; got {self.n_neighbors!r}")
        if self.max_reference is not None and self.max_reference < 1:
            raise ParameterError(f"max_reference must be at least 1; got {self.max_reference!r}")
        if not 0.0 <= self.density_exponent <= 1.0:
            raise ParameterError(
                f"density_exponent must lie in [0, 1]; got {self.density_exponent!r}"
            )

    def _learn(self, rows: Any) -> None:
        total = len_rows(rows)
        kept = np.arange(total)
        if self.max_reference is not None and self.max_reference < total:
            rng = np.random.default_rng(self._seed())
            kept = np.sort(rng.choice(total, self.max_reference, replace=False))
        if len(kept) <= self.n_neighbors:
            raise DataError(
                f"n_neighbors={self.n_neighbors} needs more than {self.n_neighbors} reference "
                f"rows; got n_samples = {len(kept)}"
            )
        self.mean_ = self.scale_ = None
        if self.standardize:
            self.mean_, self.scale_ = column_moments(rows)
        self._take(self._prepare(take_rows(rows, kept)))
        self._kept = kept

    def _learn_more(self, rows: Any) -> None:
        if self.standardize and self.metric == "cosine":
            raise UserError(
                "standardized kNN by cosine keeps no lengths and cannot learn further rows: fit it "
                'on all rows, or choose standardize=False or metric="euclidean"'
            )
        total = self.n_samples_seen_ + len_rows(rows)
        thinned = len(self.reference_) < self.n_samples_seen_
        if thinned or (self.max_reference is not None and total > self.max_reference):
            raise UserError(
                f"max_reference={self.max_reference} lets a kNN keep a sample of {total} rows, "
                "which must be drawn from all of them: fit it on all rows, or raise max_reference"
                f"{' before the first fit' * thinned}"
            )
        further = take_rows(rows, np.arange(len_rows(rows)))
        if self.mean_ is None or self.scale_ is None:
            self._take(np.concatenate([self.reference_, self._prepare(further)]))
        else:
            every = np.concatenate([self.reference_ * self.scale_ + self.mean_, further])
            self.mean_, self.scale_ = column_moments(every)
            self._take(self._prepare(every))
        self._kept = np.arange(total)

    def _take(self, reference: np.ndarray) -> None:
        """Sets the prepared reference rows [M, D] and their radii."""
        spread = np.ptp(reference, axis=0).max()
        if self.metric == "cosine" and spread <= _UNIT_ROUNDING:
            raise DataError("all rows point the same way: every distance is zero")
        if spread == 0.0:
            raise DataError("all rows are identical: every distance is zero")
        self.radii_ = None
        if self.density_exponent:
            own = np.arange(len(reference))
            near, _ = NearestRows(reference).search(reference, self.n_neighbors, own)
            self.radii_ = local_radii(near, RADIUS_FLOOR, self.density_exponent)
        self.reference_ = reference

    def _training_scores(self, rows: Any, numbers: np.ndarray) -> np.ndarray:
        prepared = map(self._prepare, iter_blocks(rows, 4096))
        return self._scores_but(prepared, places_among(self._kept, numbers))

    def _scores_with(self, rows: Any) -> np.ndarray:
        """Training scores after further rows were learned: all anew, of the reference rows."""
        return self._scores_but(iter_blocks(self.reference_, 4096), self._kept)

    def _scores_but(self, prepared: Iterable[np.ndarray], own: np.ndarray) -> np.ndarray:
        """Scores of prepared rows, whose own places [N] among the reference rows do not count."""
        scores, start = [], 0
        for block in prepared:
            mine = own[start : start + len(block)]
            found, _ = self._nearest()[0].search(block, self.n_neighbors, mine)
            scores.append(self._aggregate(found))
            start += len(block)
        return np.concatenate(scores)

    def _score(self, rows: np.ndarray) -> np.ndarray:
        rows = self._prepare(rows)
        nearest, known = self._nearest()
        return self._aggregate(nearest.search(rows, self.n_neighbors, known.find(rows))[0])

    def _nearest(self) -> tuple[NearestRows, KnownRows]:
        """The reference rows to search, which stay on the device, and to know again."""
        if self._placed is None or self._placed[0].rows is not self.reference_:
            nearest = NearestRows(self.reference_, self.radii_)
            self._placed = nearest, KnownRows.of(self.reference_)
        return self._placed

    def _aggregate(self, distances: np.ndarray) -> np.ndarray:
        return distances.mean(axis=1) if self.aggregate == "mean" else distances[:, -1]

    def _prepare(self, rows: np.ndarray) -> np.ndarray:
        if self.mean_ is not None and self.scale_ is not None:
            rows = ((rows - self.mean_) / self.scale_).astype(np.float32)
        if self.metric == "euclidean":
            return rows
        lengths = np.linalg.norm(rows, axis=1, keepdims=True)
        return rows / np.maximum(lengths, np.finfo(np.float32).tiny)


class LocalKNN(KNN):
    """Standardized kNN with local density normalization: the untrained form of `SphereSVDD`.

    See `KNN` for the arguments; only the defaults differ.
    """

    kind: ClassVar[str] = "local-knn"

    def __init__(
        self,
        n_neighbors: int = 3,
        aggregate: Literal["mean", "max"] = "mean",
        metric: Literal["euclidean", "cosine"] = "euclidean",
        standardize: bool = True,
        density_exponent: float = 0.9,
        max_reference: int | None = 10_000,
        contamination: float | Literal["auto"] = 0.05,
        random_state: int | None = 0,
    ):
        super().__init__(
            n_neighbors,
            aggregate,
            metric,
            standardize,
            density_exponent,
            max_reference,
            contamination,
            random_state,
        )
