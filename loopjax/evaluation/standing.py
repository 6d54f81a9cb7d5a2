"""Where scores stand among all those of a corpus, of which three numbers per row are kept."""

from collections.abc import Sequence

import numpy as np


class Standing:
    """Ranks and q-values of rows, asked for a part of the corpus at a time."""

    def __init__(self, scores: np.ndarray, p_values: np.ndarray):
        """Orders the corpus.

        Args:
            scores: float64 [N] of all rows, higher = more anomalous; sorted in place.
            p_values: float64 [N] of all rows, or NaN for all; sorted in place.
        """
        scores.sort()
        p_values.sort()
        self._scores, self._p_values = scores, p_values
        # Benjamini and Hochberg, as `adjusted_p_values`, of what is sorted already.
        self._q_values = p_values * (len(p_values) / np.arange(1, len(p_values) + 1))
        backwards = self._q_values[::-1]
        np.minimum.accumulate(backwards, out=backwards)
        np.minimum(self._q_values, 1.0, out=self._q_values)
        self._place_among_equals: dict[str, int] = {}

    def tied(self, scores: np.ndarray) -> np.ndarray:
        """Which of scores [n] several rows of the corpus have, bool [n]."""
        first = np.searchsorted(self._scores, scores, side="left")
        return np.searchsorted(self._scores, scores, side="right") - first > 1

    def order_equals(self, scores: np.ndarray, ids: Sequence[str]) -> None:
        """Takes all rows of the corpus that are `tied`; of equal scores, the lower id comes first.

        Args:
            scores: [n].
            ids: [n].
        """
        place, latest = 0, np.nan
        for score, row_id in sorted(zip(scores.tolist(), ids, strict=True)):
            place = place + 1 if score == latest else 0
            self._place_among_equals[row_id], latest = place, score

    def ranks(self, scores: np.ndarray, tied_ids: Sequence[str]) -> np.ndarray:
        """Ranks of rows, int64 [n]; 1 is the most anomalous row of the corpus.

        Args:
            scores: [n].
            tied_ids: of those rows that are `tied`, in their order.
        """
        above = len(self._scores) - np.searchsorted(self._scores, scores, side="right")
        ranks = 1 + above.astype(np.int64)
        places = [self._place_among_equals[row_id] for row_id in tied_ids]
        ranks[self.tied(scores)] += np.asarray(places, np.int64)
        return ranks

    def q_values(self, p_values: np.ndarray) -> np.ndarray:
        """The smallest false-discovery rates at which rows are discoveries, float64 [n].

        Args:
            p_values: [n], each of a row of the corpus; NaN stays.
        """
        return self._q_values[np.searchsorted(self._p_values, p_values)]
