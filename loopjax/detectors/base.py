"""The contract of every detector: arrays in, a score per row out, higher = more anomalous."""

import json
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Self

import numpy as np
from pydantic import ConfigDict, TypeAdapter, ValidationError
from sklearn.base import BaseEstimator, OutlierMixin
from sklearn.utils.validation import check_array, check_is_fitted, validate_data

from loopjax.errors import ParameterError, UserError
from loopjax.evaluation.conformal import conformal_p_values
from loopjax.forks import refuse_after_fork


class DataError(UserError, ValueError):
    """The rows given to a detector cannot be used; the message names the row or the column."""


@dataclass(frozen=True)
class RowBlocks:
    """Rows that are read block by block because the whole matrix does not fit into memory.

    Attributes:
        read: blocks by their numbers, int [n], in that order: float [sizes[number], n_features];
            called once or more per pass.
        sizes: int [B], rows of each block.
        n_features: width of every block.
        origin: [n_features], what is subtracted from every row; None for nothing.
    """

    read: Callable[[np.ndarray], Iterable[np.ndarray]]
    sizes: np.ndarray
    n_features: int
    origin: np.ndarray | None = None

    @property
    def n_rows(self) -> int:
        """Rows over all blocks."""
        return int(np.sum(self.sizes))

    @property
    def starts(self) -> np.ndarray:
        """Number of the first row of each block, int [B]."""
        return np.cumsum(self.sizes) - self.sizes

    def __iter__(self) -> Iterator[np.ndarray]:
        """One pass over all blocks."""
        return self.some(np.arange(len(self.sizes)))

    def some(self, numbers: np.ndarray) -> Iterator[np.ndarray]:
        """Some blocks as float32, refusing NaN, infinity and wrong shapes."""
        starts = self.starts
        for number, block in zip(numbers, self.read(numbers), strict=True):
            rows = np.asarray(block)
            rows = rows.astype(np.result_type(rows, np.float32), copy=False)
            if rows.shape != (self.sizes[number], self.n_features):
                raise DataError(
                    f"block {number} has shape {rows.shape}; {self.sizes[number]} rows of "
                    f"{self.n_features} features are expected"
                )
            check_finite(rows, first_row=int(starts[number]))
            yield narrowed(rows, self.origin)

    def only(self, keep: np.ndarray) -> "RowBlocks":
        """The rows where `keep`, bool [n_rows], is true."""
        return self.picked(np.arange(len(self.sizes)), np.split(keep, np.cumsum(self.sizes)[:-1]))

    def picked(self, numbers: np.ndarray, masks: Sequence[np.ndarray]) -> "RowBlocks":
        """Of some blocks, by their numbers, the rows where the block's mask is true."""
        counts = np.array([np.count_nonzero(mask) for mask in masks])
        filled = np.flatnonzero(counts)

        def read(wanted: np.ndarray) -> Iterator[np.ndarray]:
            places = filled[wanted]
            for place, block in zip(places, self.read(numbers[places]), strict=True):
                yield block[masks[place]]

        return replace(self, read=read, sizes=counts[filled])


SCORED_ROWS = 8192  # of `RowBlocks`, at once
# Squares of larger values, summed over a row, may leave float32.
LARGEST = 1e15


def check_finite(rows: np.ndarray, first_row: int = 0) -> None:
    """Raise `DataError` naming the first row of [N, D] with NaN, infinity or beyond `LARGEST`."""
    # One pass without a temporary: a sum of squares bounds every value, and NaN fails.
    flat = rows.ravel(order="K")
    if np.vdot(flat, flat) <= LARGEST**2:
        return
    bad = np.flatnonzero(~(np.abs(rows) <= LARGEST).all(axis=1))
    if bad.size:
        finite = np.isfinite(rows[bad]).all()
        found = f"magnitudes above {LARGEST:.0e}" if finite else "NaN or infinity"
        raise DataError(
            f"Input X contains {found} in {bad.size} of {len(rows)} rows "
            f"(first: row {first_row + bad[0]}); drop or repair these rows"
        )


# Float32 holds a row's place relative to its like to 1e-4 up to about this many standard deviations
# from zero.
_FAR = 1e3


def far_origin(rows: np.ndarray) -> np.ndarray | None:
    """Mean row [D] of float64 rows [N, D] so far from zero that float32 would lose them.

    None where float32 is enough, and for rows that are float32 already.
    """
    if rows.dtype != np.float64 or not rows.size:
        return None
    mean = rows.mean(axis=0)
    far = np.abs(mean).max() > _FAR * np.sqrt(rows.var(axis=0).max())
    return mean if far else None


def narrowed(rows: np.ndarray, origin: np.ndarray | None) -> np.ndarray:
    """Rows [N, D] minus `origin` [D], in float32."""
    if origin is not None:
        rows = rows.astype(np.float64) - origin
    return rows.astype(np.float32, copy=False)


# Fraction of training rows above the threshold by default (the paper's quantile of 0.95).
CONTAMINATION = 0.05


class Detector(OutlierMixin, BaseEstimator):
    """Base of all detectors: validation, threshold, conformal p-values, saving.

    An outlier detector in scikit-learn's sense (`fit_predict`, labels -1 and 1), but for one sign:
    scores rise with anomaly here, as in PyOD, and fall there.

    A subclass sets `kind`, annotates its fitted attributes in the class body (names ending in `_`;
    these are saved), and implements `_learn(rows)` and `_score(rows) -> scores` on float32 [N, D].

    Fitted attributes: `n_features_in_`; `feature_names_in_` after fitting on a table with named
    columns; `origin_` [D], the mean row of float64 rows too far from zero for float32, which is
    taken off all rows, else None; `decision_scores_` float64 [N], the training scores;
    `threshold_`, their (1 - contamination) quantile; `calibration_scores_` after `calibrate`.
    """

    n_features_in_: int
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
    # Whether scores of two fits of one recipe differ by a factor, which cross-fitting takes out.
    rescale_across_fits: ClassVar[bool] = True
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

    def fit_for(self, X: Any, numbers: np.ndarray) -> Self:
        """`fit`, but with the training scores of some rows alone, by their ascending numbers.

        Where training scores are only an intermediate, as in cross-fitting, a sample of them does.
        """
        rows = self._check_training(X)
        self._learn(rows)
        return self.calibrate_by(self._training_scores(take_rows(rows, numbers), numbers))

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
        return rows

    def _learn(self, rows: Any) -> None:
        raise NotImplementedError

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


def as_rows(X: Any) -> np.ndarray:
    """X as finite [N, D] in its own precision, float32 or float64.

    Raises:
        DataError: no matrix, no rows, NaN or infinity.
    """
    try:
        rows = np.asarray(check_array(X, ensure_all_finite=False))
    except ValueError as error:
        raise DataError(str(error)) from error
    rows = rows.astype(np.result_type(rows, np.float32), copy=False)
    check_finite(rows)
    return rows


def len_rows(rows: np.ndarray | RowBlocks) -> int:
    """Number of rows of a matrix or of `RowBlocks`."""
    return rows.n_rows if isinstance(rows, RowBlocks) else len(rows)


def iter_blocks(rows: np.ndarray | RowBlocks, block_rows: int) -> Iterator[np.ndarray]:
    """Consecutive pieces of `block_rows` rows, the last one fewer, of a matrix or `RowBlocks`."""
    if isinstance(rows, np.ndarray):
        yield from (rows[i : i + block_rows] for i in range(0, len(rows), block_rows))
        return
    waiting: list[np.ndarray] = []
    for block in rows:
        waiting.append(block)
        if sum(map(len, waiting)) >= block_rows:
            joined = np.concatenate(waiting) if waiting[1:] else block
            whole = len(joined) - len(joined) % block_rows
            yield from (joined[i : i + block_rows] for i in range(0, whole, block_rows))
            waiting = [joined[whole:]] if whole < len(joined) else []
    if waiting:
        yield np.concatenate(waiting)


def only_rows(rows: np.ndarray | RowBlocks, keep: np.ndarray) -> Any:
    """The rows where `keep`, bool [N], is true."""
    return rows[keep] if isinstance(rows, np.ndarray) else rows.only(keep)


def take_rows(rows: np.ndarray | RowBlocks, wanted: np.ndarray) -> np.ndarray:
    """The rows of ascending numbers out of a matrix or of `RowBlocks`; reads no other blocks."""
    if isinstance(rows, np.ndarray):
        return rows[wanted]
    taken = np.empty((len(wanted), rows.n_features), np.float32)
    place = np.searchsorted(np.cumsum(rows.sizes), wanted, side="right")
    numbers, firsts = np.unique(place, return_index=True)
    starts, ends = rows.starts, [*firsts[1:], len(wanted)]
    for number, block, first, end in zip(numbers, rows.some(numbers), firsts, ends, strict=True):
        taken[first:end] = block[wanted[first:end] - starts[number]]
    return taken


def places_among(kept: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """Where each of numbers [n] stands among ascending `kept`, -1 where it does not; int [n]."""
    place = np.minimum(np.searchsorted(kept, numbers), len(kept) - 1)
    return np.where(kept[place] == numbers, place, -1)


def score_in_blocks(
    score: Callable[[np.ndarray], Any], rows: np.ndarray, small: int = 256, large: int = 4096
) -> np.ndarray:
    """Apply a jitted [B, D] -> [B] function with one padded block shape, so nothing recompiles.

    A row's score does not depend on how many rows come with it: up to `large` rows every call has
    the shape [small, D]; above, [large, D]. Returns [N].
    """
    block = small if len(rows) <= large else large
    scores = []
    for part in iter_blocks(rows, block):
        padded = part if len(part) == block else np.pad(part, ((0, block - len(part)), (0, 0)))
        scores.append(np.asarray(score(padded))[: len(part)])
    return np.concatenate(scores)
