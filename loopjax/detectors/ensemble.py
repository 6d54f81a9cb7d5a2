"""Score fusion: several detectors as one, without training anything beyond them."""

from collections.abc import Mapping
from typing import ClassVar, Literal

import numpy as np

from loopjax.detectors.base import CONTAMINATION, Detector
from loopjax.detectors.crossfit import CrossFit, fit_and_cross_fit
from loopjax.detectors.isolation_forest import IsolationForest
from loopjax.detectors.knn import KNN, LocalKNN
from loopjax.detectors.mahalanobis import Mahalanobis
from loopjax.detectors.mean_cosine import MeanCosine
from loopjax.detectors.pca import PCA
from loopjax.detectors.rows import DataError, RowBlocks, len_rows, take_rows
from loopjax.detectors.svdd.estimator import DeepSVDD
from loopjax.detectors.svdd.sphere_svdd import SphereSVDD
from loopjax.errors import ParameterError

# More rows do not sharpen a mean and a standard deviation, but cost a fit per fold.
_MAX_STANDARDIZING_ROWS = 4096
_KEYS = {"kind", "params"}
# Every detector but the ensemble itself.
MEMBERS: dict[str, type[Detector]] = {
    cls.kind: cls
    for cls in (
        DeepSVDD,
        SphereSVDD,
        IsolationForest,
        PCA,
        KNN,
        LocalKNN,
        Mahalanobis,
        MeanCosine,
    )
}


class Ensemble(Detector):
    """Mean (or minimum) of the standardized scores of several detectors.

    A member's scores of its own training rows are too low, and by how much differs from method to
    method. So every member is standardized by the mean and standard deviation of its cross-fitted
    scores: those of training rows by copies of the member that did not see them (of 4096 rows at
    most).

    Args:
        members: kinds, such as "knn", or mappings {"kind": "knn", "params": {"n_neighbors": 10}}.
        fusion: "mean" calls anomalous what the members call so on average, "min" what all of them
            do (arXiv 2606.19269).
        n_folds: of the cross-fitting.
        contamination: fraction of training rows above `threshold_`.
        random_state: seed of the folds, and of members that take one and give none.

    Fitted: `members_`, the fitted detectors; `means_` and `sds_`, float64 [members].
    """

    kind: ClassVar[str] = "ensemble"
    depends_on_seed: ClassVar[bool] = True

    members_: list[Detector]
    means_: np.ndarray
    sds_: np.ndarray

    def __init__(
        self,
        members: tuple[str | dict[str, object], ...] = ("local-knn", "mahalanobis"),
        fusion: Literal["mean", "min"] = "mean",
        n_folds: int = 5,
        contamination: float | Literal["auto"] = CONTAMINATION,
        random_state: int | None = 0,
    ):
        self.members = members
        self.fusion = fusion
        self.n_folds = n_folds
        self.contamination = contamination
        self.random_state = random_state

    def check_params(self) -> None:
        """Check every hyper-parameter, those of the members too; see `Detector.check_params`."""
        super().check_params()
        if not self.members:
            raise ParameterError("members is empty: name at least one detector")
        if self.n_folds < 2:
            raise ParameterError(f"n_folds must be at least 2; got {self.n_folds!r}")
        for i, member in enumerate(self._make_members()):
            try:
                member.check_params()
            except ParameterError as error:
                raise ParameterError(f"members.{i} ({member.kind}): {error}") from None

    @property
    def depends_on_origin(self) -> bool:
        """Whether that of a member does; see `Detector.depends_on_origin`."""
        return any(member.depends_on_origin for member in self._make_members())

    def _make_members(self) -> list[Detector]:
        return [self._make_member(i, given) for i, given in enumerate(self.members)]

    def _make_member(self, i: int, given: str | Mapping[str, object]) -> Detector:
        note = {"kind": given} if isinstance(given, str) else given
        kind, params = note.get("kind"), note.get("params", {})
        if not isinstance(kind, str) or not isinstance(params, dict) or note.keys() - _KEYS:
            raise ParameterError(
                f"members.{i} is {given!r}: expected a kind, or a mapping of kind and params"
            )
        if kind not in MEMBERS:
            raise ParameterError(f"members.{i} is of kind {kind!r}; known: {', '.join(MEMBERS)}")
        known = MEMBERS[kind]().get_params()
        unknown = sorted(params.keys() - known.keys())
        if unknown:
            raise ParameterError(
                f"members.{i}: {kind} has no parameter {', '.join(unknown)}; "
                f"known: {', '.join(known)}"
            )
        member = MEMBERS[kind](**params)
        if "random_state" in known and "random_state" not in params:
            member.set_params(random_state=self.random_state)
        return member

    def cross_fit(self, X: np.ndarray | RowBlocks, folds: np.ndarray, seed: int = 0) -> np.ndarray:
        """Scores of rows by members that never saw them; see `Detector.cross_fit`.

        Members are cross-fitted one by one and fused once: ensembles of the folds would each
        standardize by the few heavy-tailed scores of their own rows, in units so different that 11
        % of new normal loops were flagged where 5 % were to be (the paper's bass loops, ff).
        """
        rows = self._check_training(X)
        members = self._make_members()
        crossed = self._standardize(members, fit_and_cross_fit(members, rows, folds, seed=seed))
        self.calibrate_by(self._fuse(crossed))
        return self.decision_scores_

    def _learn(self, rows: np.ndarray | RowBlocks) -> None:
        members, total, seed = self._make_members(), len_rows(rows), self._seed()
        drawn = np.arange(total)
        if total > _MAX_STANDARDIZING_ROWS:
            rng = np.random.default_rng([seed, 5])
            drawn = np.sort(rng.choice(total, _MAX_STANDARDIZING_ROWS, replace=False))
        sample = take_rows(rows, drawn)
        if np.all(sample == sample[:1]):
            raise DataError("all rows are identical: no detector learns anything from them")
        whole = len(sample) == total
        sampled = members if whole else self._make_members()
        self._standardize(
            members, fit_and_cross_fit(sampled, sample, n_folds=self.n_folds, seed=seed)
        )
        if not whole:
            for member in members:
                member.fit(rows)

    def _standardize(self, members: list[Detector], crossed: list[CrossFit]) -> np.ndarray:
        """Keeps members with mean and deviation of their cross-fitted scores [members, N]."""
        scores = np.stack([found.scores for found in crossed])
        sds = scores.std(axis=1)
        self.members_ = members
        self.means_, self.sds_ = scores.mean(axis=1), np.where(sds > 0, sds, 1.0)
        return scores

    def _score(self, rows: np.ndarray) -> np.ndarray:
        return self._fuse(np.stack([member.decision_function(rows) for member in self.members_]))

    def _fuse(self, scores: np.ndarray) -> np.ndarray:
        """Scores [members, N] as one score per row, [N]."""
        standardized = (scores - self.means_[:, None]) / self.sds_[:, None]
        return standardized.mean(axis=0) if self.fusion == "mean" else standardized.min(axis=0)
