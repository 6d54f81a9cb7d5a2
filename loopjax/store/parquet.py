"""Parquet files that carry a checksum over all of their bytes.

Parquet itself only offers checksums of data pages. Ours have one more key in the footer, the seal:
the second in which the file was written, its size, and the SHA-256 of the whole file with the place
of that digest left zero. The second is also set as the modification time: a file whose time is
still that one has not been touched since. The size tells a damaged file from one that another tool
has written anew with all keys that it found.
"""

import contextlib
import hashlib
import os
import re
import struct
import time
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from loopjax.errors import UserError
from loopjax.io import write_atomically
from loopjax.io.remote import is_remote
from loopjax.store.schema import EMBEDDING, PROJECTION

_SEAL = b"loopjax_seal"
_UNSEALED = f"{0:012d} {0:015d} {0:064d}"  # seconds since 1970, size, SHA-256
_DIGEST_AT, _DIGEST_BYTES = 29, 64
# Key and value as they stand in the footer: a Thrift string is its type, its length, its bytes.
_SEAL_AT = _SEAL + b"\x18" + bytes([len(_UNSEALED)])
_SEAL_TEXT = re.compile(rb"(\d{12}) (\d{15}) [0-9a-f]{64}")
_ROW_GROUP = 1024  # more would only buffer more while it is written
_MAX_FOOTER_STRING = 1 << 30
_CHUNK_BYTES = 1 << 20
_VALUE_BYTES = 8
_EASY_BYTES = 64 << 20  # what a file of any size may take
MAX_EXPANSION = 100  # fold, for files of others; embeddings hardly compress at all
_REDO = "run the same `loopjax embed` again to redo its rows"


def write_parquet(table: pa.Table, path: Path, notes: dict[bytes, bytes] | None = None) -> None:
    """Writes a table atomically, sealed.

    Args:
        table: what to write.
        path: where.
        notes: further keys and values of the footer.

    Raises:
        WriteError: disk full, no permission and the like; nothing is left behind.
    """
    write_parquet_tables([table], path, notes)


def write_parquet_tables(
    tables: Iterable[pa.Table], path: Path, notes: dict[bytes, bytes] | None = None
) -> None:
    """Writes tables one after the other into one file, atomically, sealed.

    Args:
        tables: at least one; the others in the types of the first.
        path: where.
        notes: further keys and values of the footer.

    Raises:
        WriteError: see `write_parquet`.
    """
    waiting = iter(tables)
    first = next(waiting)
    vectors = [name for name in (EMBEDDING, PROJECTION) if name in first.schema.names]
    encodings: dict[str, Any] = {  # random mantissas compress as byte planes, not as a dictionary
        "use_dictionary": [name for name in first.schema.names if name not in vectors],
        "use_byte_stream_split": [f"{name}.list.element" for name in vectors] or False,
    }

    def write(temporary: Path) -> None:
        with pq.ParquetWriter(
            temporary, first.schema, compression="zstd", write_page_checksum=True, **encodings
        ) as writer:
            for table in chain([first], waiting):
                if len(table):  # a row group without rows is one that Hugging Face refuses
                    writer.write_table(table.cast(first.schema), row_group_size=_ROW_GROUP)
            writer.add_key_value_metadata({**(notes or {}), _SEAL: _UNSEALED})
        _seal(temporary)

    write_atomically(path, write)


def read_parquet(path: Path, columns: list[str] | None = None) -> pa.Table:
    """Reads a table with its checksums.

    Raises:
        UserError: the file is damaged.
    """
    return open_parquet(path).read(columns)


def open_parquet(path: Path, repair: str = _REDO) -> "CheckedFile":
    """Opens a Parquet file of any origin after comparing its seal, if it has one.

    Args:
        path: the file.
        repair: what to do if it is damaged, for the message.

    Raises:
        UserError: the file is damaged or cannot be read.
    """
    try:
        with path.open("rb") as file:
            at = _find_seal(file)
            if at is not None and _is_stale(file, at):
                at = None
            if at is not None and _digest(file, at) != _read_at(file, at, _DIGEST_BYTES):
                raise damaged(path, "its bytes do not match its checksum", repair, touched=True)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None
    return CheckedFile(path, repair)


def open_footer(path: Path, repair: str = _REDO) -> "CheckedFile":
    """Opens a Parquet file by its footer alone; only the columns that are read are checked.

    Raises:
        UserError: the footer is damaged or cannot be read.
    """
    return CheckedFile(path, repair)


class CheckedFile:
    """An open Parquet file whose pages are compared with their own checksums when read."""

    def __init__(self, path: Path, repair: str):
        """Reads the footer.

        Raises:
            UserError: it is damaged.
        """
        self.path, self._repair = path, repair
        try:
            self._file = pq.ParquetFile(
                path.open("rb") if is_remote(path) else path,
                page_checksum_verification=True,
                thrift_string_size_limit=_MAX_FOOTER_STRING,
                pre_buffer=False,  # else a row group is in memory before its first batch
                buffer_size=_CHUNK_BYTES,
            )
            self.schema = self._file.schema_arrow
            self.notes: dict[bytes, bytes] = self._file.metadata.metadata or {}
            self._names = set(self.schema.names)
            self._stat = path.stat()
        except (OSError, ValueError, pa.ArrowException) as error:
            raise damaged(path, first_line(error), repair) from None
        found = _SEAL_TEXT.fullmatch(self.notes.get(_SEAL, b""))
        seal = None if found is None else (int(found[1]), int(found[2]))
        self._seal = seal if seal is not None and seal[1] == self._stat.st_size else None

    @property
    def n_rows(self) -> int:
        """How many rows the file holds."""
        return self._file.metadata.num_rows

    @property
    def is_sealed(self) -> bool:
        """Whether the file carries a checksum over all of it."""
        return self._seal is not None

    @property
    def is_untouched(self) -> bool:
        """Whether the file is as it was written, as far as its size and time tell."""
        if self._seal is None:
            return False
        # An object is replaced or not; it has no time that could be set.
        return is_remote(self.path) or self._seal[0] * 10**9 == self._stat.st_mtime_ns

    def damaged(self, reason: str) -> UserError:
        """The error for this file, if something in it is not as it was written."""
        return damaged(self.path, reason, self._repair, touched=self.is_sealed)

    def read(self, columns: list[str] | None = None) -> pa.Table:
        """Reads some columns, or all.

        Raises:
            UserError: the file is damaged.
        """
        missing = sorted(set(columns or ()) - self._names)
        if missing:
            raise self.damaged(f"column {missing[0]!r} is not there")
        self._check_expansion(columns)
        try:
            table = self._file.read(columns=columns, use_threads=False)
        except (OSError, ValueError, pa.ArrowException) as error:
            raise self.damaged(first_line(error)) from None
        except MemoryError:
            raise UserError(f"{self.path} does not fit into memory") from None
        return table.replace_schema_metadata(self.schema.metadata)

    def _check_expansion(self, columns: list[str] | None) -> None:
        """Refuses a file of others whose few bytes stand for very many values.

        Raises:
            UserError: it would not stay below `MAX_EXPANSION` times its size.
        """
        if self.is_sealed:
            return
        footer = self._file.metadata
        self._refuse_beyond_limit(footer.num_rows * _VALUE_BYTES, "values")
        try:  # else a damaged description of a column ends the process below
            self._file.scan_contents()
        except (OSError, ValueError, pa.ArrowException) as error:
            raise self.damaged(first_line(error)) from None
        widths = [max(_VALUE_BYTES, leaf.length or 0) for leaf in _leaves(footer.schema)]
        groups = [footer.row_group(i) for i in range(footer.num_row_groups)]
        n_bytes = sum(
            group.column(i).num_values * width for group in groups for i, width in enumerate(widths)
        )
        self._refuse_beyond_limit(n_bytes, "values")
        self._check_texts(columns)

    def _check_texts(self, columns: list[str] | None) -> None:
        """Refuses texts that the file holds once and many rows point at.

        Raises:
            UserError: damaged, or see `_check_expansion`.
        """
        names = [
            leaf.path
            for leaf in _leaves(self._file.metadata.schema)
            if leaf.physical_type == "BYTE_ARRAY"
            and leaf.logical_type.type != "DECIMAL"
            and (columns is None or any(f"{leaf.path}.".startswith(f"{c}.") for c in columns))
        ]
        if len(set(names)) < len(names):
            raise self.damaged("two columns have one name")
        n_bytes = 0
        try:
            file = pq.ParquetFile(self.path, read_dictionary=names, pre_buffer=False)
            for name in names:
                for batch in file.iter_batches(1 << 20, columns=[name], use_threads=False):
                    n_bytes += _text_bytes(batch.column(0))
        except (OSError, ValueError, IndexError, pa.ArrowException) as error:
            raise self.damaged(first_line(error)) from None
        self._refuse_beyond_limit(n_bytes, "text")

    def _refuse_beyond_limit(self, n_bytes: int, what: str) -> None:
        if n_bytes > max(_EASY_BYTES, MAX_EXPANSION * self._stat.st_size):
            raise UserError(
                f"{self.path} holds {self._stat.st_size} bytes that stand for {n_bytes} bytes of "
                f"{what}; more than {MAX_EXPANSION} times its size is not read"
            )

    def row_groups(self) -> list[int]:
        """Rows of each row group."""
        meta = self._file.metadata
        return [meta.row_group(i).num_rows for i in range(meta.num_row_groups)]

    def blocks(
        self, columns: list[str], n_rows: int, row_groups: list[int] | None = None
    ) -> Iterator[pa.Table]:
        """Reads some columns, at most so many rows at a time, of all row groups or of some.

        Raises:
            UserError: the file is damaged.
        """
        missing = sorted(set(columns) - self._names)
        if missing:
            raise self.damaged(f"column {missing[0]!r} is not there")
        try:
            for batch in self._file.iter_batches(n_rows, row_groups, columns, use_threads=False):
                yield pa.Table.from_batches([batch]).replace_schema_metadata(None)
        except (OSError, ValueError, pa.ArrowException) as error:
            raise self.damaged(first_line(error)) from None

    def trust(self) -> None:
        """Gives a file that was found sound the time that its seal names."""
        if self._seal is not None and not is_remote(self.path):
            os.utime(self.path, (self._seal[0], self._seal[0]))


def damaged(path: Path, reason: str, repair: str, touched: bool = False) -> UserError:
    """The error for a damaged file.

    Args:
        path: the file.
        reason: what is wrong.
        repair: what to do about it.
        touched: whether to change the time of the file where that is allowed, so that the next
            `loopjax embed` compares all of it instead of trusting it.
    """
    if touched and not is_remote(path):
        with contextlib.suppress(OSError):
            os.utime(path)
    return UserError(f"{path} is damaged: {reason}; {repair}")


def _leaves(schema: pq.ParquetSchema) -> list[pq.ColumnSchema]:
    return [schema.column(i) for i in range(len(schema))]


def _text_bytes(column: pa.Array) -> int:
    """Bytes of all texts in a column that was read as a dictionary, on any level of it."""
    if pa.types.is_struct(column.type):
        return sum(_text_bytes(inner) for inner in column.flatten())
    if pa.types.is_map(column.type):
        return _text_bytes(column.keys) + _text_bytes(column.items)
    if pa.types.is_nested(column.type):
        return _text_bytes(column.flatten())
    if not pa.types.is_dictionary(column.type):
        return column.nbytes
    lengths = pc.fill_null(pc.call_function("binary_length", [column.dictionary]), 0)
    places = column.indices.drop_null().to_numpy()
    return int(lengths.to_numpy(zero_copy_only=False)[places].sum(dtype=np.int64))


def require_finite(matrix: np.ndarray, where: str, first_row: int = 0) -> None:
    """Refuses NaN and infinity, naming the first bad row."""
    bad = ~np.isfinite(matrix).all(axis=1)
    if bad.any():
        raise UserError(
            f"{where}: row {first_row + int(np.argmax(bad))} holds NaN or infinity "
            f"({int(bad.sum())} such rows); embed these loops again"
        )


def first_line(error: Exception) -> str:
    """The first line of a library's message, which may be long."""
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def _seal(path: Path) -> None:
    """Writes time, size and digest into their place in the footer."""
    written_s = int(time.time())
    with path.open("r+b") as file:
        at = _find_seal(file)
        if at is None:
            raise OSError(f"no place for the checksum in {path.name}")
        file.seek(at - _DIGEST_AT)
        file.write(f"{written_s:012d} {path.stat().st_size:015d} ".encode())
        digest = _digest(file, at)
        file.seek(at)
        file.write(digest)
    os.utime(path, (written_s, written_s))


def _find_seal(file: BinaryIO) -> int | None:
    """Where the digest begins; None in a file without one."""
    size = file.seek(0, os.SEEK_END)
    length, magic = struct.unpack("<I4s", _read_at(file, size - 8, 8)) if size > 12 else (0, b"")
    if magic != b"PAR1" or length + 12 > size:
        return None
    start = size - 8 - length
    at = _read_at(file, start, length).rfind(_SEAL_AT)
    return None if at < 0 else start + at + len(_SEAL_AT) + _DIGEST_AT


def _is_stale(file: BinaryIO, at: int) -> bool:
    """Whether the seal is of another file, whose keys were copied into this one."""
    return _read_at(file, at - 16, 15) != f"{file.seek(0, os.SEEK_END):015d}".encode()


def _digest(file: BinaryIO, at: int) -> bytes:
    """SHA-256 of a file, in hexadecimal, with the place of that digest zero."""
    whole = hashlib.sha256()
    file.seek(0)
    while chunk := file.read(min(_CHUNK_BYTES, at - file.tell())):
        whole.update(chunk)
    whole.update(b"0" * _DIGEST_BYTES)
    file.seek(at + _DIGEST_BYTES)
    while chunk := file.read(_CHUNK_BYTES):
        whole.update(chunk)
    return whole.hexdigest().encode()


def _read_at(file: BinaryIO, at: int, size: int) -> bytes:
    file.seek(at)
    return file.read(size)
