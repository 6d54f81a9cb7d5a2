"""Why a loop got its score: where in time, in which band, against which normal loops.

Joins encoder and detector for one file. Every number is an honest re-scoring of changed audio; no
gradients, no surrogate model. A picture and a JSON file say the same thing.
"""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from loopjax.audio.decode import Decoded
from loopjax.config import EmbedConfig
from loopjax.embedding.arrays import as_float, embed_arrays, read_samples
from loopjax.errors import UserError
from loopjax.io import write_json
from loopjax.store.read import Embeddings

N_SEGMENTS = 8
N_BANDS = 8
N_NEAREST = 5
MIN_WINDOW_S, MAX_WINDOWS = 0.5, 15
TOO_SHORT_S = 0.5
FADE_S = 0.005  # around a muted segment, so that the cut itself adds no click
PICTURE_COLUMNS = 800
LOWEST_BAND_HZ = 60.0


def explain(
    detector: Any,
    encoder: Any,
    file: str | Path,
    neighbors_from: Embeddings | None = None,
    out_dir: str | Path | None = None,
    options: EmbedConfig | None = None,
) -> dict[str, Any]:
    """Explains one loop's score and, with `out_dir`, writes `explain.svg` and `explain.json`.

    Args:
        detector: fitted; its scores are explained.
        encoder: the one whose embeddings the detector was fitted on.
        file: the loop.
        neighbors_from: embeddings among which the nearest normal loops are looked up; loops that
            the detector flags, and the file itself, are left out.
        out_dir: folder for the picture and the JSON.
        options: decoding and buckets as for the store.

    Returns:
        `score`, `percentile`, `p_value` (null without calibration), `threshold`, `is_anomaly`,
        `flags`, `windows` (score of each excerpt), `tokens` (score of each HTS-AT time step),
        `muted_segments` and `muted_bands` (`drop` = score lost when that part is silenced),
        `strongest` (the part whose muting lowers the score most, null if none does),
        `neighbors`, and the paths written.

    Raises:
        UserError: the file cannot be decoded, or the detector is not of this encoder.
    """
    options = options or EmbedConfig()
    file = Path(file)
    if detector.n_features_in_ != encoder.embedding_dim:
        raise UserError(
            f"the model scores {detector.n_features_in_} numbers, encoder {encoder.id} gives "
            f"{encoder.embedding_dim}: name the encoder that the model was fitted with"
        )
    sound = read_samples(file, encoder, options)
    samples, rate_hz = sound.samples, sound.info.rate_hz
    wave = as_float(samples)
    windows = _windows(len(samples), rate_hz)
    segments = _segments(len(samples))
    bands_hz = _bands_hz(rate_hz)
    embedding = embed_arrays([samples], encoder, rate_hz, options)
    changed = [
        *(wave[start:end] for start, end in windows),
        *(mute_segment(wave, *segment, int(FADE_S * rate_hz)) for segment in segments),
        *(mute_band(wave, rate_hz, *band) for band in bands_hz),
    ]
    scores = detector.decision_function(embed_arrays(changed, encoder, rate_hz, options))
    score = float(detector.decision_function(embedding)[0])
    window_scores, segment_scores, band_scores = np.split(
        scores, [len(windows), len(windows) + len(segments)]
    )
    calibrated = hasattr(detector, "calibration_scores_")
    result: dict[str, Any] = {
        "file": str(file),
        "duration_s": sound.info.duration_s,
        "encoder": encoder.id,
        "detector": detector.kind,
        "score": score,
        "percentile": float(detector.percentile([score])[0]),
        "p_value": float(detector.p_value([score])[0]) if calibrated else None,
        "threshold": float(detector.threshold_),
        "is_anomaly": bool(score > detector.threshold_),
        "flags": _flags(sound),
        "windows": [
            {"start_s": a / rate_hz, "end_s": b / rate_hz, "score": float(s)}
            for (a, b), s in zip(windows, window_scores, strict=True)
        ],
        "tokens": _token_scores(detector, encoder, samples, rate_hz, options),
        "muted_segments": [
            {"start_s": a / rate_hz, "end_s": b / rate_hz, "score": float(s), "drop": score - s}
            for (a, b), s in zip(segments, segment_scores.tolist(), strict=True)
        ],
        "muted_bands": [
            {"low_hz": low, "high_hz": high, "score": float(s), "drop": score - s}
            for (low, high), s in zip(bands_hz, band_scores.tolist(), strict=True)
        ],
        "neighbors": _neighbors(detector, embedding[0], sound.info.sha256, neighbors_from),
    }
    result["strongest"] = _strongest(result)
    if out_dir is not None:
        _write(result, wave, encoder, samples, rate_hz, Path(out_dir))
    return result


def mute_segment(samples: np.ndarray, start: int, end: int, fade_samples: int) -> np.ndarray:
    """Silences samples [start, end) of float32 [n], with cosine fades outside of it."""
    gain = np.ones(len(samples), np.float32)
    gain[start:end] = 0.0
    fade = 0.5 + 0.5 * np.cos(np.pi * (np.arange(fade_samples) + 1) / (fade_samples + 1))
    before = gain[max(0, start - fade_samples) : start]
    before[:] = fade[len(fade) - len(before) :]
    after = gain[end : end + fade_samples]
    after[:] = fade[::-1][: len(after)]
    return samples * gain


def mute_band(samples: np.ndarray, rate_hz: int, low_hz: float, high_hz: float) -> np.ndarray:
    """Removes frequencies [low, high) from float32 [n]."""
    spectrum = np.fft.rfft(samples)
    frequency_hz = np.fft.rfftfreq(len(samples), 1 / rate_hz)
    spectrum[(frequency_hz >= low_hz) & (frequency_hz < high_hz)] = 0
    return np.fft.irfft(spectrum, len(samples)).astype(np.float32)


def _windows(n_samples: int, rate_hz: int) -> list[tuple[int, int]]:
    """Half-overlapping excerpts, none shorter than half a second, at most MAX_WINDOWS."""
    shortest = int(MIN_WINDOW_S * rate_hz)
    if n_samples < 2 * shortest:
        return []
    length = max(shortest, -(-2 * n_samples // (MAX_WINDOWS + 1)))
    starts = np.linspace(0, n_samples - length, max(2, 2 * n_samples // length - 1)).astype(int)
    return [(int(start), int(start) + length) for start in starts]


def _segments(n_samples: int) -> list[tuple[int, int]]:
    edges = np.linspace(0, n_samples, N_SEGMENTS + 1).astype(int).tolist()
    return [(a, b) for a, b in itertools.pairwise(edges) if b > a]


def _bands_hz(rate_hz: int) -> list[tuple[float, float]]:
    """Bands of equal width on the mel scale, from 0 Hz to the Nyquist frequency."""
    ends = 2595 * np.log10(1 + np.array([LOWEST_BAND_HZ, rate_hz / 2]) / 700)
    edges = 700 * (10 ** (np.linspace(ends[0], ends[1], N_BANDS + 1) / 2595) - 1)
    edges[0], edges[-1] = 0.0, rate_hz / 2 + 1.0
    edges = edges.round(1).tolist()
    return list(itertools.pairwise(edges))


def _flags(sound: Decoded) -> list[str]:
    short = ["too_short"] if sound.info.duration_s < TOO_SHORT_S else []
    return [*sound.info.flags, *short]


def _token_scores(
    detector: Any, encoder: Any, samples: np.ndarray, rate_hz: int, options: EmbedConfig
) -> list[dict[str, float]]:
    """Scores the encoder's own time steps; their mean over time is the embedding itself.

    A clip shorter than the encoder's is repeated to fill it; the steps of its first pass are
    returned. Encoders without time steps give none.
    """
    padded = _one_batch(samples, rate_hz, options)
    outputs = encoder.outputs(*encoder.front_end(padded, np.array([len(samples)]), rate_hz))
    if "fine_grained" not in outputs:
        return []
    steps = np.asarray(outputs["fine_grained"][0], np.float32)
    changes = np.flatnonzero(np.any(np.diff(steps, axis=0) != 0, axis=1)) + 1
    first = np.r_[0, changes]
    clip_s = max(encoder.clip_samples / encoder.sample_rate_hz, len(samples) / rate_hz)
    middle_s = (first + np.r_[changes, len(steps)]) / 2 / len(steps) * clip_s
    scores = detector.decision_function(steps[first])
    inside = middle_s <= max(len(samples) / rate_hz, float(middle_s[0]))
    return [
        {"time_s": float(t), "score": float(s)}
        for t, s in zip(middle_s[inside], scores[inside], strict=True)
    ]


def _one_batch(samples: np.ndarray, rate_hz: int, options: EmbedConfig) -> np.ndarray:
    from loopjax.audio.batching import make_buckets

    size = make_buckets(options.buckets_s, options.max_duration_s, 1).samples(len(samples), rate_hz)
    padded = np.zeros((1, size), samples.dtype)
    padded[0, : len(samples)] = samples
    return padded


def _neighbors(
    detector: Any, embedding: np.ndarray, sha256: str, known: Embeddings | None
) -> list[dict[str, Any]]:
    if known is None or not len(known.matrix):
        return []
    normal = detector.decision_function(known.matrix) <= detector.threshold_
    if "sha256" in known.table.column_names:
        normal &= np.array([value != sha256 for value in known.table["sha256"].to_pylist()])
    unit = known.matrix / np.maximum(np.linalg.norm(known.matrix, axis=1, keepdims=True), 1e-12)
    cosine = unit @ (embedding / max(float(np.linalg.norm(embedding)), 1e-12))
    order = np.argsort(-np.where(normal, cosine, -np.inf), kind="stable")
    nearest = [int(row) for row in order[:N_NEAREST] if normal[row]]
    table = known.table
    groups = table["group"].to_pylist() if "group" in table.column_names else None
    return [
        {
            "id": table["id"][row].as_py(),
            "path": table["path"][row].as_py(),
            "group": groups[row] if groups else None,
            "cosine": float(cosine[row]),
            "distance": float(np.linalg.norm(known.matrix[row] - embedding)),
        }
        for row in nearest
    ]


def _strongest(result: dict[str, Any]) -> dict[str, Any] | None:
    parts: Sequence[dict[str, Any]] = [*result["muted_segments"], *result["muted_bands"]]
    best = max(parts, key=lambda part: part["drop"], default=None)
    if best is None or best["drop"] <= 0:
        return None
    kind = "band" if "low_hz" in best else "segment"
    return {"kind": kind, **best, "share_of_score": best["drop"] / max(result["score"], 1e-30)}


def _write(
    result: dict[str, Any],
    wave: np.ndarray,
    encoder: Any,
    samples: np.ndarray,
    rate_hz: int,
    out_dir: Path,
) -> None:
    from loopjax.audio.preview import outline

    try:
        from loopjax.report.figures import explanation
    except ImportError:
        raise UserError("pictures need matplotlib: pip install 'loopjax[report]'") from None
    options = EmbedConfig()
    padded = _one_batch(samples, rate_hz, options)
    mel, _ = encoder.front_end(padded, np.array([len(samples)]), rate_hz)
    mel = np.asarray(mel[0, 0])
    clip_s = encoder.clip_samples / encoder.sample_rate_hz
    shown = max(1, round(len(mel) * min(1.0, result["duration_s"] / clip_s)))
    parts = {
        "duration_s": result["duration_s"],
        "waveform": outline(wave, PICTURE_COLUMNS),
        "mel": mel[:shown].T,
        "time_s": [(w["start_s"] + w["end_s"]) / 2 for w in result["windows"]],
        "score": [w["score"] for w in result["windows"]],
        "token_time_s": [t["time_s"] for t in result["tokens"]],
        "token_score": [t["score"] for t in result["tokens"]],
        "full_score": result["score"],
        "threshold": result["threshold"],
        "segment_drop": [s["drop"] for s in result["muted_segments"]],
        "band_drop": [b["drop"] for b in result["muted_bands"]],
    }
    picture = explanation(parts, out_dir / "explain.svg", title=Path(result["file"]).name)
    result["picture"], result["json"] = str(picture), str(out_dir / "explain.json")
    write_json(out_dir / "explain.json", result, allow_nan=False)
