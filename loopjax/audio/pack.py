"""Decodes a corpus once, into shards that feed many runs: see `sources/packed`."""

import io
import json
import struct
import tarfile
import zlib
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from queue import SimpleQueue

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from loopjax.audio.decode import DecodeOptions
from loopjax.audio.decoder import Decoder, Reply
from loopjax.audio.loop import AudioInfo, DecodeError, Failure, Loop
from loopjax.audio.mixdown import to_int16
from loopjax.audio.sources.packed import BLOCK, END_NAME, FORMAT, INDEX_NAME, End, read_end
from loopjax.audio.sources.source import Source
from loopjax.audio.sources.unit import Unit
from loopjax.io import locked, write_atomically

SHARD_LOOPS = 1024
TIMEOUT_S = 60.0
_REQUESTED = 16  # loops that a decoder is asked for at once
_INFO = pa.struct(
    [
        *(("rate_hz", pa.int32()), ("sha256", pa.string()), ("source_rate_hz", pa.int32())),
        *(("channels", pa.int32()), ("n_frames", pa.int64()), ("duration_s", pa.float64())),
        ("subtype", pa.string()),
    ]
)
_INDEX = pa.schema(
    [
        *(("key", pa.string()), ("path", pa.string()), ("path_bytes", pa.binary())),
        *(("size_bytes", pa.int64()), ("mtime_ns", pa.int64()), ("group", pa.string())),
        *(("columns", pa.string()), ("offset", pa.int64()), ("n_samples", pa.int64())),
        *(("crc32", pa.int64()), ("info", _INFO), ("flags", pa.list_(pa.string()))),
    ]
)


@dataclass
class PackSummary:
    """What `pack` did."""

    n_packed: int = 0
    n_failed: int = 0
    n_shards: int = 0  # written now
    n_kept: int = 0  # shards that an earlier run had finished
    failures: list[Failure] = field(default_factory=list)


def pack(
    corpus: Source, out: Path, options: DecodeOptions, n_decoders: int, shard_loops: int
) -> PackSummary:
    """Writes a corpus as packed shards; a killed run continues, shards that are there stay.

    Args:
        corpus: what to decode.
        out: folder of `pack-000000.tar` and so on.
        options: how channels are mixed, and limits; rates stay what they are.
        n_decoders: decoding processes.
        shard_loops: loops of a shard, if the corpus can be cut anywhere.

    Raises:
        UserError: another run is writing the folder.
        WriteError: disk full and the like; finished shards stay.
    """
    summary = PackSummary()
    options = replace(options, keep_rate=True)
    with ExitStack() as stack:
        stack.enter_context(locked(out))
        free: SimpleQueue[Decoder] = SimpleQueue()
        for _ in range(n_decoders):
            decoder = corpus.decoder(options, TIMEOUT_S)
            stack.callback(decoder.close)
            free.put(decoder)
        threads = stack.enter_context(ThreadPoolExecutor(n_decoders))
        for unit in corpus.units(shard_loops):
            path = out / f"pack-{unit.number:06d}.tar"
            if _is_of(path, unit):
                summary.n_kept += 1
                continue
            sounds = _decoded(unit, threads, free, n_decoders, summary)
            write = partial(_write, sounds=sounds, mono=options.mono, corpus=corpus, unit=unit)
            write_atomically(path, write)
            summary.n_shards += 1
    return summary


@dataclass(frozen=True)
class _Sound:
    loop: Loop
    info: AudioInfo
    samples: np.ndarray  # int16


def _decoded(
    unit: Unit,
    threads: ThreadPoolExecutor,
    free: SimpleQueue[Decoder],
    n_decoders: int,
    summary: PackSummary,
) -> Iterator[_Sound]:
    """The loops of a unit in order, decoded a few chunks ahead."""

    def decode(loops: Sequence[Loop]) -> list[_Sound | Failure]:
        decoder = free.get()
        try:
            return [
                _sound(loop, reply)
                for loop, reply in zip(loops, decoder.decode_each(loops), strict=True)
            ]
        finally:
            free.put(decoder)

    ahead: deque[Future[list[_Sound | Failure]]] = deque()

    def finished(room: int) -> Iterator[_Sound]:
        while len(ahead) > room:
            for item in ahead.popleft().result():
                if isinstance(item, _Sound):
                    summary.n_packed += 1
                    yield item
                else:
                    _reject(item, summary)

    chunk: list[Loop] = []
    for item in unit.loops():
        if isinstance(item, Failure):
            _reject(item, summary)
            continue
        chunk.append(item)
        if len(chunk) == _REQUESTED:
            ahead.append(threads.submit(decode, chunk))
            chunk = []
            yield from finished(2 * n_decoders)
    if chunk:
        ahead.append(threads.submit(decode, chunk))
    yield from finished(0)


def _sound(loop: Loop, reply: Reply | DecodeError) -> _Sound | Failure:
    if isinstance(reply, DecodeError):
        return Failure.of(loop, "decode", reply.reason, str(reply))
    samples = np.empty(reply.n_samples, reply.dtype)
    reply.copy_to(samples)
    if samples.dtype != np.int16:
        samples = to_int16(samples)
    return _Sound(reply.loop, reply.info, samples)


def _reject(failure: Failure, summary: PackSummary) -> None:
    summary.n_failed += 1
    summary.failures.append(failure)


def _is_of(path: Path, unit: Unit) -> bool:
    """Whether a shard is there that holds this unit."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        end = read_end(file)
    return end is not None and end.digest == unit.digest


def _write(path: Path, sounds: Iterator[_Sound], mono: str, corpus: Source, unit: Unit) -> None:
    rows = []
    with path.open("wb") as file:
        for sound in sounds:
            content = np.ascontiguousarray(sound.samples, "<i2").tobytes()
            head = _wav_head(len(content), sound.info.rate_hz)
            start = file.tell() + BLOCK
            _add(file, f"{sound.loop.key}.wav", head + content)
            loop = sound.loop
            info = asdict(sound.info)
            rows.append(
                {
                    "key": loop.key,
                    "path": loop.path,
                    "path_bytes": loop.path_bytes,
                    "size_bytes": loop.size_bytes,
                    "mtime_ns": loop.mtime_ns,
                    "group": loop.group,
                    "columns": json.dumps(dict(loop.columns)),
                    "offset": start + len(head),
                    "n_samples": sound.samples.size,
                    "crc32": zlib.crc32(content),
                    "flags": list(info.pop("flags")),
                    "info": info,
                }
            )
        metadata = {"columns": json.dumps(corpus.columns)}
        index = io.BytesIO()
        table = pa.Table.from_pylist(rows, schema=_INDEX.with_metadata(metadata))
        pq.write_table(table, index, compression="zstd")
        end = End(file.tell() + BLOCK, index.tell(), len(rows), mono, unit.digest)
        _add(file, INDEX_NAME, index.getvalue())
        _add(file, END_NAME, json.dumps({**asdict(end), "format": FORMAT}).encode().ljust(BLOCK))
        file.write(bytes(2 * BLOCK))


def _add(file: io.BufferedWriter, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    file.write(member.tobuf(tarfile.USTAR_FORMAT))
    file.write(content)
    file.write(bytes(-len(content) % BLOCK))


def _wav_head(n_bytes: int, rate_hz: int) -> bytes:
    """The header of 16-bit mono PCM."""
    format_chunk = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, rate_hz, 2 * rate_hz, 2, 16)
    return (
        struct.pack("<4sI4s", b"RIFF", 36 + n_bytes, b"WAVE")
        + format_chunk
        + struct.pack("<4sI", b"data", n_bytes)
    )
