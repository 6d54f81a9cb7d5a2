"""Loops that lie in larger files: tar shards, Parquet tables, data sets, object stores.

A container yields records one after the other, each with the bytes of one audio file and with
whatever else is known about it; these further columns ride along into the store.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Protocol

from loopjax.audio.decode import DecodeOptions
from loopjax.audio.decoder import Decoder
from loopjax.audio.loop import Failure, Loop, display, make_key
from loopjax.audio.process import DecoderProcess
from loopjax.audio.sources.selection import Selection
from loopjax.audio.sources.unit import Unit
from loopjax.errors import UserError

GROUP_COLUMNS = ("group", "family", "label", "genre")
REST = "metadata"  # column of what only some records have, as JSON
# Columns of the store, which a record's own must not hide.
TAKEN = {
    *("id", "key", "path", "path_bytes", "group", "sha256", "size_bytes", "mtime_ns", "embedding"),
    *("sample_rate_hz", "channels", "n_frames", "duration_s", "subtype", "flags", "crop_std"),
}


@dataclass(frozen=True)
class Record:
    """The bytes of one audio file, wherever they lie.

    Attributes:
        name: within its container, unique there.
        fetch: reads them; OSError where that fails.
        size_bytes: how many there are; 0 if unknown.
        mtime_ns: of the last change; 0 if unknown.
        group: what it belongs to.
        columns: whatever else is known, as text.
    """

    name: str
    fetch: Callable[[], bytes]
    size_bytes: int = 0
    mtime_ns: int = 0
    group: str = ""
    columns: Mapping[str, str] = field(default_factory=dict)


class ContainerError(Exception):
    """A container is damaged from some place on; says why."""


class Container(Protocol):
    """Something that holds records."""

    @property
    def kind(self) -> str:
        """`tar`, `parquet`, ...: how its records' paths begin."""
        ...

    @property
    def name(self) -> str:
        """What its records' identities begin with: the same when it moves."""
        ...

    @property
    def address(self) -> str:
        """Where it is, for people and to find it again."""
        ...

    def records(self) -> Iterator[Record]:
        """Its records in order.

        Raises:
            ContainerError: from here on it cannot be read.
        """
        ...


class Records:
    """Containers as one corpus; every record is decoded in a child process."""

    n_loops = None  # only reading all of them would tell

    def __init__(self, containers: Sequence[Container], selection: Selection):
        """Looks at the first record, whose columns become those of the store.

        Raises:
            UserError: there is none, or two containers have one name.
        """
        self._containers = list({container.address: container for container in containers}.values())
        self._selection = selection
        named: dict[str, str] = {}
        for container in self._containers:
            other = named.setdefault(container.name, container.address)
            if other != container.address:
                raise UserError(
                    f"{other} and {container.address} have the same name, so that their loops "
                    "could be taken for one another; rename one"
                )
        self.columns = self._first_columns()

    def loops(self, process_index: int = 0, process_count: int = 1) -> Iterator[Loop | Failure]:
        """The manifest, container by container."""
        for container in self._containers:
            for item in self._loops_of(container):
                if int(item.key, 16) % process_count == process_index:
                    yield item

    def units(self, n_loops: int) -> Iterator[Unit]:
        """One per container: only reading it would tell how many records it holds."""
        for number, container in enumerate(self._containers):
            digest = hashlib.sha256(container.name.encode()).hexdigest()
            yield Unit(number, digest, lambda container=container: self._loops_of(container))

    def decoder(self, options: DecodeOptions, timeout_s: float) -> Decoder:
        """A decoder in a process of its own."""
        return DecoderProcess(options, timeout_s)

    def _loops_of(self, container: Container) -> Iterator[Loop | Failure]:
        seen: set[str] = set()
        try:
            for record in container.records():
                if not self._selection.takes(record.name):
                    continue
                loop = self._loop(container, record)
                if loop.key in seen:
                    message = "the container holds this name more than once"
                    loop = replace(loop, key=make_key(f"{loop.key} {len(seen)}".encode()))
                    yield Failure.of(loop, "scan", "repeated_name", message)
                else:
                    yield loop
                seen.add(loop.key)
        except ContainerError as error:
            key, path = make_key(container.name.encode()), _path(container, "")
            yield Failure(key, display(path), path, "scan", "read_error", str(error))

    def _loop(self, container: Container, record: Record) -> Loop:
        path = _path(container, record.name)
        return Loop(
            make_key(f"{container.name}#{record.name}".encode("utf-8", "surrogateescape")),
            display(path),
            path,
            record.size_bytes,
            record.mtime_ns,
            record.group,
            record.fetch,
            self._fitted(record.columns),
        )

    def _first_columns(self) -> tuple[str, ...]:
        problem = ""
        for container in self._containers:
            try:
                for record in islice(container.records(), 1):
                    names = sorted({*map(_free, record.columns)} - {REST})
                    return (*names, REST) if names else ()
            except ContainerError as error:
                problem = problem or str(error)
        names = ", ".join(container.address for container in self._containers)
        raise UserError(problem or f"no audio in {names}")

    def _fitted(self, columns: Mapping[str, str]) -> Mapping[str, str]:
        """The columns of the store, and all others together in one of them."""
        named = {_free(name): value for name, value in columns.items()}
        rest = {name: value for name, value in named.items() if name not in self.columns}
        known = {name: value for name, value in named.items() if name in self.columns}
        return known | {REST: json.dumps(rest, sort_keys=True)} if rest else known


def group_of(columns: Mapping[str, str], default: str) -> str:
    """What a record belongs to: the first column that says so, or else the default."""
    return next((columns[name] for name in GROUP_COLUMNS if columns.get(name)), default)


def as_text(value: object) -> str:
    """A value of a column: text as it is, everything else as JSON."""
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _free(name: str) -> str:
    return f"source_{name}" if name in TAKEN else name


def _path(container: Container, name: str) -> bytes:
    path = f"{container.kind}:{container.address}" + (f"#{name}" if name else "")
    return path.encode("utf-8", "surrogateescape")
