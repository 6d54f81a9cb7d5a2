"""The first stage: sources to decoded loops in batches of fixed shapes."""

import os
import queue
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax

from loopjax.audio.batching import Batch, Row
from loopjax.audio.decode import Decoded, decode_file
from loopjax.audio.decoder import Decoder
from loopjax.audio.feeding import Feeder
from loopjax.audio.loop import DecodeError
from loopjax.audio.sources.source import Source
from loopjax.config import EmbedConfig
from loopjax.embedding.settings import decode_options
from loopjax.encoders.protocol import Encoder
from loopjax.errors import UserError

POLL_S = 0.005


def make_decoders(source: Source, encoder: Encoder, config: EmbedConfig) -> list[Decoder]:
    """Decoders that deliver what the encoder takes; as many as the options or the cores say."""
    options = decode_options(encoder, config)
    n_workers = config.workers or _default_workers()
    if source.n_loops is not None:
        n_workers = min(n_workers, source.n_loops)
    return [source.decoder(options, config.decode_timeout_s) for _ in range(n_workers)]


def missing_limits(decoders: Sequence[Decoder]) -> tuple[str, ...]:
    """Limits of memory and the like that the system did not let the started decoders set."""
    return tuple(sorted({name for decoder in decoders for name in decoder.missing_limits}))


def batches(feeder: Feeder) -> Iterator[Batch[list[Row]] | None]:
    """Batches as they fill; None after each `POLL_S` in which none did."""
    feeder.start()
    while True:
        try:
            batch = feeder.get(POLL_S)
        except queue.Empty:
            yield None
            continue
        if batch is None:
            return
        yield batch


def read_samples(file: str | Path, encoder: Encoder, config: EmbedConfig | None = None) -> Decoded:
    """Decodes one file in this process, at the rate at which it would enter the encoder.

    Raises:
        UserError: the file cannot be decoded; says why.
    """
    options = decode_options(encoder, config or EmbedConfig())
    try:
        return decode_file(os.fsencode(Path(file).absolute()), -1, 0, options)
    except DecodeError as error:
        raise UserError(f"{file} cannot be decoded: {error.reason} ({error})") from None


def _default_workers() -> int:
    """A CPU encoder needs the cores itself; an accelerator leaves them all to decoding."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, (cores or 1) // 4) if jax.default_backend() == "cpu" else (cores or 1)
