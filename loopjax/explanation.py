"""Why a loop got its score: where in time, in which band, against which normal loops.

Every number is an honest re-scoring of changed audio; no gradients, no surrogate model.
"""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from loopjax.embedding.muted import bands_of, segments_of, without_parts
from loopjax.embedding.read import read_samples
from loopjax.embedding.samples import as_float, embed_arrays, features_of
from loopjax.encoders.protocol import Encoder
from loopjax.htsat.frontend import mel_centers_hz
from loopjax.model import Model, rows_of
from loopjax.store.read import Embeddings
from loopjax.store.stream import StoredEmbeddings

N_NEAREST = 5
MIN_WINDOW_S, MAX_WINDOWS = 0.5, 15
TOO_SHORT_S = 0.5


@dataclass(frozen=True)
class Window:
    """An excerpt scored on its own."""

    start_s: float
    end_s: float
    score: float


@dataclass(frozen=True)
class Token:
    """One time step of the encoder; the mean over all steps is the embedding itself."""

    time_s: float
    score: float


@dataclass(frozen=True)
class MutedSegment:
    """The loop without this stretch of time; `drop` is the score that is lost with it."""

    start_s: float
    end_s: float
    score: float
    drop: float


@dataclass(frozen=True)
class MutedBand:
    """The loop without these frequencies; `drop` is the score that is lost with them."""

    low_hz: float
    high_hz: float
    score: float
    drop: float


@dataclass(frozen=True)
class Neighbor:
    """A normal loop near by."""

    id: str
    path: str
    group: str | None
    cosine: float
    distance: float


@dataclass(frozen=True)
class Explanation:
    """Why one loop got its score; `to_dict` is ready for JSON.

    Attributes:
        file: the loop.
        duration_s: of the file.
        encoder: id of the encoder.
        detector: kind of the detector.
        score: of the whole loop.
        percentile: training scores at or below it, in percent.
        p_value: conformal; None without calibration.
        threshold: above which loops count as anomalous.
        is_anomaly: whether this one does.
        flags: what is remarkable about the file: clipped, silence, too_short, ...
        windows: scores of half-overlapping excerpts.
        tokens: scores of the encoder's time steps; none for encoders without.
        muted_segments: eight equal stretches of time.
        muted_bands: eight bands of equal width on the mel scale.
        neighbors: the nearest normal loops, nearest first.
        samples: float32 [n], the loop, for pictures.
        log_mel: float32 [bands, frames], the loop as the encoder sees it, for pictures.
        mel_hz: float64 [bands], the middle of each band.
    """

    file: str
    duration_s: float
    encoder: str
    detector: str
    score: float
    percentile: float
    p_value: float | None
    threshold: float
    is_anomaly: bool
    flags: tuple[str, ...]
    windows: tuple[Window, ...]
    tokens: tuple[Token, ...]
    muted_segments: tuple[MutedSegment, ...]
    muted_bands: tuple[MutedBand, ...]
    neighbors: tuple[Neighbor, ...]
    samples: np.ndarray = field(repr=False, compare=False)
    log_mel: np.ndarray = field(repr=False, compare=False)
    mel_hz: np.ndarray = field(repr=False, compare=False)

    @property
    def strongest(self) -> MutedSegment | MutedBand | None:
        """The part whose muting lowers the score most; None if none does."""
        parts: list[MutedSegment | MutedBand] = [*self.muted_segments, *self.muted_bands]
        best = max(parts, key=lambda part: part.drop, default=None)
        return None if best is None or best.drop <= 0 else best

    def to_dict(self) -> dict[str, Any]:
        """As plain values, without the arrays, with `strongest`."""
        plain: dict[str, Any] = {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in dataclasses.asdict(self).items()
            if key not in ("samples", "log_mel", "mel_hz")
        }
        best = self.strongest
        plain["strongest"] = best and {
            "kind": "band" if isinstance(best, MutedBand) else "segment",
            **dataclasses.asdict(best),
            "fraction_of_score": best.drop / max(self.score, 1e-30),
        }
        return plain


def explain(
    model: Model,
    file: str | Path,
    encoder: Encoder | str | Path | None = None,
    neighbors_from: Embeddings | StoredEmbeddings | None = None,
) -> Explanation:
    """Explains one loop's score.

    Args:
        model: its scores are explained.
        file: the loop.
        encoder: instead of the one that the model names, see `Model.load_encoder`.
        neighbors_from: embeddings among which the nearest normal loops are looked up; loops that
            the detector flags, and the file itself, are left out.

    Raises:
        UserError: the file cannot be decoded, or encoder or embeddings are not the model's.
    """
    encoder, config, detector = model.load_encoder(encoder), model.embed_config, model.detector
    known = None if neighbors_from is None else model.embeddings_of(neighbors_from)
    sound = read_samples(file, encoder, config)
    info, samples = sound.info, sound.samples
    rate_hz, sha256 = info.rate_hz, info.sha256
    wave = as_float(samples)
    windows = _windows(len(samples), rate_hz)
    segments = segments_of(len(samples))
    bands_hz = bands_of(rate_hz)
    embedding = embed_arrays([samples], encoder, rate_hz, config, sha256=sha256)
    changed = [*(wave[start:end] for start, end in windows), *without_parts(wave, rate_hz)]
    scores = detector.decision_function(
        embed_arrays(changed, encoder, rate_hz, config, sha256=sha256)
    )
    own = model.score_rows(embedding)
    score = float(own.scores[0])
    # Changed audio is new to the detector, so what it loses is measured against its own score.
    base = float(detector.decision_function(embedding)[0])
    window_scores, segment_scores, band_scores = (
        part.tolist() for part in np.split(scores, [len(windows), len(windows) + len(segments)])
    )
    mel, longer = features_of(samples, encoder, rate_hz, config, sha256=sha256)
    outputs = encoder.outputs(mel, longer)
    clip_s = encoder.clip_samples / encoder.sample_rate_hz
    n_frames = max(1, round(mel.shape[2] * min(1.0, info.duration_s / clip_s)))
    return Explanation(
        file=str(file),
        duration_s=info.duration_s,
        encoder=encoder.id,
        detector=detector.kind,
        score=score,
        percentile=float(detector.percentile([score])[0]),
        p_value=float(own.p_values[0]) if model.is_calibrated else None,
        threshold=float(detector.threshold_),
        is_anomaly=bool(score > detector.threshold_),
        flags=(*info.flags, *(["too_short"] if info.duration_s < TOO_SHORT_S else [])),
        windows=tuple(
            Window(a / rate_hz, b / rate_hz, s)
            for (a, b), s in zip(windows, window_scores, strict=True)
        ),
        tokens=_tokens(model, outputs.get("fine_grained"), clip_s, len(samples) / rate_hz),
        muted_segments=tuple(
            MutedSegment(a / rate_hz, b / rate_hz, s, base - s)
            for (a, b), s in zip(segments, segment_scores, strict=True)
        ),
        muted_bands=tuple(
            MutedBand(low, high, s, base - s)
            for (low, high), s in zip(bands_hz, band_scores, strict=True)
        ),
        neighbors=_neighbors(model, embedding[0], sha256, known),
        samples=wave,
        log_mel=np.asarray(mel[0, 0])[:n_frames].T,
        mel_hz=mel_centers_hz(encoder.mel_config),
    )


def _windows(n_samples: int, rate_hz: int) -> list[tuple[int, int]]:
    """Half-overlapping excerpts, none shorter than half a second, at most MAX_WINDOWS."""
    shortest = int(MIN_WINDOW_S * rate_hz)
    if n_samples < 2 * shortest:
        return []
    length = max(shortest, -(-2 * n_samples // (MAX_WINDOWS + 1)))
    starts = np.linspace(0, n_samples - length, max(2, 2 * n_samples // length - 1)).astype(int)
    return [(int(start), int(start) + length) for start in starts]


def _tokens(model: Model, steps: Any, clip_s: float, duration_s: float) -> tuple[Token, ...]:
    """Scores the encoder's own time steps [1, T, D].

    A clip shorter than the encoder's is repeated to fill it; the steps of its first pass are
    returned. Encoders without time steps give none.
    """
    if steps is None:
        return ()
    rows = np.asarray(steps[0], np.float32)
    changes = np.flatnonzero(np.any(np.diff(rows, axis=0) != 0, axis=1)) + 1
    first = np.r_[0, changes]
    middle_s = (first + np.r_[changes, len(rows)]) / 2 / len(rows) * max(clip_s, duration_s)
    scores = model.detector.decision_function(rows[first])
    inside = middle_s <= max(duration_s, float(middle_s[0]))
    times = zip(middle_s[inside].tolist(), scores[inside].tolist(), strict=True)
    return tuple(Token(time_s, score) for time_s, score in times)


def _neighbors(
    model: Model, embedding: np.ndarray, sha256: str, known: Embeddings | StoredEmbeddings | None
) -> tuple[Neighbor, ...]:
    if known is None or not len(known):
        return ()
    rows = rows_of(known)
    normal = model.score_rows(rows).scores <= model.detector.threshold_
    hashes = known.columns(["sha256"])
    if hashes.num_columns:
        normal &= np.array([value != sha256 for value in hashes["sha256"].to_pylist()])
    target = embedding / max(float(np.linalg.norm(embedding)), 1e-12)
    cosine = np.concatenate([
        block / np.maximum(np.linalg.norm(block, axis=1, keepdims=True), 1e-12) @ target
        for block in ([rows] if isinstance(rows, np.ndarray) else rows)
    ])  # fmt: skip
    order = np.argsort(-np.where(normal, cosine, -np.inf), kind="stable")[:N_NEAREST]
    order = order[normal[order]]
    nearest = known.only(np.isin(np.arange(len(known)), order)).load()
    table = nearest.table
    return tuple(
        Neighbor(
            id=table["id"][place].as_py(),
            path=table["path"][place].as_py(),
            group=table["group"][place].as_py() if "group" in table.column_names else None,
            cosine=float(cosine[row]),
            distance=float(np.linalg.norm(nearest.matrix[place] - embedding)),
        )
        for row, place in zip(order, np.searchsorted(np.sort(order), order), strict=True)
    )
