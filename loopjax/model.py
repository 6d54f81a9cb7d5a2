"""A trained model: a detector, the space of the embeddings it was fitted on, and its calibration.

Scoring, explaining, reporting and converting go through it, in Python as on the command line. A
model is one folder: the detector's, whose `config.json` says in a section `model` what else there
is to know. A detector saved on its own is a model of an unknown space.
"""

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from loopjax.config import EmbedConfig
from loopjax.detectors.base import Detector
from loopjax.detectors.known_rows import KnownRows
from loopjax.detectors.rows import SCORED_ROWS, RowBlocks, iter_blocks
from loopjax.detectors.storage import (
    load_detector,
    model_folder,
    read_detector_config,
    save_detector,
)
from loopjax.embedding.chain import embed
from loopjax.embedding.settings import as_encoder, config_of, space_of
from loopjax.encoders.protocol import Encoder
from loopjax.encoders.space import Space
from loopjax.errors import UserError
from loopjax.evaluation.conformal import require_attainable
from loopjax.evaluation.standing import Standing
from loopjax.io.remote import place_of
from loopjax.notebook import html_facts
from loopjax.store.read import Embeddings
from loopjax.store.scores import SCORED_COLUMNS, Scores, score_table
from loopjax.store.stream import StoredEmbeddings, holds_embeddings, open_embeddings
from loopjax.store.training import (
    TRAINING_NAME,
    TrainingRows,
    read_training_rows,
    write_training_rows,
)

log = logging.getLogger(__name__)

Paths = Sequence[str | os.PathLike[str]] | str | os.PathLike[str]


@dataclass(frozen=True)
class ScoredRows:
    """Scores of rows, none by a detector that was fitted on the row.

    Attributes:
        scores: float64 [N], higher = more anomalous.
        p_values: float64 [N], conformal; NaN without calibration.
        is_cross_fitted: bool [N], rows the model was fitted on, scored by copies that were not.
    """

    scores: np.ndarray
    p_values: np.ndarray
    is_cross_fitted: np.ndarray


@dataclass(frozen=True)
class Model:
    """A fitted detector that knows what it was fitted on.

    Attributes:
        detector: fitted; calibrated where loops were held out.
        name: what its maker called it.
        space: of the embeddings it was fitted on; None where nobody knows.
        training_ids: ids of the rows it was fitted on, text.
        embeddings_path: the store or file that held them, for nearest neighbors.
        known_rows: the rows it was fitted on, in the order of the detector's training scores; None
            where those are not cross-fitted.
        made_from: digest of all that the fit depended on; None where nobody noted it.
    """

    detector: Detector
    name: str
    space: Space | None = None
    training_ids: pa.Array = field(default_factory=lambda: pa.array([], pa.string()))
    embeddings_path: str | None = None
    known_rows: KnownRows | None = field(default=None, compare=False, repr=False)
    made_from: str | None = None

    def _repr_html_(self) -> str:
        """What the model is, for notebooks."""
        facts = {
            "detector": self.detector.kind,
            "encoder": self.space.encoder if self.space else "unknown",
            "fitted on": f"{len(self.training_ids)} loops" if self.training_ids else None,
            "threshold": float(self.detector.threshold_),
            "p-values": "yes" if self.is_calibrated else "no",
            "embeddings": self.embeddings_path,
        }
        return html_facts(f"Model {self.name}", facts)

    @property
    def is_calibrated(self) -> bool:
        """Whether scores have p-values."""
        return hasattr(self.detector, "calibration_scores_")

    @property
    def embed_config(self) -> EmbedConfig:
        """The options that embed audio for this model."""
        return EmbedConfig() if self.space is None else config_of(self.space)

    def save(self, folder: str | Path) -> Path:
        """Writes the model, complete or not at all; returns the folder.

        Raises:
            UserError: something else is there.
            WriteError: the folder cannot be written.
        """
        section = {
            "name": self.name,
            "space": None if self.space is None else self.space.to_metadata(),
            "embeddings_path": self.embeddings_path,
            "training_rows": TRAINING_NAME if len(self.training_ids) else None,
            "made_from": self.made_from,
        }
        marks = None if self.known_rows is None else self.known_rows.marks
        rows = TrainingRows(self.training_ids, self.detector.decision_scores_, marks)

        def write(temporary: Path) -> None:
            if len(rows.ids):
                write_training_rows(rows, temporary)

        return save_detector(self.detector, Path(folder), {"model": section}, write)

    def load_encoder(self, encoder: Encoder | str | Path | None = None) -> Encoder:
        """The encoder whose embeddings the model scores.

        Args:
            encoder: a name, a folder or a loaded one, instead of the one that the model names.

        Raises:
            UserError: it cannot be found, or its embeddings are of another space.
        """
        if encoder is not None:
            loaded = as_encoder(encoder, self.embed_config)
        else:
            location = self._location()
            try:
                loaded = as_encoder(location, self.embed_config)
            except UserError as error:
                raise UserError(
                    f"the encoder that {self.name} names cannot be loaded: {error}; if it lies "
                    "elsewhere now, name it with --encoder"
                ) from None
        self.check_space(space_of(loaded, self.embed_config), f"encoder {loaded.id}")
        if loaded.embedding_dim != self.detector.n_features_in_:
            raise UserError(
                f"the model scores {self.detector.n_features_in_} numbers, encoder {loaded.id} "
                f"gives {loaded.embedding_dim}: name the encoder that the model was fitted with"
            )
        return loaded

    def embed(self, sources: Paths, encoder: Encoder | str | Path | None = None) -> Embeddings:
        """Embeds audio exactly as the model's training embeddings were made.

        Args:
            sources: files, folders, lists.
            encoder: see `load_encoder`.

        Raises:
            UserError: no encoder, another one, or no input could be embedded.
        """
        return embed(sources, self.load_encoder(encoder), self.embed_config)

    def embeddings_of(
        self,
        data: Embeddings | StoredEmbeddings | np.ndarray | Paths,
        encoder: Encoder | str | Path | None = None,
    ) -> Embeddings | StoredEmbeddings:
        """The embeddings of what is given: stores are read, audio is embedded.

        Args:
            data: embeddings; a matrix [N, D], whose space the caller vouches for; the path of a
                store or embedding file; or audio files, folders and lists.
            encoder: for audio, see `load_encoder`.

        Raises:
            UserError: unreadable, or of another space.
        """
        if isinstance(data, Embeddings | StoredEmbeddings):
            self.check_space(Space.from_metadata(data.metadata), "the embeddings")
            return data
        if isinstance(data, np.ndarray):
            ids = pa.array([f"row-{i:06d}" for i in range(len(data))], pa.string())
            return Embeddings(data, pa.table({"id": ids, "path": pa.repeat("", len(data))}), {})
        paths = [data] if isinstance(data, str | os.PathLike) else data
        if "" in paths:
            raise UserError("a source is empty: name audio, or a store of embeddings")
        if len(paths) == 1 and holds_embeddings(place_of(paths[0])):
            return self.embeddings_of(open_embeddings(place_of(paths[0])))
        return self.embed(paths, encoder)

    def score(
        self,
        data: Embeddings | StoredEmbeddings | np.ndarray | Paths,
        encoder: Encoder | str | Path | None = None,
        target_fpr: float | None = None,
        target_fdr: float | None = None,
    ) -> Scores:
        """Scores every row; rank 1 is the most anomalous.

        Rows that the model was fitted on get their cross-fitted scores, so that they can stand in
        one ranking with new ones; the column `scored_as` says which are which.

        Args:
            data: see `embeddings_of`.
            encoder: for audio, see `load_encoder`.
            target_fpr: flag rows whose conformal p-value is at most this, so that at most such a
                fraction of normal rows is flagged; default: the detector's threshold.
            target_fdr: flag rows so that at most such a fraction of the flagged ones is normal.

        Raises:
            UserError: unreadable, of another space, or a rate that the calibration cannot keep.
        """
        self.check_targets(target_fpr, target_fdr)
        embeddings = self.embeddings_of(data, encoder)
        rows = embeddings.columns(SCORED_COLUMNS)
        scored = self.score_rows(rows_of(embeddings))
        table = score_table(rows, self.columns_of(rows["id"], scored, target_fpr, target_fdr))
        return Scores(table.take(np.argsort(table["rank"])), self.score_metadata())

    def score_metadata(self) -> dict[str, str]:
        """What a scores file says of the model."""
        return {
            "detector": self.name,
            "kind": self.detector.kind,
            "score_convention": "higher_is_anomalous",
            "threshold": repr(float(self.detector.threshold_)),
        }

    def score_rows(self, X: np.ndarray | RowBlocks) -> ScoredRows:
        """Scores rows [N, D]; those that the model was fitted on keep their cross-fitted scores."""
        blocks = iter_blocks(X, SCORED_ROWS) if isinstance(X, RowBlocks) else [X]
        scores, known = map(np.concatenate, zip(*map(self._scored, blocks), strict=True))
        return self.with_p_values(scores, known)

    def _scored(self, X: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Scores [N], and which rows the model was fitted on."""
        scores = self.detector.decision_function(X)
        if self.known_rows is None:
            return scores, np.zeros(len(X), bool)
        known = self.known_rows.find(X)
        scores[known >= 0] = self.detector.decision_scores_[known[known >= 0]]
        return scores, known >= 0

    def with_p_values(self, scores: np.ndarray, is_known: np.ndarray) -> ScoredRows:
        """Scores [N] beside their p-values; `is_known` says which rows the model was fitted on."""
        p_values = np.full(len(scores), np.nan)
        if self.is_calibrated:
            p_values = self.detector.p_value(scores)
            # A row that calibrates counts once: p = (1 + others at least as high) / (others + 1).
            n = len(self.detector.calibration_scores_)
            p_values[is_known] = (p_values[is_known] * (n + 1) - 1) / n
        return ScoredRows(scores, p_values, is_known)

    def columns_of(
        self,
        ids: pa.ChunkedArray,
        scored: ScoredRows,
        target_fpr: float | None = None,
        target_fdr: float | None = None,
        standing: Standing | None = None,
    ) -> pa.Table:
        """What follows from scores of n rows, in their order: see `score_table`.

        `standing` is of the corpus that they are a part of; None where they are all of it.
        """
        scores = scored.scores
        if standing is None:
            standing = Standing(scores.copy(), scored.p_values.copy())
            tied = standing.tied(scores)
            standing.order_equals(scores[tied], ids.filter(pa.array(tied)).to_pylist())
        q_values = standing.q_values(scored.p_values)
        flagged = scores > self.detector.threshold_
        if target_fpr is not None:
            flagged = scored.p_values <= target_fpr
        elif target_fdr is not None:
            flagged = q_values <= target_fdr
        tied_ids = ids.filter(pa.array(standing.tied(scores))).to_pylist()
        words = pa.array(["new", "cross_fitted"])
        said = pa.DictionaryArray.from_arrays(scored.is_cross_fitted.astype(np.int8), words)
        return pa.table({
            "score": scores,
            "percentile": self.detector.percentile(scores),
            "p_value": pa.array(scored.p_values, from_pandas=True),
            "q_value": pa.array(q_values, from_pandas=True),
            "is_anomaly": flagged,
            "rank": standing.ranks(scores, tied_ids),
            "scored_as": said.cast(pa.string()),
        })  # fmt: skip

    def check_targets(self, target_fpr: float | None, target_fdr: float | None) -> None:
        """Refuses rates that cannot be kept: `UserError` names the number of loops one needs."""
        if target_fpr is None and target_fdr is None:
            return
        if target_fpr is not None and target_fdr is not None:
            raise UserError("give either a false-positive rate or a false-discovery rate")
        if not self.is_calibrated:
            raise UserError(
                f"{self.name} has no scores of unseen loops and can keep no rate; refit"
            )
        if target_fpr is not None:
            require_attainable(target_fpr, len(self.detector.calibration_scores_))
        elif target_fdr is not None and not 0 < target_fdr < 1:
            raise UserError(f"false-discovery rate {target_fdr}: expected between 0 and 1")

    def check_space(self, found: Space | None, what: str = "the embeddings") -> None:
        """Refuses embeddings that cannot be compared with the model's.

        Raises:
            UserError: names what differs.
        """
        if self.space is None:
            if found is not None:
                log.warning(
                    "%s does not know which encoder made its training embeddings; "
                    "its scores mean something only if that was %s",
                    self.name,
                    found.encoder,
                )
            return
        differences = (
            [f"encoder: unknown instead of {self.space.encoder!r}"]
            if found is None
            else found.differences(self.space)
        )
        if differences:
            raise UserError(
                f"{what} come{'s' * (what != 'the embeddings')} from another space than the "
                f"model's: {'; '.join(differences)}"
            )

    def _location(self) -> str:
        if self.space is None:
            raise UserError(
                f"{self.name} does not know which encoder made its training embeddings: name it "
                "(--encoder), or score an embedding file of the same origin instead"
            )
        if self.space.location is None:
            raise UserError(
                f"encoder {self.space.encoder} of {self.name} was never saved: name a saved one "
                "(--encoder)"
            )
        return self.space.location


def load_model(folder: str | Path) -> Model:
    """Reads a model written by `Model.save`, a detector saved on its own, or a run's first choice.

    Raises:
        UserError: no model there, or it is damaged.
    """
    folder = model_folder(folder)
    if not (folder / "config.json").exists():
        older = " of an earlier version" if (folder / "model.json").exists() else ""
        raise UserError(
            f"{folder} holds no model{older} (config.json is missing); train one with `loopjax fit`"
        )
    detector = load_detector(folder)
    section = read_detector_config(folder).get("model")
    if section is None:
        return Model(detector, detector.kind)
    try:
        space = section["space"]
        ids, known = _training_rows(folder, section)
        space = None if space is None else Space.from_metadata(space)
        made_from = section.get("made_from")
        path = section["embeddings_path"]
        return Model(detector, section["name"], space, ids, path, known, made_from)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{folder}: the model is damaged ({error!r}); fit it again") from None


def _training_rows(folder: Path, section: dict[str, Any]) -> tuple[pa.Array, KnownRows | None]:
    """Ids and marks of the rows that a saved model was fitted on."""
    if "training_ids" in section:  # as version 0.2 saved them
        marks = section.get("known_rows")
        ids = pa.array(section["training_ids"], pa.string())
        return ids, KnownRows.from_text(marks) if marks else None
    if section["training_rows"] is None:
        return pa.array([], pa.string()), None
    rows = read_training_rows(folder)
    return rows.ids, None if rows.marks is None else KnownRows(rows.marks)


def rows_of(embeddings: Embeddings | StoredEmbeddings) -> np.ndarray | RowBlocks:
    """The embeddings [N, D] as detectors take them."""
    if isinstance(embeddings, Embeddings):
        return embeddings.matrix
    return RowBlocks(embeddings.read, embeddings.sizes, embeddings.n_features)
