"""Audio files to embeddings: read -> deduplicate -> encode -> write.

`embed_corpus` writes a store and can be killed and continued; `embed` returns embeddings in memory.
"""

import contextlib
import itertools
import json
import logging
import os
import signal
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np

from loopjax import parallel
from loopjax.audio.batching import Row
from loopjax.audio.decoder import Decoder
from loopjax.audio.feeding import Feeder
from loopjax.audio.loop import Failure, Loop
from loopjax.audio.sources.arrays import open_any
from loopjax.audio.sources.files import READABLE
from loopjax.audio.sources.selection import Selection
from loopjax.audio.sources.source import open_source
from loopjax.config import EmbedConfig, from_dict
from loopjax.embedding.deduplicate import Deduplicator
from loopjax.embedding.encode import BatchEncoder
from loopjax.embedding.progress import Progress
from loopjax.embedding.read import POLL_S, batches, make_decoders, missing_limits
from loopjax.embedding.settings import as_encoder, check_config, projection_of, space_of
from loopjax.embedding.stored import StoredLoops
from loopjax.embedding.units import EXPIRE_S, UNIT_FILES, SharedUnits, join, require_no_workers
from loopjax.embedding.write import EmbedSummary, Memory, Writer, check_budget
from loopjax.encoders.protocol import Encoder
from loopjax.encoders.space import Space
from loopjax.errors import InterruptedRunError, UserError
from loopjax.io import locked, require_apart, sweep
from loopjax.io.remote import place_of
from loopjax.store.index import DoneIndex
from loopjax.store.read import Embeddings
from loopjax.store.resume import finish, prepare
from loopjax.store.schema import COLUMNS_KEY, SCHEMA_VERSION
from loopjax.store.units import UnitFiles, plan_of
from loopjax.store.write import ShardWriter

PathLike = str | os.PathLike[str]

log = logging.getLogger(__name__)


def embed_corpus(
    sources: Sequence[PathLike] | PathLike,
    encoder: Encoder | str | Path,
    out_dir: PathLike,
    config: EmbedConfig | None = None,
    *,
    restart: bool = False,
    prune: bool = False,
    progress: bool = True,
) -> EmbedSummary:
    """Embeds everything under the sources into a store; a killed run continues where it was.

    The store knows loops by their content: where files or whole sources have moved, the rows follow
    them, and nothing is embedded again.

    Args:
        sources: folders, audio files, `.txt` lists, `tfds:NAME`, `bundled:demo`.
        encoder: a name, a folder, or one that is loaded.
        out_dir: the store; holds `part-*.parquet` and the list of rejected inputs afterwards.
        config: see EmbedConfig.
        restart: throw away what the store holds.
        prune: drop the rows of files that are gone; otherwise they stay.
        progress: show progress on stderr.

    Raises:
        UserError: bad sources or options, a store made with others, another run writing to it.
        TooManyRejectedError: more rejected inputs, of all processes, than the options allow.
        WriteError: disk full and the like; finished shards stay valid.
        InterruptedRunError: SIGINT or SIGTERM; what was finished is saved.
        StoppedError: another process of the run met an error; what was finished is saved.
    """
    config = config or EmbedConfig()
    check_config(config)
    encoder = as_encoder(encoder, config)
    sources, folder = _as_list(sources), place_of(out_dir)
    require_apart(folder, sources)
    index, n_processes = parallel.process_slot()
    space = space_of(encoder, config)  # like the next lines, before anything is written
    engine = BatchEncoder[list[Row]](encoder, space, config)
    corpus = open_source(sources, Selection(config.include, config.exclude))
    if corpus.n_loops == 0:
        raise UserError(f"no audio files ({READABLE}) under {', '.join(map(str, sources))}")
    metadata = metadata_of(space, corpus.columns)
    with contextlib.ExitStack() as stack:

        def take_over() -> None:
            stack.enter_context(locked(folder))
            require_no_workers(folder)
            prepare(folder, metadata, restart)

        parallel.first_process_does(take_over)
        stored = StoredLoops(DoneIndex(folder), index, n_processes)
        decoders = make_decoders(corpus, encoder, config)

        def notes() -> dict[str, str]:
            missing = missing_limits(decoders)
            return {"missing_limits": ",".join(missing)} if missing else {}

        shards = ShardWriter(
            folder, metadata, config.shard_rows, index, n_processes, notes, projection_of(encoder)
        )
        with Progress("embedding", progress and index == 0) as bar, _signals() as caught:
            if corpus.n_loops is not None:
                bar.set_total(-(-corpus.n_loops // n_processes))
            try:
                summary = _run(
                    corpus.loops(index, n_processes),
                    decoders,
                    stored,
                    engine,
                    Writer(shards, config.strict),
                    bar,
                    caught,
                )
            finally:
                shards.flush()
        parallel.wait_for_all()
        n_pruned = 0

        def finish_store() -> None:
            nonlocal n_pruned
            n_pruned = finish(folder, metadata, prune=prune)

        parallel.first_process_does(finish_store)
    summary = replace(summary, n_pruned=n_pruned)
    _tell_unmet(summary, folder)
    outcomes = parallel.gather(json.dumps(summary.outcome()))
    check_budget(map(json.loads, outcomes), config.max_failures, folder)
    return summary


def embed_shared(
    sources: Sequence[PathLike] | PathLike,
    encoder: Encoder | str | Path,
    out_dir: PathLike,
    config: EmbedConfig | None = None,
    *,
    slice_of: tuple[int, int] | None = None,
    unit_files: int = UNIT_FILES,
    lease_s: float = EXPIRE_S,
    progress: bool = True,
) -> EmbedSummary:
    """Embeds into a store together with any number of other workers, which come and go.

    The sorted list of files is cut into units; a worker takes one, embeds it, and its shard appears
    as a whole. Workers see one another through files in the store alone: what one of them leaves
    behind, however it ends, others do. All must be given the same sources and settings.

    Args:
        sources: see `embed_corpus`; the same files for every worker.
        encoder: a name, a folder, or one that is loaded.
        out_dir: the store, on a disk that all workers see.
        config: see EmbedConfig; `shard_rows` has no meaning here.
        slice_of: (i, n) to do every n-th unit only, from the i-th, and not to wait for others.
        unit_files: files of a unit, which become one shard.
        lease_s: after so long without a sign of life, a worker's units are free again.
        progress: show progress on stderr.

    Returns:
        What this worker did.

    Raises:
        UserError: as `embed_corpus`; or others are at work there with other sources or settings.
        TooManyRejectedError: more rejected inputs, of the units that this worker did, than the
            options allow.
        WriteError: disk full and the like; finished shards stay valid.
        InterruptedRunError: SIGINT or SIGTERM; units that were not complete are free again.
    """
    config = config or EmbedConfig()
    check_config(config)
    encoder = as_encoder(encoder, config)
    sources, folder = _as_list(sources), place_of(out_dir)
    require_apart(folder, sources)
    if slice_of is not None and not 0 <= slice_of[0] < slice_of[1]:
        raise UserError(f"slice {slice_of[0]}/{slice_of[1]}: slices are counted from 0 to N-1")
    space = space_of(encoder, config)
    engine = BatchEncoder[list[Row]](encoder, space, config)
    corpus = open_source(sources, Selection(config.include, config.exclude))
    metadata = metadata_of(space, corpus.columns)
    digests = [unit.digest for unit in corpus.units(unit_files)]
    if not digests:
        raise UserError(f"no audio files ({READABLE}) under {', '.join(map(str, sources))}")
    plan = plan_of(digests, unit_files, metadata)
    files = UnitFiles(folder, metadata, plan, projection_of(encoder))
    with contextlib.ExitStack() as stack:
        leases = join(folder, plan, metadata, lease_s)
        stack.callback(leases.release_all)
        engine.compile()  # nobody waits meanwhile for a unit of this worker
        units = SharedUnits(corpus, plan, files, leases, slice_of)
        with Progress("embedding", progress) as bar, _signals() as caught:
            summary = _run(
                units.loops(),
                make_decoders(corpus, encoder, config),
                StoredLoops(DoneIndex(folder, files.is_of_unit), follows_files=False),
                engine,
                Writer(units, config.strict),
                bar,
                caught,
                units,
            )
    sweep(folder, elsewhere=False)  # what killed workers left half-written
    check_budget([summary.outcome()], config.max_failures, folder)
    return summary


def embed(
    sources: Sequence[PathLike] | PathLike | Sequence[np.ndarray] | np.ndarray,
    encoder: Encoder | str | Path,
    config: EmbedConfig | None = None,
    *,
    rate_hz: int | None = None,
    **options: Any,
) -> Embeddings:
    """Embeds a few files, folders or arrays in memory.

    Args:
        sources: a path or several: files, folders, lists. Or samples: an array of one loop, or a
            list of such; mono [n], or [n, channels] or [channels, n], where the shorter axis holds
            the channels; int16, or float in [-1, 1]. They become what their WAV files would.
        encoder: a name, a folder, or one that is loaded.
        config: see EmbedConfig.
        rate_hz: sample rate of arrays; files know theirs.
        **options: single fields of EmbedConfig instead.

    Returns:
        Embeddings sorted by path, arrays in the order given; `failures` lists what was rejected.

    Raises:
        UserError: bad sources or options, or no input could be embedded.
    """
    if config is None:
        config = from_dict(EmbedConfig, options)
    elif options:
        raise UserError(f"give either config or single options ({', '.join(options)}), not both")
    assert isinstance(config, EmbedConfig)
    check_config(config)
    encoder = as_encoder(encoder, config)
    space = space_of(encoder, config)
    corpus = open_any(sources, rate_hz, Selection(config.include, config.exclude))
    memory = Memory()
    with (
        Progress("embedding", corpus.n_loops is None or corpus.n_loops > 100) as bar,
        _signals() as caught,
    ):
        if corpus.n_loops is not None:
            bar.set_total(corpus.n_loops)
        _run(
            corpus.loops(),
            make_decoders(corpus, encoder, config),
            StoredLoops(DoneIndex(None)),
            BatchEncoder[list[Row]](encoder, space, config),
            Writer(memory, config.strict),
            bar,
            caught,
        )
    if not memory.rows:
        reason = (
            f"{memory.failures[0].path}: {memory.failures[0].message}" if memory.failures else ""
        )
        raise UserError(f"nothing could be embedded ({reason or 'no audio files found'})")
    return memory.embeddings(metadata_of(space, corpus.columns))


def metadata_of(space: Space, columns: Sequence[str] = ()) -> dict[str, str]:
    """What the files of a store say about their embeddings, and the columns of their sources."""
    further = {COLUMNS_KEY: json.dumps(columns)} if columns else {}
    return {"schema_version": SCHEMA_VERSION, **space.to_metadata(), **further}


def _run(
    loops: Iterable[Loop | Failure | None],
    decoders: Sequence[Decoder],
    stored: StoredLoops,
    encoder: BatchEncoder[list[Row]],
    writer: Writer,
    bar: Progress,
    caught: Sequence[int],
    units: SharedUnits | None = None,
) -> EmbedSummary:
    """The chain; after a signal or another process's error it finishes what the device has.

    Raises:
        InterruptedRunError: after a signal; all finished rows have been written.
        TooManyRejectedError: at the first rejected input, if the writer is strict.
    """
    duplicates = Deduplicator(stored)
    started_s, waited_s, idle, stopping = time.monotonic(), 0.0, True, False

    def note() -> str:
        elapsed_s = max(1e-9, time.monotonic() - started_s)
        rate, waits = writer.n_embedded / elapsed_s, 100.0 * waited_s / elapsed_s
        return f"{rate:.1f} files/s, {writer.n_failed} failed, device waits {waits:.0f} %"

    feeder = Feeder(
        duplicates.undone(loops), decoders, encoder.buckets, duplicates.reject, duplicates.attach
    )
    with contextlib.closing(feeder), units or contextlib.nullcontext():
        for batch in batches(feeder):
            waited_s += POLL_S if batch is None and idle else 0.0
            if stopping := bool(caught) or parallel.is_stopping():
                break
            if duplicates.is_waiting:
                encoder.compile()
            for loop in duplicates.resolve(encoder.encode(batch)):
                writer.write(loop)
            if units is not None:
                if batch is None and units.is_waiting:  # no company comes for what waits for it
                    rest = [encoder.encode(batch) for batch in feeder.take_open()]
                    for loop in duplicates.resolve(itertools.chain(*rest, encoder.finish())):
                        writer.write(loop)
                units.keep_alive()
            idle = encoder.is_idle
            bar.update(writer.n_embedded + writer.n_failed + duplicates.n_skipped, note)
        for loop in duplicates.resolve(encoder.finish(leftovers=not stopping)):
            writer.write(loop)
        if units is not None:
            units.finish()
    if caught:
        name = signal.Signals(caught[0]).name
        message = f"stopped by {name}; what was finished is saved, run it again to continue"
        raise InterruptedRunError(message, caught[0])
    elapsed_s = max(1e-9, time.monotonic() - started_s)
    return EmbedSummary(
        n_embedded=writer.n_embedded,
        n_failed=writer.n_failed,
        n_skipped=duplicates.n_skipped,
        n_moved=duplicates.n_moved,
        n_unmet=stored.n_unmet,
        n_duplicates=duplicates.n_duplicates,
        n_flagged=writer.n_flagged,
        wait_fraction=waited_s / elapsed_s,
        duration_s=elapsed_s,
        files_per_s=writer.n_embedded / elapsed_s,
        reasons=dict(writer.reasons),
        missing_limits=missing_limits(decoders),
    )


def _as_list(sources: Sequence[PathLike] | PathLike) -> Sequence[PathLike]:
    return [sources] if isinstance(sources, str | os.PathLike) else sources


def _tell_unmet(summary: EmbedSummary, folder: Path) -> None:
    """Says what the store holds beyond the sources, and what was dropped of it."""
    if summary.n_pruned:
        log.warning("%d loops whose files are gone were dropped from %s", summary.n_pruned, folder)
    elif summary.n_unmet:
        log.warning(
            "%s also holds %d loops that are none of these files; `loopjax embed --prune` drops "
            "those whose files are gone",
            folder,
            summary.n_unmet,
        )


@contextlib.contextmanager
def _signals() -> Iterator[list[int]]:
    """Collects SIGINT and SIGTERM; those after the first disturb nothing.

    Outside the main thread signals cannot be caught, and the list stays empty.
    """
    caught: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        caught.append(number)

    if threading.current_thread() is not threading.main_thread():
        yield caught
        return
    old = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield caught
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
