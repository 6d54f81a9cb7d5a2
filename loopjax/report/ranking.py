"""What a page reads of a run: its scores, most anomalous first, and the embeddings beside them."""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from loopjax.errors import UserError
from loopjax.store.read import Embeddings
from loopjax.store.scores import read_scores

MAX_MAP_ROWS = 50_000  # above, the whole matrix would have to be in memory for a thumbnail


@dataclass(frozen=True)
class Ranking:
    """Scored loops, most anomalous first; columns that the file lacks are None.

    Attributes:
        ids: [N].
        paths: [N] for people.
        groups: [N] folders.
        scores: float [N], finite.
        ranks: [N], 1 = the most anomalous.
        is_anomaly: bool [N], flagged.
        percentiles: [N] among the training scores.
        p_values: [N] conformal.
        labels: [N] True = labeled as an anomaly, None = unlabeled.
        flags: [N] what the decoder noticed.
        path_bytes: [N] exact paths.
        detector: name of the detector.
        threshold: scores above it are flagged.
    """

    ids: list[str]
    paths: list[str]
    groups: list[str]
    scores: np.ndarray
    ranks: list[int]
    is_anomaly: np.ndarray
    percentiles: list[float | None] | None
    p_values: list[float | None] | None
    labels: list[bool | None] | None
    flags: list[list[str] | None] | None
    path_bytes: list[bytes | None] | None
    detector: str
    threshold: float | None


def read_ranking(path: Path) -> Ranking:
    """Reads a scores table; rows without a finite score are left out.

    Raises:
        UserError: unreadable file, a missing column, or no scored loop.
    """
    stored = read_scores(path)
    table = stored.table
    names = set(table.column_names)
    if missing := {"id", "path"} - names:
        raise UserError(f"{path} has no column {min(missing)!r}")
    score = np.asarray(table["score"].to_numpy(zero_copy_only=False), float)
    order = np.argsort(-np.where(np.isfinite(score), score, -np.inf), kind="stable")
    order = order[np.isfinite(score[order])]
    if not len(order):
        raise UserError(f"{path} holds no scored loop")
    table, score = table.take(order), score[order]
    flagged = _column(table, "is_anomaly")
    is_anomaly = np.array([bool(v) for v in flagged]) if flagged else np.zeros(len(score), bool)
    threshold = float(stored.metadata["threshold"]) if "threshold" in stored.metadata else None
    if threshold is None and is_anomaly.any():
        threshold = float(score[is_anomaly].min())
    paths = [str(v) for v in table["path"].to_pylist()]
    groups = _column(table, "group") or [None] * len(paths)
    return Ranking(
        ids=[str(v) for v in table["id"].to_pylist()],
        paths=paths,
        groups=[
            Path(path).parent.name if group is None else group
            for group, path in zip(groups, paths, strict=True)
        ],
        scores=score,
        ranks=_column(table, "rank") or list(range(1, len(paths) + 1)),
        is_anomaly=is_anomaly,
        percentiles=_column(table, "percentile"),
        p_values=_column(table, "p_value"),
        labels=_column(table, "is_labeled"),
        flags=_column(table, "flags"),
        path_bytes=_column(table, "path_bytes"),
        detector=stored.metadata.get("detector", ""),
        threshold=threshold,
    )


def _column(table: pa.Table, name: str) -> list | None:
    return table[name].to_pylist() if name in table.column_names else None


def matrix_of(ranking: Ranking, embeddings: Embeddings) -> np.ndarray | None:
    """Embeddings float32 [N, D] in the order of a ranking; None if some loop has none."""
    known = {str(key): i for i, key in enumerate(embeddings.table["id"].to_pylist())}
    rows = [known[key] for key in ranking.ids if key in known]
    if len(rows) < len(ranking.ids):
        return None
    return np.asarray(embeddings.matrix, np.float32)[rows]


def files_of(ranking: Ranking, embeddings: Embeddings | None) -> dict[str, bytes]:
    """Where the audio of each id lies, as far as scores and embeddings know."""
    files: dict[str, bytes] = {}
    if embeddings is not None and "path_bytes" in embeddings.table.column_names:
        ids, paths = embeddings.table["id"].to_pylist(), embeddings.table["path_bytes"].to_pylist()
        files = {str(key): path for key, path in zip(ids, paths, strict=True) if path}
    if ranking.path_bytes is not None:
        files |= {i: p for i, p in zip(ranking.ids, ranking.path_bytes, strict=True) if p}
    return {key: os.fsencode(path) for key, path in files.items()}
