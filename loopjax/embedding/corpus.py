"""The joiner of audio, encoder and store: files in, embeddings out.

`embed_corpus` writes a store and can be killed and continued; `embed` returns embeddings in memory.
Both use the same decoders, batches and engine.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np

from loopjax.audio.decode import DecodeOptions
from loopjax.audio.decoder import Decoder
from loopjax.audio.loop import Failure
from loopjax.audio.sources.files import READABLE
from loopjax.audio.sources.source import Source, open_source
from loopjax.config import EmbedConfig, from_dict
from loopjax.embedding.encode import EmbeddingRun
from loopjax.embedding.ledger import EmbedSummary, Ledger
from loopjax.embedding.progress import Progress
from loopjax.errors import TooManyRejectedError, UserError
from loopjax.io import locked
from loopjax.store.failures import table_of_failures
from loopjax.store.index import DoneIndex
from loopjax.store.read import Embeddings
from loopjax.store.resume import finish, prepare
from loopjax.store.schema import (
    EMBEDDING,
    SCHEMA_VERSION,
    StoreRow,
    shard_schema,
    table_of_rows,
)
from loopjax.store.write import ShardWriter

# At 8 kHz most mel bands lie above the file's own Nyquist frequency and hold rounding noise alone:
# there device and host agree to a cosine of 0.99987 only, so `auto` takes the reference's path.
HOST_BY_CHOICE_HZ = {8000}


def embed_corpus(
    sources: Sequence[str | os.PathLike],
    encoder: Any,
    out_dir: str | os.PathLike,
    options: EmbedConfig | None = None,
    *,
    restart: bool = False,
    progress: bool = True,
) -> EmbedSummary:
    """Embeds everything under the sources into a store; a killed run continues where it was.

    Args:
        sources: folders, audio files, `.txt` lists, `bundled:demo`.
        encoder: from `load_encoder`.
        out_dir: the store; holds `part-*.parquet` and the list of rejected inputs afterwards.
        options: see EmbedConfig.
        restart: throw away what the store holds.
        progress: show progress on stderr.

    Raises:
        UserError: bad sources, a store made with other settings, another run writing to it.
        TooManyRejectedError: more rejected inputs than the options allow.
        WriteError: disk full and the like; finished shards stay valid.
        InterruptedRunError: SIGINT or SIGTERM; what was finished is saved.
    """
    from loopjax import parallel

    options = options or EmbedConfig()
    index, n_processes = parallel.process_slot()
    folder = Path(out_dir)
    metadata, _ = identity(encoder, options)
    corpus = open_source(sources)
    if len(corpus) == 0:
        raise UserError(f"no audio files ({READABLE}) under {', '.join(map(str, sources))}")
    with contextlib.ExitStack() as stack:

        def take_over() -> None:
            stack.enter_context(locked(folder))
            prepare(folder, metadata, restart)

        parallel.first_process_does(take_over)
        done = DoneIndex(folder)
        writer = ShardWriter(folder, metadata, options.shard_rows, index, n_processes)
        ledger = Ledger(writer, done, options.strict)
        run = EmbeddingRun(encoder, options, _n_crops(options.crops), ledger)
        with Progress("embedding", progress and index == 0) as bar:
            bar.set_total(-(-len(corpus) // n_processes))
            try:
                loops = corpus.loops(index, n_processes)
                run.run(loops, _decoders(corpus, options, encoder), bar)
            finally:
                writer.flush()
        parallel.wait_for_all()
        parallel.first_process_does(lambda: finish(folder, metadata))
    _check_budget(ledger.summary, options, folder)
    return ledger.summary


def _check_budget(summary: EmbedSummary, options: EmbedConfig, folder: Path) -> None:
    n_inputs = summary.n_embedded + summary.n_skipped + summary.n_failed
    if n_inputs and summary.n_failed / n_inputs > options.max_failures:
        reasons = ", ".join(f"{n} {reason}" for reason, n in sorted(summary.reasons.items()))
        raise TooManyRejectedError(
            f"{summary.n_failed} of {n_inputs} inputs were rejected ({reasons}), more than "
            f"max_failures={options.max_failures:g} allows; list them with "
            f"`loopjax store failures {folder}`"
        )


def embed(
    sources: Sequence[str | os.PathLike] | str | os.PathLike,
    encoder: Any,
    config: EmbedConfig | None = None,
    **options: Any,
) -> Embeddings:
    """Embeds a few files or folders in memory, with the engine of `loopjax embed`.

    Args:
        sources: a path or several: files, folders, lists.
        encoder: from `load_encoder`.
        config: settings, for example `options_from_metadata` of a store.
        **options: single fields of EmbedConfig instead.

    Returns:
        Embeddings sorted by path; rejected inputs are listed in its `failures`.

    Raises:
        UserError: bad sources or options, or no input could be embedded.
    """
    if config is None:
        config = cast(EmbedConfig, from_dict(EmbedConfig, options))
    if isinstance(sources, str | os.PathLike):
        sources = [sources]
    corpus = open_source(sources)
    metadata, _ = identity(encoder, config)
    memory = _Memory()
    ledger = Ledger(memory, None, config.strict)
    run = EmbeddingRun(encoder, config, _n_crops(config.crops), ledger)
    with Progress("embedding", len(corpus) > 100) as bar:
        bar.set_total(len(corpus))
        run.run(corpus.loops(), _decoders(corpus, config, encoder), bar)
    if not memory.rows:
        reason = (
            f"{memory.failures[0].path}: {memory.failures[0].message}" if memory.failures else ""
        )
        raise UserError(f"nothing could be embedded ({reason or 'no audio files found'})")
    return memory.embeddings(metadata)


def identity(encoder: Any, options: EmbedConfig) -> tuple[dict[str, str], dict[str, Any]]:
    """What makes two embeddings comparable: (metadata of the files, settings behind its hash)."""
    from loopjax.htsat.frontend import DEVICE_RESAMPLER

    settings = {
        **{f"front_end.{key}": value for key, value in encoder.preprocessing.items()},
        "precision": getattr(encoder, "precision", options.precision),
        "crops": options.crops,
        "resample": options.resample,
        "device_resampler": DEVICE_RESAMPLER,
        "mono": options.mono,
        "sanitize": options.sanitize,
        "accept_truncated": options.accept_truncated,
    }
    text = json.dumps(settings, sort_keys=True)
    metadata = {
        "schema_version": SCHEMA_VERSION,
        "encoder": encoder.id,
        "weights_sha256": encoder.weights_sha256,
        "preprocessing_sha256": hashlib.sha256(text.encode()).hexdigest(),
        "preprocessing": text,
        "embedding_dim": str(encoder.embedding_dim),
        "encoder_path": options.encoder,  # where the encoder was loaded from; not compared
    }
    return metadata, settings


def options_from_metadata(metadata: dict[str, str]) -> EmbedConfig:
    """The settings that embed new audio exactly like the rows that carry this metadata.

    Raises:
        UserError: the embeddings do not come from `loopjax embed`.
    """
    if "preprocessing" not in metadata:
        raise UserError("these embeddings were not made by loopjax, so how to make more is unknown")
    settings = json.loads(metadata["preprocessing"])
    names = ("precision", "crops", "resample", "mono", "sanitize", "accept_truncated")
    encoder = metadata.get("encoder_path") or metadata["encoder"]
    return EmbedConfig(encoder=encoder, **{name: settings[name] for name in names})


def _decoders(corpus: Source, options: EmbedConfig, encoder: Any) -> list[Decoder]:
    decode = DecodeOptions(
        mono=options.mono,
        accept_truncated=options.accept_truncated,
        sanitize=options.sanitize,
        max_duration_s=options.max_duration_s,
        target_rate_hz=encoder.sample_rate_hz,
        device_rates_hz=_device_rates(options.resample, encoder.sample_rate_hz),
        host_resampling=options.resample != "device",
    )
    n_workers = min(options.workers or _default_workers(), len(corpus))
    return [corpus.decoder(decode, options.decode_timeout_s) for _ in range(n_workers)]


def _device_rates(resample: str, encoder_rate_hz: int) -> tuple[int, ...]:
    from loopjax.htsat.frontend import DEVICE_RATES_HZ

    if resample == "host":
        return (encoder_rate_hz,)
    left_to_host = set() if resample == "device" else HOST_BY_CHOICE_HZ
    return tuple(sorted({*DEVICE_RATES_HZ, encoder_rate_hz} - left_to_host))


def _default_workers() -> int:
    """A CPU encoder needs the cores itself; an accelerator leaves them all to decoding."""
    import jax

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, (cores or 1) // 4) if jax.default_backend() == "cpu" else (cores or 1)


def _n_crops(crops: str) -> int:
    """0 for deterministic crops, K for `seeded:K`."""
    kind, _, number = crops.partition(":")
    if crops == "deterministic":
        return 0
    if kind == "seeded" and number.isdigit() and int(number) > 0:
        return int(number)
    raise UserError(f"crops {crops!r}: write deterministic, or seeded:K with K draws to average")


class _Memory:
    """Collects rows in memory, with the writer's interface."""

    def __init__(self):
        self.rows: list[StoreRow] = []
        self.failures: list[Failure] = []

    def add(self, row: StoreRow, replaces: Path | None = None) -> None:
        self.rows.append(row)

    def add_failure(self, failure: Failure, replaces: Path | None = None) -> None:
        self.failures.append(failure)

    def embeddings(self, metadata: dict[str, str]) -> Embeddings:
        rows = sorted(self.rows, key=lambda row: (row.path, row.id))
        schema = shard_schema(len(rows[0].embedding), {})
        table = table_of_rows(rows, schema).drop_columns([EMBEDDING]).replace_schema_metadata(None)
        return Embeddings(
            np.stack([row.embedding for row in rows]),
            table,
            metadata,
            table_of_failures(self.failures),
        )
