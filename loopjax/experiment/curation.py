"""What a report says beyond the ranking: copies, wrong folders, where a loop stands out."""

import os
from pathlib import Path

import numpy as np

from loopjax.audio.decode import Decoded
from loopjax.embedding.muted import bands_of, segments_of, without_parts
from loopjax.embedding.read import read_samples
from loopjax.embedding.samples import as_float, embed_arrays
from loopjax.encoders.protocol import Encoder
from loopjax.errors import UserError
from loopjax.library.dedup import dedup
from loopjax.library.mislabelled import mislabelled
from loopjax.model import Model
from loopjax.report.lists import Curated, Reason
from loopjax.store.blocks import open_rows
from loopjax.store.scores import Scores

MAX_CURATED = 20_000  # rows of a store that copies and wrong folders are looked for in
MAX_HEARD = 200  # pairs that are compared by listening; of others embeddings decide


def curate(store: str | Path, group_depth: int = 0) -> Curated:
    """Looks for copies and for loops in wrong folders, in stores of a moderate size.

    Args:
        store: with the embeddings of all loops.
        group_depth: folders of a group that count; 0: all.

    Raises:
        UserError: the store is unreadable.
    """
    if open_rows(store).n_rows > MAX_CURATED:
        note = (
            f"Copies and mislabelled loops were not looked for among more than {MAX_CURATED} "
            "loops: `loopjax dedup` and `loopjax mislabelled` find them."
        )
        return Curated(notes=(note,))
    copies = wrong = None
    try:
        copies = dedup(store, max_heard=MAX_HEARD).table
        found = mislabelled(store, depth=group_depth).table
        wrong = found.filter(np.asarray(found["margin"]) > 0)
    except UserError:  # one loop, one folder, no folders: there is nothing to compare
        pass
    return Curated(copies, wrong)


def find_reasons(
    model: Model, scores: Scores, store: str | Path, count: int, encoder: Encoder | None = None
) -> dict[str, Reason]:
    """Finds out where the most anomalous loops stand out, by their ids.

    Loops whose files are gone are left out, and all of them where nobody knows the encoder.

    Args:
        model: that ranked them.
        scores: ranked; flagged loops are explained.
        store: with the exact paths of the files.
        count: how many loops.
        encoder: the model's, if it has been loaded.
    """
    flagged = scores.table.filter(scores.table["is_anomaly"]).slice(0, count)
    rows = open_rows(store)
    if not len(flagged) or "path_bytes" not in rows.columns:
        return {}
    ids = flagged["id"].to_pylist()
    at = rows.find(ids)
    known = [(row_id, row) for row_id, row in zip(ids, at.tolist(), strict=True) if row >= 0]
    files = rows.take(np.array([row for _, row in known], int), ["path_bytes"])["path_bytes"]
    found = {}
    for (row_id, _), file in zip(known, files.to_pylist(), strict=True):
        try:
            encoder = encoder or model.load_encoder()
            sound = read_samples(os.fsdecode(file), encoder, model.embed_config)
        except UserError:
            continue
        found[row_id] = reason_of(model, sound, encoder)
    return found


def reason_of(model: Model, sound: Decoded, encoder: Encoder) -> Reason:
    """The segment and the band of a loop whose muting lowers its score most.

    Args:
        model: its scores count.
        sound: decoded for this encoder.
        encoder: the model's.
    """
    rate_hz, wave = sound.info.rate_hz, as_float(sound.samples)
    arrays = [wave, *without_parts(wave, rate_hz)]
    rows = embed_arrays(arrays, encoder, rate_hz, model.embed_config, sha256=sound.info.sha256)
    base, *rest = model.detector.decision_function(rows)
    segments, bands = segments_of(len(wave)), bands_of(rate_hz)
    drops = base - np.array(rest)
    segment_drops, band_drops = drops[: len(segments)], drops[len(segments) :]
    start, end = segments[int(segment_drops.argmax())]
    low_hz, high_hz = bands[int(band_drops.argmax())]
    has_segment, has_band = segment_drops.max() > 0, band_drops.max() > 0
    return Reason(
        start / rate_hz if has_segment else None,
        end / rate_hz if has_segment else None,
        low_hz if has_band else None,
        high_hz if has_band else None,
    )
