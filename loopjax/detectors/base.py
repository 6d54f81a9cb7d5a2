"""The contract of every detector: arrays in, a score per row out, higher = more anomalous."""

import json
import typing
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar, Literal, Self

import numpy as np
from pydantic import ConfigDict, TypeAdapter, ValidationError
from sklearn.base import BaseEstimator, OutlierMixin
from sklearn.utils.validation import check_is_fitted, validate_data

from loopjax.detectors.partial import OfGrowing
from loopjax.detectors.rows import (
    SCORED_ROWS,
    DataError,
    RowBlocks,
    check_finite,
    far_origin,
    iter_blocks,
    len_rows,
    narrowed,
    only_rows,
    take_rows,
)
from loopjax.errors import ParameterError, UserError
from loopjax.evaluation.conformal import conformal_p_values
from loopjax.forks import refuse_after_fork

# Fraction of training rows above the threshold by default (the paper's quantile of 0.95).
CONTAMINATION = 0.05
# A median of so many training scores is right within a percent.
_MAX_UNIT_ROWS = 32_768


class Detector(OutlierMixin, BaseEstimator):
    """Base of all detectors: validation, threshold, conformal p-values, saving.

    An outlier detector in scikit-learn's sense (`fit_predict`, labels -1 and 1), but for one sign:
    scores rise with anomaly here, as in PyOD, and fall there.

    A subclass sets `kind`, annotates its fitted attributes in the class body (names ending in `_`;
    these are saved), and implements `_learn(rows)` and `_score(rows) -> scores` on float32 [N, D].

    Where further rows can be learned without those of before, it also implements `_learn_more`.

    Fitted attributes: `n_features_in_`; `n_samples_seen_`, rows learned; `feature_names_in_` after
    fitting on a table with named columns; `origin_` [D], the mean row of float64 rows too far from
    zero for float32, which is taken off all rows, else None; `decision_scores_` float64 [N], the
    training scores;
    `threshold_`, their (1 - contamination) quantile; `calibration_scores_` after `calibrate`.
    """

    n_features_in_: int
    n_samples_seen_: int
    origin_: np.ndarray | None = None
    feature_names_in_: np.ndarray
    threshold_: float
    decision_scores_: np.ndarray
    calibration_scores_: np.ndarray

    kind: ClassVar[str]
    # Constructor parameters that steer a run but are no part of the model.
    run_time_params: ClassVar[tuple[str, ...]] = ()
    # Whether a fit with default parameters depends on `random_state`.
    depends_on_seed: ClassVar[bool] = False
    # Fewer rows say nothing about what is normal.
    min_rows: ClassVar[int] = 2
    contamination: float | Literal["auto"]

    @property
    def depends_on_origin(self) -> bool:
        """Whether moving all rows by the same vector changes scores on purpose."""
        return False

    def fit(self, X: Any, y: Any = None) -> Self:
        """Learn what is normal from rows [N, D]; `y` is ignored.

        Raises:
            DataError: too few rows, NaN or infinity, nothing but constant columns.
            ParameterError: a hyper-parameter is out of range.
            ModelCheckError: the fitted model cannot tell rows apart (collapse).
        """
        rows = self._check_training(X)
        self._learn(rows)
        return self._keep_scores(self._training_scores(rows, np.arange(len_rows(rows))))

    @OfGrowing
    def partial_fit(self, X: Any, y: Any = None) -> Self:
        """Learn further rows [M, D] without those learned before; the first time, `fit`.

        What is learned, and so every score of a row, is that of `fit` on all rows, up to rounding;
        hyper-parameters must stay the same. Training scores are of the moment: those of `X` are
        by the detector with them, earlier ones stay as they are (kNN, which keeps its rows, gives
        all anew), and `threshold_` is the quantile of them all. An earlier `calibrate` is
        forgotten.

        Raises:
            NoPartialFitError: this kind learns from all rows together; the message names those
                that have it.
            DataError: NaN or infinity, or another number of columns.
            UserError: the detector did not keep what it would need; see the message.
        """
        if not hasattr(self, "decision_scores_"):
            return self.fit(X)
        if not hasattr(self, "n_samples_seen_"):
            raise UserError(
                f"this {self.kind} was saved by a version that did not keep what partial_fit "
                "needs: fit it again on all rows"
            )
        self.check_params()
        rows = self._validate(X, reset=False)
        self._learn_more(rows)
        self.n_samples_seen_ += len_rows(rows)
        return self._keep_scores(self._scores_with(rows))

    def fit_for(self, X: Any, numbers: np.ndarray) -> Self:
        """`fit`, but with the training scores of some rows alone, by their ascending numbers.

        Where training scores are only an intermediate, as in cross-fitting, a sample of them does.
        """
        rows = self._check_training(X)
        self._learn(rows)
        return self.calibrate_by(self._training_scores(take_rows(rows, numbers), numbers))

    def cross_fit(self, X: np.ndarray | RowBlocks, folds: np.ndarray, seed: int = 0) -> np.ndarray:
        """Fit on all rows and score each by a model of the other folds; see `crossfit`.

        The scale of a score depends on the fit. Models of the same recipe on the same kind of rows
        share the ratio of unseen to seen scores, so each fold's scores are divided by the median
        training score of its model and multiplied by that of the model of all rows.

        Args:
            X: [N, D].
            folds: int [N]; row i is scored by a model of the rows of all other folds.
            seed: of the training rows whose scores give that median, where there are many.

        Returns:
            Scores float64 [N], in the units of the model of all rows.
        """
        self.fit_for(X, _unit_rows(X, seed))
        scores = np.zeros(len_rows(X))
        for fold in np.unique(folds):
            held_out = folds == fold
            rest = only_rows(X, ~held_out)
            model = self.unfitted().fit_for(rest, _unit_rows(rest, seed))
            found = model.decision_function(only_rows(X, held_out))
            scores[held_out] = found * unit_ratio(model, self)
        self.calibrate_by(scores)
        return self.decision_scores_

    def unfitted(self) -> Self:
        """Another one of the same parameters, without progress and checkpoints of its own."""
        params = self.get_params(deep=False)
        return type(self)(**{k: v for k, v in params.items() if k not in self.run_time_params})

    def decision_function(self, X: Any) -> np.ndarray:
        """Anomaly score of every row of [N, D] as float64 [N]; higher = more anomalous."""
        check_is_fitted(self, "decision_scores_")
        return self._score_all(self._validate(X, reset=False))

    def score_samples(self, X: Any) -> np.ndarray:
        """The same as `decision_function`."""
        return self.decision_function(X)

    def predict(self, X: Any) -> np.ndarray:
        """-1 where the score of a row of [N, D] exceeds `threshold_`, else 1; int64 [N]."""
        return np.where(self.decision_function(X) > self.threshold_, -1, 1)

    def predict_proba(self, X: Any) -> np.ndarray:
        """Ranks of rows [N, D] among what was fitted, float64 [N, 2]: columns normal, anomalous.

        The second column is the fraction of training scores at or below the row's score, the first
        one minus it. It says how unusual a row is, not how likely it is to be labeled an anomaly:
        of rows like those fitted, a fraction a has more than 1 - a in it.
        """
        anomalous = self.percentile(self.decision_function(X)) / 100.0
        return np.stack([1.0 - anomalous, anomalous], axis=1)

    @property
    def labels_(self) -> np.ndarray:
        """-1 where a training score exceeds `threshold_`, else 1; int64 [N], as from `predict`."""
        check_is_fitted(self, "decision_scores_")
        return np.where(self.decision_scores_ > self.threshold_, -1, 1)

    def calibrate(self, X: Any) -> Self:
        """Keep the scores of held-out normal rows [N, D], from which `p_value` is computed."""
        self.calibration_scores_ = np.sort(self.decision_function(X))
        return self

    def calibrate_by(self, scores: np.ndarray) -> Self:
        """Take training scores, threshold, percentiles and p-values from cross-fitted scores [N].

        Args:
            scores: of the training rows, by models that never saw them; see `crossfit`.
        """
        self.decision_scores_ = np.asarray(scores, np.float64)
        self.threshold_ = self._quantile(self.decision_scores_)
        self.calibration_scores_ = np.sort(self.decision_scores_)
        return self

    def p_value(self, scores: Any) -> np.ndarray:
        """Conformal p-value of scores [N], float64 [N]; see `conformal_p_values`.

        Raises:
            UserError: there are no calibration scores.
        """
        if not hasattr(self, "calibration_scores_"):
            raise UserError("p-values need held-out normal rows: call calibrate(X_held_out) first")
        return conformal_p_values(self.calibration_scores_, np.asarray(scores))

    def percentile(self, scores: Any) -> np.ndarray:
        """Fraction of training scores at or below each of scores [N], in percent; float64 [N]."""
        check_is_fitted(self, "decision_scores_")
        ordered = np.sort(self.decision_scores_)
        rank = np.searchsorted(ordered, np.asarray(scores, np.float64), side="right")
        return 100.0 * rank / len(ordered)

    def check_params(self) -> None:
        """Check every hyper-parameter against its annotation and range.

        Raises:
            ParameterError: names the parameter, its value and what is allowed.
        """
        types = typing.get_type_hints(type(self).__init__)
        for name, value in self.get_params(deep=False).items():
            if name not in self.run_time_params:
                try:
                    check_type(value, types[name])
                except ValueError as error:
                    raise ParameterError(f"{name} is {value!r}: {error}") from None
        if self.contamination != "auto" and not 0.0 < self.contamination < 0.5:
            raise ParameterError(
                f'contamination must be "auto" ({CONTAMINATION}) or lie in (0, 0.5), the fraction '
                f"of training rows above the threshold; got {self.contamination!r}"
            )
        seed = getattr(self, "random_state", None)
        if seed is not None and not 0 <= seed < 2**32:
            raise ParameterError(
                f"random_state must be None (another seed in every fit) or lie in [0, 2^32); "
                f"got {seed!r}"
            )
        if seed is None and getattr(self, "checkpoint_dir", None) is not None:
            raise ParameterError(
                "checkpoint_dir needs a number as random_state: with None, every fit is another "
                "one and cannot go on from a checkpoint"
            )

    def set_fitted(self, fitted: Mapping[str, object]) -> Self:
        """Take over what another fit learned, such as one that was saved; names as annotated."""
        for name, value in fitted.items():
            setattr(self, name, value)
        return self

    @property
    def streams(self) -> bool:
        """Whether it can be fitted on `RowBlocks`."""
        return True

    def __getstate__(self) -> dict[str, Any]:
        """What is pickled and copied: without what lies on the device."""
        state: Any = super().__getstate__()
        return {name: value for name, value in state.items() if name != "_placed"}

    def _check_training(self, X: Any) -> Any:
        """Parameters and rows checked, before anything is learned."""
        self.check_params()
        rows = self._validate(X, reset=True)
        if len_rows(rows) < self.min_rows:
            raise DataError(
                f"{type(self).__name__} needs at least {self.min_rows} rows; "
                f"got n_samples = {len_rows(rows)}"
            )
        self.n_samples_seen_ = len_rows(rows)
        return rows

    def _learn(self, rows: Any) -> None:
        raise NotImplementedError

    def _learn_more(self, rows: Any) -> None:
        raise NotImplementedError

    def _scores_with(self, rows: Any) -> np.ndarray:
        """Training scores after further rows [M, D] were learned."""
        before = self.decision_scores_
        numbers = np.arange(len(before), len(before) + len_rows(rows))
        return np.concatenate([before, self._training_scores(rows, numbers)])

    def _training_scores(self, rows: Any, numbers: np.ndarray) -> np.ndarray:
        """Scores of rows [n, D] that were trained on; `numbers` [n] says which these are."""
        return self._score_all(rows)

    def _score(self, rows: np.ndarray) -> np.ndarray:
        raise NotImplementedError

    def _keep_scores(self, scores: np.ndarray) -> Self:
        """Set what follows from the training scores, and forget an earlier calibration."""
        self.decision_scores_ = np.asarray(scores, dtype=np.float64)
        self.threshold_ = self._threshold_from(self.decision_scores_)
        if hasattr(self, "calibration_scores_"):
            del self.calibration_scores_
        return self

    def _score_all(self, rows: np.ndarray | RowBlocks) -> np.ndarray:
        parts = iter_blocks(rows, SCORED_ROWS) if isinstance(rows, RowBlocks) else (rows,)
        return np.concatenate([np.asarray(self._score(part), np.float64) for part in parts])

    def _threshold_from(self, scores: np.ndarray) -> float:
        return self._quantile(scores)

    def _quantile(self, scores: np.ndarray) -> float:
        above = CONTAMINATION if self.contamination == "auto" else self.contamination
        return float(np.quantile(scores, 1.0 - above))

    def _seed(self) -> int:
        """`random_state`, or a new number where that is None."""
        seed = getattr(self, "random_state", None)
        return int(np.random.default_rng().integers(2**32)) if seed is None else int(seed)

    def _origin_of(self, rows: np.ndarray) -> np.ndarray | None:
        return None if self.depends_on_origin else far_origin(rows)

    def _validate(self, X: Any, *, reset: bool) -> Any:
        """X as finite float32 [N, D] or `RowBlocks`, minus `origin_`.

        Sets or checks `n_features_in_`, `feature_names_in_` and `origin_`.
        """
        refuse_after_fork()
        if isinstance(X, RowBlocks):
            if reset:
                self.n_features_in_ = X.n_features
                self.origin_ = self._origin_of(np.asarray(next(iter(X.read(np.arange(1))))))
            elif X.n_features != self.n_features_in_:
                raise DataError(
                    f"X has {X.n_features} features, but {type(self).__name__} "
                    f"is expecting {self.n_features_in_} features as input"
                )
            return replace(X, origin=self.origin_)
        kept = (np.float32, np.float64)
        try:
            rows = np.asarray(
                validate_data(self, X, reset=reset, dtype=kept, ensure_all_finite=False)
            )
        except ValueError as error:
            raise DataError(str(error)) from error
        check_finite(rows)
        if reset:
            self.origin_ = self._origin_of(rows)
        return narrowed(rows, self.origin_)


def _unit_rows(rows: np.ndarray | RowBlocks, seed: int) -> np.ndarray:
    """Ascending numbers of the training rows whose scores give a model its unit."""
    total = len_rows(rows)
    rng = np.random.default_rng([seed, 6])
    return np.sort(rng.choice(total, min(_MAX_UNIT_ROWS, total), replace=False))


def unit_ratio(model: Detector, whole: Detector) -> float:
    """What takes scores of a model of some rows to the units of the model of all rows."""
    own, unit = (float(np.median(fitted.decision_scores_)) for fitted in (model, whole))
    return unit / own if own else 1.0


_STRICT = ConfigDict(strict=True, allow_inf_nan=False, arbitrary_types_allowed=True)


def check_type(value: object, annotation: Any) -> Any:
    """A value in the type of an annotation: a list becomes a tuple, NumPy's numbers Python's.

    Raises:
        ValueError: another type, NaN or infinity; the message says what is expected.
    """
    reader = TypeAdapter(annotation, config=_STRICT)
    try:
        return reader.validate_json(json.dumps(value, default=_plain))
    except ValidationError as error:
        raise ValueError(error.errors()[0]["msg"]) from None
    except TypeError as error:
        raise ValueError(str(error)) from None


def _plain(value: object) -> object:
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"a {type(value).__name__} is neither number nor text")


def fitted_types(cls: type[Detector]) -> dict[str, Any]:
    """Fitted attributes of a class and their types: annotated names that end in `_`."""
    return {
        name: annotation
        for name, annotation in typing.get_type_hints(cls).items()
        if name.endswith("_") and not name.startswith("_")
    }
