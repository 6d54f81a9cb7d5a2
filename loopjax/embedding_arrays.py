"""Samples in memory to embeddings: for loops that were changed and never were files.

Uses the buckets and the two compiled programs of corpus embedding, so an unchanged loop gets the
embedding it has in a store.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from loopjax.audio.batching import make_buckets
from loopjax.config import EmbedConfig

BATCH_SIZE = 8


def embed_arrays(
    arrays: Sequence[np.ndarray],
    encoder: Any,
    rate_hz: int,
    options: EmbedConfig | None = None,
    *,
    batch_size: int = BATCH_SIZE,
    on_batch: Callable[[int], None] | None = None,
) -> np.ndarray:
    """Embeds mono arrays of one sample rate.

    Args:
        arrays: N arrays [n] of equal dtype (float32 in [-1, 1] or int16), any lengths > 0.
        encoder: from `load_encoder`.
        rate_hz: their sample rate, one that the encoder's front end takes.
        options: the buckets; default as in `loopjax embed`.
        batch_size: rows per compiled call.
        on_batch: called with the number of finished arrays.

    Returns:
        float32 [N, D], in the order given.
    """
    options = options or EmbedConfig()
    buckets = make_buckets(options.buckets_s, options.max_duration_s, batch_size)
    by_bucket: dict[int, list[int]] = {}
    for i, array in enumerate(arrays):
        by_bucket.setdefault(buckets.samples(len(array), rate_hz), []).append(i)
    embeddings = np.empty((len(arrays), encoder.embedding_dim), np.float32)
    done = 0
    for size, members in sorted(by_bucket.items()):
        for start in range(0, len(members), batch_size):
            part = members[start : start + batch_size]
            samples = np.zeros((batch_size, size), arrays[part[0]].dtype)
            lengths = np.zeros(batch_size, np.int32)
            for row, i in enumerate(part):
                samples[row, : len(arrays[i])] = arrays[i]
                lengths[row] = len(arrays[i])
            mel, longer = encoder.front_end(samples, lengths, rate_hz)
            embeddings[part] = np.asarray(encoder.encode(mel, longer), np.float32)[: len(part)]
            done += len(part)
            if on_batch is not None:
                on_batch(done)
    return embeddings
