"""Cross-fitted scores of rows that do not fit into memory; see `crossfit`."""

import numpy as np

from loopjax.detectors.base import Detector
from loopjax.detectors.crossfit import unfitted
from loopjax.detectors.rows import RowBlocks

# Training rows whose scores give a model its unit: a median of so many is right within a percent.
UNIT_ROWS = 32_768


def cross_fit_blocks(detector: Detector, rows: RowBlocks, folds: np.ndarray, seed: int = 0) -> None:
    """Fit a detector on all rows, and score each by a model of the other folds.

    Does what `fit_and_cross_fit` does, one model after the other and block by block. Of the
    training scores of each model, whose median is its unit, only a sample is computed.

    Args:
        detector: unfitted; becomes the model of all rows.
        rows: [N, D].
        folds: int [N] from 0; row i is scored by a model of the rows of all other folds.
        seed: of the sample.

    Raises:
        DataError: too few rows.
        ParameterError: a hyper-parameter is out of range.
        ModelCheckError: a model collapsed.
    """
    unit = _fit(detector, rows, seed)
    scores = np.zeros(rows.n_rows)
    for fold in np.unique(folds):
        model, held_out = unfitted(detector), folds == fold
        own = _fit(model, rows.only(~held_out), seed)
        found = model.decision_function(rows.only(held_out))
        scores[held_out] = found * (unit / own if own else 1)
    detector.calibrate_by(scores)


def _fit(detector: Detector, rows: RowBlocks, seed: int) -> float:
    """Fits a detector; the median score of rows that it was trained on."""
    count = min(UNIT_ROWS, rows.n_rows)
    drawn = np.random.default_rng([seed, 6]).choice(rows.n_rows, count, replace=False)
    return float(np.median(detector.fit_for(rows, np.sort(drawn)).decision_scores_))
