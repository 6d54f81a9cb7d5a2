"""Samples in memory to embeddings: for loops that were changed and never were files.

The batches and programs are those of files, so an unchanged loop gets the embedding it has in a
store.
"""

import hashlib
from collections.abc import Callable, Sequence

import numpy as np

from loopjax.audio.batching import make_buckets
from loopjax.config import EmbedConfig
from loopjax.embedding.encode import BatchEncoder, crop_fractions
from loopjax.embedding.features import Features
from loopjax.embedding.settings import space_of
from loopjax.encoders.protocol import Encoder

BATCH_SIZE = 8


def embed_arrays(
    arrays: Sequence[np.ndarray],
    encoder: Encoder,
    rate_hz: int,
    config: EmbedConfig | None = None,
    *,
    sha256: str | None = None,
    batch_size: int = BATCH_SIZE,
    on_batch: Callable[[int], None] | None = None,
) -> np.ndarray:
    """Embeds mono arrays of one sample rate.

    Args:
        arrays: N arrays [n] of equal dtype (float32 in [-1, 1] or int16), any lengths > 0.
        encoder: from `load_encoder`.
        rate_hz: their sample rate, one that the encoder's front end takes.
        config: crops and buckets; default as in `loopjax embed`.
        sha256: hash of the file that all of them come from, from which random crops are drawn;
            None = each array's own.
        batch_size: rows per compiled call.
        on_batch: called with the number of finished arrays.

    Returns:
        float32 [N, D], in the order given.
    """
    config = config or EmbedConfig()
    space = space_of(encoder, config)
    engine = BatchEncoder[int](encoder, space, config, batch_size)
    hashes = [sha256 or _sha256(array) if space.n_crops else "" for array in arrays]
    embeddings = np.empty((len(arrays), encoder.embedding_dim), np.float32)
    done = 0
    for batch in (*engine.buckets.batches(arrays, rate_hz, hashes), None):
        for encoded in engine.encode(batch) if batch is not None else engine.finish():
            embeddings[encoded.row] = encoded.embedding
            done += 1
        if on_batch is not None:
            on_batch(done)
    return embeddings


def features_of(
    samples: np.ndarray,
    encoder: Encoder,
    rate_hz: int,
    config: EmbedConfig | None = None,
    *,
    sha256: str | None = None,
) -> Features:
    """What the encoder sees of one mono array [n]: mel [1, views, frames, bins], longer [1].

    With random crops, the first draw's.
    """
    config = config or EmbedConfig()
    buckets = make_buckets(config.buckets_s, config.max_duration_s, 1)
    digest = sha256 or _sha256(samples)
    (batch,) = buckets.batches([samples], rate_hz, [digest])
    fractions = crop_fractions([digest], 0) if space_of(encoder, config).n_crops else None
    return encoder.front_end(batch.samples, batch.length_samples, rate_hz, fractions)


def as_float(samples: np.ndarray) -> np.ndarray:
    """int16 or float32 [n] as float32 in [-1, 1]."""
    if samples.dtype == np.int16:
        return samples.astype(np.float32) / np.float32(32768)
    return samples


def _sha256(samples: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(samples).tobytes()).hexdigest()
