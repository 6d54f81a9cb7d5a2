"""Packed shards: loops that were decoded once, as tar files that feed without a decoder process.

A shard is an ordinary tar of int16 mono WAV files at the rates of their sources, which any tool
reads. Its last two members are for us: `index.parquet` says what each loop is and where its samples
lie, and `loopjax-pack.json`, of one block, where the index lies. `loopjax pack` writes them.
"""

import json
import os
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from loopjax.audio.decode import DecodeOptions, decode_mono
from loopjax.audio.decoder import Reply, one_by_one
from loopjax.audio.loop import AudioInfo, DecodeError, Failure, Loop
from loopjax.audio.sources.places import open_place
from loopjax.audio.sources.selection import Selection
from loopjax.audio.sources.unit import Unit
from loopjax.errors import UserError

END_NAME = "loopjax-pack.json"
INDEX_NAME = "index.parquet"
BLOCK = tarfile.BLOCKSIZE
FORMAT = 1


@dataclass(frozen=True)
class End:
    """What the last member of a shard says.

    Attributes:
        index_offset: where the index begins in the file.
        index_bytes: its length.
        n_loops: how many it lists.
        mono: how channels were mixed.
        digest: of the stretch of the sources that was packed.
    """

    index_offset: int
    index_bytes: int
    n_loops: int
    mono: str
    digest: str


@dataclass(frozen=True)
class PackedLoop(Loop):
    """A loop whose samples are decoded.

    Attributes:
        shard: number of its shard.
        offset: of the samples in the shard.
        n_samples: int16 mono, at `info.rate_hz`.
        crc32: of their bytes.
        info: what decoding found out.
    """

    shard: int = 0
    offset: int = 0
    n_samples: int = 0
    crc32: int = 0
    info: AudioInfo = field(default_factory=lambda: AudioInfo(0, "", 0, 0, 0, 0.0, ""))


def read_end(file: BinaryIO) -> End | None:
    """The last member of a tar, if it is a packed shard."""
    size = file.seek(0, os.SEEK_END)
    if size < 4 * BLOCK or size % BLOCK:
        return None
    file.seek(size - 4 * BLOCK)
    head, content = file.read(BLOCK), file.read(BLOCK)
    if not head.startswith(END_NAME.encode() + b"\0"):
        return None
    try:
        value = json.loads(content.rstrip(b"\0"))
        return End(**value) if value.pop("format") == FORMAT else None
    except (ValueError, TypeError, KeyError):
        return None


class PackedShards:
    """Packed shards as one corpus."""

    def __init__(self, addresses: Sequence[str], selection: Selection):
        """Reads the ends of all shards.

        Raises:
            UserError: one is none, or they were mixed to mono in different ways.
        """
        self._addresses, self._selection = sorted(set(addresses)), selection
        self._ends = [_end_of(address) for address in self._addresses]
        mixed = sorted({end.mono for end in self._ends})
        if len(mixed) > 1:
            raise UserError(f"shards packed with --mono {' and '.join(mixed)} do not mix")
        self._mono = mixed[0]

    @property
    def n_loops(self) -> int:
        """Loops of all shards."""
        return sum(end.n_loops for end in self._ends)

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of what the packed records said beyond their audio."""
        names = (pq.read_schema(pa.BufferReader(self._index(0))).metadata or {}).get(b"columns")
        return tuple(json.loads(names)) if names else ()

    def loops(self, process_index: int = 0, process_count: int = 1) -> Iterator[Loop | Failure]:
        """The manifest, shard by shard."""
        for number in range(len(self._addresses)):
            for loop in self._loops_of(number):
                if int(loop.key, 16) % process_count == process_index:
                    yield loop

    def units(self, n_loops: int) -> Iterator[Unit]:
        """One per shard."""
        for number, end in enumerate(self._ends):
            yield Unit(number, end.digest, partial(self._loops_of, number))

    def decoder(self, options: DecodeOptions, timeout_s: float) -> "PackedDecoder":
        """A reader with the decoders' interface, in this process.

        Raises:
            UserError: the shards were packed with another --mono.
        """
        if options.mono != self._mono:
            raise UserError(
                f"{self._addresses[0]} was packed with --mono {self._mono}, not {options.mono}"
            )
        return PackedDecoder(self._addresses, options)

    def _index(self, number: int) -> bytes:
        end = self._ends[number]
        with open_place(self._addresses[number]) as file:
            file.seek(end.index_offset)
            return file.read(end.index_bytes)

    def _loops_of(self, number: int) -> Iterator[PackedLoop]:
        try:
            table = pq.read_table(pa.BufferReader(self._index(number)), use_threads=False)
        except (pa.ArrowException, OSError) as error:
            raise UserError(f"{self._addresses[number]}: its index is damaged: {error}") from None
        for row in table.to_pylist():
            if self._selection.takes(row["path"]):
                info = AudioInfo(**row.pop("info") | {"flags": tuple(row.pop("flags"))})
                columns = json.loads(row.pop("columns"))
                yield PackedLoop(**row, columns=columns, shard=number, info=info)


class PackedDecoder:
    """Reads packed loops: there is no codec that could crash."""

    missing_limits: tuple[str, ...] = ()

    def __init__(self, addresses: Sequence[str], options: DecodeOptions):
        """Opens a shard when the first of its loops is wanted."""
        self._addresses, self._options = addresses, options
        self._open: tuple[int, BinaryIO] | None = None
        self._buffer = np.zeros(0, np.int16)
        self._samples = self._buffer

    def decode(self, loop: Loop) -> Reply:
        """Reads one loop.

        Raises:
            DecodeError: it cannot be read, or is not as it was written; too long or too short.
        """
        assert isinstance(loop, PackedLoop)
        if len(self._buffer) < loop.n_samples:
            self._buffer = np.zeros(loop.n_samples, np.int16)
        mono = self._buffer[: loop.n_samples]
        try:
            file = self._shard(loop.shard)
            file.seek(loop.offset)
            n_bytes = file.readinto(mono.data.cast("B"))  # pyright: ignore
        except OSError as error:
            raise DecodeError("read_error", str(error)) from None
        if n_bytes != mono.nbytes or zlib.crc32(mono.data) != loop.crc32:
            raise DecodeError("read_error", "the packed samples do not match their checksum")
        decoded = decode_mono(mono, loop.info, self._options)
        self._samples = np.ascontiguousarray(decoded.samples)
        return Reply(loop, decoded.info, self._samples.dtype, self._samples.size, self)

    def decode_each(self, loops: Sequence[Loop]) -> Iterator[Reply | DecodeError]:
        """Reads loops one after the other."""
        return one_by_one(self.decode, loops)

    def copy_samples(self, out: np.ndarray) -> None:
        """Copies the samples of the latest loop."""
        out[:] = self._samples

    def interrupt(self) -> None:
        """Loops are read at once."""

    def close(self) -> None:
        """Closes the shard."""
        if self._open is not None:
            self._open[1].close()
            self._open = None

    def _shard(self, number: int) -> BinaryIO:
        if self._open is None or self._open[0] != number:
            self.close()
            self._open = number, open_place(self._addresses[number])
        return self._open[1]


def packed_among(addresses: Sequence[str]) -> list[str]:
    """Those addresses of tar files that are packed shards."""
    found = []
    for address in addresses:
        if PurePosixPath(address).suffix == ".tar":
            try:
                with open_place(address) as file:
                    if read_end(file) is not None:
                        found.append(address)
            except OSError:
                continue  # whoever reads it will say so
    return found


def _end_of(address: str) -> End:
    try:
        with open_place(address) as file:
            end = read_end(file)
    except OSError as error:
        raise UserError(f"{address} cannot be read: {error}") from None
    if end is None:
        raise UserError(f"{Path(address).name} is no packed shard, others are: pass them apart")
    return end
