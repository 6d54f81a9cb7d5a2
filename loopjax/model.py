"""A trained model: a detector, the space of the embeddings it was fitted on, and its calibration.

Scoring, explaining, reporting and converting go through it, in Python as on the command line. A
model is one folder: the detector's, whose `config.json` says in a section `model` what else there
is to know. A detector saved on its own is a model of an unknown space.
"""

import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from loopjax.config import DetectorConfig, EmbedConfig, nearest
from loopjax.detectors import detector_class, make_detector
from loopjax.detectors.base import Detector
from loopjax.detectors.crossfit import fit_and_cross_fit
from loopjax.detectors.known_rows import KnownRows
from loopjax.detectors.storage import load_detector, read_detector_config, save_detector
from loopjax.embedding.chain import embed
from loopjax.embedding.settings import as_encoder, config_of, space_of
from loopjax.encoders.protocol import Encoder
from loopjax.encoders.space import Space
from loopjax.errors import UserError
from loopjax.evaluation.conformal import adjusted_p_values, require_attainable
from loopjax.store.foreign import SUFFIXES
from loopjax.store.read import Embeddings, part_files, read_embeddings
from loopjax.store.scores import Scores

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
        training_ids: ids of the rows it was fitted on.
        embeddings_path: the store or file that held them, for nearest neighbors.
        known_rows: the rows it was fitted on, in the order of the detector's training scores; None
            where those are not cross-fitted.
    """

    detector: Detector
    name: str
    space: Space | None = None
    training_ids: tuple[str, ...] = ()
    embeddings_path: str | None = None
    known_rows: KnownRows | None = field(default=None, compare=False, repr=False)

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
            "training_ids": list(self.training_ids),
            "embeddings_path": self.embeddings_path,
            "known_rows": self.known_rows.to_text() if self.known_rows else None,
        }
        return save_detector(self.detector, Path(folder), {"model": section})

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
        self, data: Embeddings | np.ndarray | Paths, encoder: Encoder | str | Path | None = None
    ) -> Embeddings:
        """The embeddings of what is given: stores are read, audio is embedded.

        Args:
            data: embeddings; a matrix [N, D], whose space the caller vouches for; the path of a
                store or embedding file; or audio files, folders and lists.
            encoder: for audio, see `load_encoder`.

        Raises:
            UserError: unreadable, or of another space.
        """
        if isinstance(data, Embeddings):
            self.check_space(Space.from_metadata(data.metadata), "the embeddings")
            return data
        if isinstance(data, np.ndarray):
            ids = [f"row-{i:06d}" for i in range(len(data))]
            table = pa.table({"id": ids, "path": pa.array([""] * len(data), pa.string())})
            return Embeddings(data, table, {})
        paths = [data] if isinstance(data, str | os.PathLike) else data
        if len(paths) == 1 and _holds_embeddings(Path(paths[0])):
            return self.embeddings_of(read_embeddings(Path(paths[0])))
        return self.embed(paths, encoder)

    def score(
        self,
        data: Embeddings | np.ndarray | Paths,
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
        scored = self.score_rows(embeddings.matrix)
        q_values = adjusted_p_values(scored.p_values)
        flagged = scored.scores > self.detector.threshold_
        if target_fpr is not None:
            flagged = scored.p_values <= target_fpr
        elif target_fdr is not None:
            flagged = q_values <= target_fdr
        return Scores(
            self._score_table(embeddings.table, scored, q_values, flagged),
            {
                "detector": self.name,
                "kind": self.detector.kind,
                "score_convention": "higher_is_anomalous",
                "threshold": repr(float(self.detector.threshold_)),
            },
        )

    def score_rows(self, X: np.ndarray) -> ScoredRows:
        """Scores rows [N, D]; those that the model was fitted on keep their cross-fitted scores."""
        detector = self.detector
        known = np.full(len(X), -1) if self.known_rows is None else self.known_rows.find(X)
        is_known, scores = known >= 0, detector.decision_function(X)
        if is_known.any():
            scores[is_known] = detector.decision_scores_[known[is_known]]
        p_values = np.full(len(scores), np.nan)
        if self.is_calibrated:
            p_values = detector.p_value(scores)
            # A row that calibrates counts once: p = (1 + others at least as high) / (others + 1).
            n = len(detector.calibration_scores_)
            p_values[is_known] = (p_values[is_known] * (n + 1) - 1) / n
        return ScoredRows(scores, p_values, is_known)

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

    def _score_table(
        self, rows: pa.Table, scored: ScoredRows, q_values: np.ndarray, flagged: np.ndarray
    ) -> pa.Table:
        scores = scored.scores
        ids = np.asarray(rows["id"].to_pylist(), object)
        order = np.lexsort((ids.astype(str), -scores))
        rank = np.empty(len(scores), np.int64)
        rank[order] = np.arange(1, len(scores) + 1)
        columns: dict[str, Any] = {
            "id": ids,
            "path": rows["path"].to_pylist(),
            "score": scores,
            "percentile": self.detector.percentile(scores),
            "p_value": pa.array(scored.p_values, from_pandas=True),
            "q_value": pa.array(q_values, from_pandas=True),
            "is_anomaly": flagged,
            "rank": rank,
            "scored_as": ["cross_fitted" if known else "new" for known in scored.is_cross_fitted],
        }
        for name in ("group", "flags", "duration_s"):
            if name in rows.column_names:
                columns[name] = rows[name]
        return pa.table(columns).take(pa.array(order))


def load_model(folder: str | Path) -> Model:
    """Reads a model written by `Model.save`, or a detector saved on its own.

    Raises:
        UserError: no model there, or it is damaged.
    """
    folder = Path(folder)
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
        space, known = section["space"], section.get("known_rows")
        return Model(
            detector,
            section["name"],
            None if space is None else Space.from_metadata(space),
            tuple(section["training_ids"]),
            section["embeddings_path"],
            KnownRows.from_text(known) if known else None,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{folder}: the model is damaged ({error!r}); fit it again") from None


def check_params(config: DetectorConfig) -> None:
    """Refuses hyper-parameters that the detector does not have, before any work is done.

    Raises:
        UserError: names the key and the nearest known one.
    """
    known = detector_class(config.kind)().get_params()
    for key in config.params:
        if key not in known:
            raise UserError(
                f"detectors.{config.name}.params.{key}: {config.kind} has no such parameter"
                f"{nearest(key, known)}; it has {', '.join(known)}"
            )


def fit_models(
    embeddings: Embeddings,
    train: np.ndarray,
    config: DetectorConfig,
    seeds: Sequence[int] = (0,),
    *,
    folds: np.ndarray | None = None,
    threshold: Callable[[np.ndarray], float] | None = None,
    embeddings_path: str | None = None,
    extra: dict[str, Any] | None = None,
) -> list[Model]:
    """Fits one detector per seed; threshold, percentiles and p-values come from unseen scores.

    Deep SVDD heads of all seeds train together.

    Args:
        embeddings: the matrix and its row table.
        train: bool [N], the rows to fit on.
        config: kind and hyper-parameters.
        seeds: become `random_state` where the detector has one.
        folds: int [N], the folds of cross-fitting; None: training scores are those of the fitted
            detector itself, and the rows that do not train calibrate it.
        threshold: from the training scores; default: the detector's `contamination`.
        embeddings_path: where the embeddings are, for `explain`.
        extra: run-time arguments of the constructor (callbacks, checkpoint folder).
    """
    check_params(config)
    known = detector_class(config.kind)().get_params()
    detectors = []
    for seed in seeds:
        params = {"random_state": seed} | config.params | (extra or {})
        params = {key: value for key, value in params.items() if key in known}
        detectors.append(make_detector(config.kind, **params))
    rows = embeddings.matrix[train]
    if folds is not None:
        fit_and_cross_fit(detectors, rows, folds[train], len(np.unique(folds[train])))
    else:
        for detector in detectors:
            detector.fit(rows)
            if not train.all():
                detector.calibrate(embeddings.matrix[~train])
    if threshold is not None:
        for detector in detectors:
            detector.set_fitted({"threshold_": threshold(detector.decision_scores_)})
    space = Space.from_metadata(embeddings.metadata)
    ids = tuple(np.asarray(embeddings.table["id"].to_pylist(), object)[train])
    known_rows = None if folds is None else KnownRows.of(rows)
    return [Model(d, config.name, space, ids, embeddings_path, known_rows) for d in detectors]


def _holds_embeddings(path: Path) -> bool:
    """Whether a path is a store, a run folder with one, or an embedding file."""
    if path.is_dir():
        return bool(part_files(path) or part_files(path / "embeddings"))
    return path.suffix in SUFFIXES
