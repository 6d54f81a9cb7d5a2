"""What a page reads of a run: its scores, most anomalous first, and the embeddings beside them."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from loopjax.errors import UserError
from loopjax.store.blocks import StoredRows
from loopjax.store.columns import places_of
from loopjax.store.schema import Project
from loopjax.store.scores import Scores, read_scores
from loopjax.store.similar import MostSimilar


@dataclass(frozen=True)
class Ranking:
    """Scored loops, most anomalous first; columns that the file lacks are None.

    Attributes:
        ids: text [N].
        paths: text [N] for people.
        groups: text [N] folders.
        scores: float [N], finite.
        ranks: int [N], 1 = the most anomalous.
        is_anomaly: bool [N], flagged.
        percentiles: [N] among the training scores.
        p_values: [N] conformal.
        labels: [N] True = labeled as an anomaly, None = unlabeled.
        flags: [N] what the decoder noticed.
        path_bytes: [N] exact paths.
        detector: name of the detector.
        threshold: scores above it are flagged.
    """

    ids: pa.Array
    paths: pa.Array
    groups: pa.Array | None
    scores: np.ndarray
    ranks: np.ndarray
    is_anomaly: np.ndarray
    percentiles: pa.Array | None
    p_values: pa.Array | None
    labels: pa.Array | None
    flags: pa.Array | None
    path_bytes: pa.Array | None
    detector: str
    threshold: float | None

    def group_of(self, row: int) -> str:
        """The folder of a loop, as the file says it or else its path."""
        group = None if self.groups is None else self.groups[row].as_py()
        return Path(self.paths[row].as_py()).parent.name if group is None else group

    def percentiles_of(self, rows: np.ndarray) -> list[float | None]:
        """Percentiles [n] of some loops: among the training scores, or else among these loops."""
        if self.percentiles is None:
            return (100 * (1 - (rows + 1) / len(self.scores))).tolist()
        return self.percentiles.take(pa.array(rows)).to_pylist()


def read_ranking(path: Path) -> Ranking:
    """Reads a scores table; rows without a finite score are left out.

    Raises:
        UserError: unreadable file, a missing column, or no scored loop.
    """
    return ranking_of(read_scores(path), str(path))


def ranking_of(scores: Scores, where: str) -> Ranking:
    """A table of scores as a ranking; see `read_ranking`.

    Args:
        scores: at least id, path and score.
        where: they come from, for messages.

    Raises:
        UserError: a missing column, or no scored loop.
    """
    table = scores.table
    names = set(table.column_names)
    if missing := {"id", "path"} - names:
        raise UserError(f"{where} has no column {min(missing)!r}")
    score = np.asarray(table["score"].to_numpy(zero_copy_only=False), float)
    order = np.argsort(-np.where(np.isfinite(score), score, -np.inf), kind="stable")
    order = order[np.isfinite(score[order])]
    if not len(order):
        raise UserError(f"{where} holds no scored loop")
    table, score = table.take(order), score[order]
    is_anomaly = np.zeros(len(score), bool)
    if "is_anomaly" in names:
        is_anomaly = np.asarray(pc.fill_null(table["is_anomaly"], False))
    threshold = float(scores.metadata["threshold"]) if "threshold" in scores.metadata else None
    if threshold is None and is_anomaly.any():
        threshold = float(score[is_anomaly].min())
    ranks = np.arange(1, len(score) + 1)
    return Ranking(
        ids=table["id"].cast(pa.string()).combine_chunks(),
        paths=table["path"].cast(pa.string()).combine_chunks(),
        groups=_column(table, "group"),
        scores=score,
        ranks=np.asarray(table["rank"]) if "rank" in names else ranks,
        is_anomaly=is_anomaly,
        percentiles=_column(table, "percentile"),
        p_values=_column(table, "p_value"),
        labels=_column(table, "is_labeled"),
        flags=_column(table, "flags"),
        path_bytes=_column(table, "path_bytes"),
        detector=scores.metadata.get("detector", ""),
        threshold=threshold,
    )


def _column(table: pa.Table, name: str) -> pa.Array | None:
    return table[name].combine_chunks() if name in table.column_names else None


class RankedRows:
    """The embeddings of ranked loops, read from their store as they are needed."""

    def __init__(self, ranking: Ranking, rows: StoredRows):
        """Finds the rows; only those that are asked for are read.

        Args:
            ranking: the loops.
            rows: of the store or file that holds them.
        """
        self._rows = rows
        ids = rows.table(["id"])["id"].cast(pa.string())
        place = places_of(ranking.ids, ids)
        self.n_missing = place.null_count
        self._place = np.asarray(pc.fill_null(place, -1), np.int64)

    def vectors(self, ranked: np.ndarray) -> np.ndarray:
        """Embeddings float32 [n, D] of loops by their places in the ranking."""
        return self._rows.vectors(self._place[ranked])

    def column(self, name: str) -> pa.Array | None:
        """A column of the store for all loops, null for missing ones; None where it has none."""
        if name not in self._rows.columns:
            return None
        values = self._rows.table([name])[name].combine_chunks()
        return values.take(pa.array(self._place, mask=self._place < 0))

    def nearest(self, ranked: np.ndarray, among: np.ndarray, count: int) -> np.ndarray:
        """The loops most similar to some by cosine, but for themselves; int [n, count].

        Args:
            ranked: places of n loops in the ranking.
            among: places of more than `count` loops to search, ascending; of equal ones the first
                in the store is nearer.
            count: how many per loop.
        """
        own = np.where(np.isin(ranked, among), np.searchsorted(among, ranked), -1)
        return self.nearest_to(self.vectors(ranked), among, count, own)[0]

    def nearest_to(
        self, vectors: np.ndarray, among: np.ndarray, count: int, own: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """The loops most similar to some vectors; see `nearest`.

        Args:
            vectors: float32 [n, D].
            among: as there.
            count: as there.
            own: int [n], which of `among` a vector must not find; -1 for none.

        Returns:
            (places in the ranking int [n, count], cosines float32 [n, count]).
        """
        at = np.full(self._rows.n_rows, -1)
        at[self._place[among]] = among
        # Rows come in the order of the store, not of the ranking.
        order = np.argsort(self._place[among], kind="stable")
        if own is not None:
            own = np.where(own < 0, -1, np.argsort(order)[own])
        best = MostSimilar(vectors, count, own)
        for block in self._rows.blocks():
            best.add(block.matrix[at[block.start : block.start + len(block.matrix)] >= 0])
        cosines, found = best.found()
        return among[order][found], cosines

    def nearest_projected(
        self, vectors: np.ndarray, project: Project, count: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """The loops most similar to vectors of the space that sounds share with texts.

        Args:
            vectors: float32 [n, P].
            project: puts embeddings there.
            count: how many per vector, at most as many as there are loops.

        Returns:
            (places in the ranking int [n, count], cosines float32 [n, count]).
        """
        best = MostSimilar(vectors, count)
        for block in self._rows.projected(project):
            best.add(block)
        cosines, found = best.found()
        at = np.full(self._rows.n_rows, -1)
        at[self._place] = np.arange(len(self._place))
        return at[found], cosines
