"""Samples in memory to embeddings: for loops that were changed and never were files.

Uses the buckets and the two compiled programs of corpus embedding, so an unchanged loop gets the
embedding it has in a store.
"""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from loopjax.audio.batching import make_buckets
from loopjax.audio.decode import Decoded, DecodeOptions, decode_file
from loopjax.audio.loop import DecodeError
from loopjax.config import EmbedConfig
from loopjax.errors import UserError

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


def read_samples(file: str | Path, encoder: Any, options: EmbedConfig | None = None) -> Decoded:
    """Decodes one file in this process, at the rate at which it would enter the encoder.

    Raises:
        UserError: the file cannot be decoded; says why.
    """
    from loopjax.htsat.frontend import DEVICE_RATES_HZ

    options = options or EmbedConfig()
    device = () if options.resample == "host" else DEVICE_RATES_HZ
    decode = DecodeOptions(
        mono=options.mono,
        accept_truncated=options.accept_truncated,
        sanitize=options.sanitize,
        max_duration_s=options.max_duration_s,
        target_rate_hz=encoder.sample_rate_hz,
        device_rates_hz=(encoder.sample_rate_hz, *device),
    )
    try:
        return decode_file(os.fsencode(Path(file).absolute()), -1, 0, decode)
    except DecodeError as error:
        raise UserError(f"{file} cannot be decoded: {error.reason} ({error})") from None


def as_float(samples: np.ndarray) -> np.ndarray:
    """int16 or float32 [n] as float32 in [-1, 1]."""
    if samples.dtype == np.int16:
        return samples.astype(np.float32) / np.float32(32768)
    return samples
