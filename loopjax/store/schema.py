"""What a store of embeddings holds: columns, metadata keys and the table of rejected inputs."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import pyarrow as pa

SCHEMA_VERSION = "1"
PREFIX = "loopjax."  # of our keys in the Parquet metadata
EMBEDDING = "embedding"
PROJECTION = "projection"  # into the space of sounds and texts, where the encoder has one
COLUMNS_KEY = "columns"  # of the metadata: names of the sources' own columns, as JSON
IDENTITY_KEYS = (
    "schema_version",
    "encoder",
    "weights_sha256",
    "preprocessing_sha256",
    "embedding_dim",
)

# Name, type and, for the documentation, meaning.
COLUMNS = (
    (
        "id",
        pa.string(),
        "16 hex digits of the content's SHA-256, `-`, the first key (older: 8 of it); stays",
    ),
    ("key", pa.string(), "follows from the place below the source; changes with it"),
    ("path", pa.string(), "for people; bytes that are not UTF-8 are escaped"),
    ("path_bytes", pa.binary(), "absolute, exact"),
    ("group", pa.string(), "folder relative to the source, or what a data set's records say"),
    ("sha256", pa.string(), "of the file's bytes, or of a record's samples"),
    ("size_bytes", pa.int64(), "of the file"),
    ("mtime_ns", pa.int64(), "modification time, wrapped into 64 bits from the year 2262 on"),
    ("sample_rate_hz", pa.int32(), "of the file"),
    ("channels", pa.int32(), "of the file"),
    ("n_frames", pa.int64(), "samples per channel at the file's rate"),
    ("duration_s", pa.float64(), "of the whole file"),
    ("subtype", pa.string(), "sample format, as libsndfile names it"),
    ("flags", pa.list_(pa.string()), "peculiarities that do not reject the file"),
    ("crop_std", pa.float32(), "spread over random crops; null with deterministic crops"),
)
ROW_FIELDS = tuple((name, type_) for name, type_, _ in COLUMNS)
FAILURE_COLUMNS = (
    ("key", pa.string(), "identifies the input across runs"),
    ("path", pa.string(), "for people; bytes that are not UTF-8 are escaped"),
    ("path_bytes", pa.binary(), "absolute, exact"),
    ("stage", pa.string(), "where it was rejected: scan, decode or encode"),
    ("reason", pa.string(), "one word for the kind"),
    ("message", pa.string(), "one sentence for people"),
    ("size_bytes", pa.int64(), "of the file; 0 if unknown"),
)
FAILURE_SCHEMA = pa.schema([(name, type_) for name, type_, _ in FAILURE_COLUMNS])


@dataclass(frozen=True)
class StoreRow:
    """One finished loop: a value for each of `ROW_FIELDS`, and its embedding."""

    id: str
    key: str
    path: str
    path_bytes: bytes
    group: str
    sha256: str
    size_bytes: int
    mtime_ns: int
    sample_rate_hz: int
    channels: int
    n_frames: int
    duration_s: float
    subtype: str
    flags: list[str]
    crop_std: float | None
    embedding: np.ndarray  # float32 [D]
    columns: Mapping[str, str] = field(default_factory=dict)  # of its source


PLACE_FIELDS = ("key", "path", "path_bytes", "group", "size_bytes", "mtime_ns")


@dataclass(frozen=True)
class Place:
    """Where a loop's file is: a value for each of `PLACE_FIELDS`."""

    key: str
    path: str
    path_bytes: bytes
    group: str
    size_bytes: int
    mtime_ns: int


class Rejected(Protocol):
    """A rejected input: a value for each field of `FAILURE_SCHEMA`."""

    @property
    def key(self) -> str:
        """Identifies the input across runs."""
        ...

    @property
    def path(self) -> str:
        """For people; bytes that are not UTF-8 are escaped."""
        ...

    @property
    def path_bytes(self) -> bytes:
        """Absolute and exact."""
        ...

    @property
    def stage(self) -> str:
        """Where it was rejected: scan, decode, encode."""
        ...

    @property
    def reason(self) -> str:
        """One word for the kind."""
        ...

    @property
    def message(self) -> str:
        """One sentence for people."""
        ...

    @property
    def size_bytes(self) -> int:
        """Of the file; 0 if unknown."""
        ...


# Embeddings [N, D] -> unit vectors [N, P] of the space that sounds share with texts.
Project = Callable[[np.ndarray], np.ndarray]


def table_of_rows(
    rows: Sequence[StoreRow], schema: pa.Schema, project: Project | None = None
) -> pa.Table:
    """Rows as a table of a shard's schema; with `project`, their projections stand beside."""
    columns: dict[str, list | pa.Array] = {
        name: [getattr(row, name) for row in rows] for name, _ in ROW_FIELDS
    }
    columns["mtime_ns"] = [as_int64(row.mtime_ns) for row in rows]
    for name in schema.names:
        if name not in columns and name != EMBEDDING:
            columns[name] = [row.columns.get(name) for row in rows]
    width = schema.field(EMBEDDING).type.list_size
    values = np.concatenate([row.embedding for row in rows])
    columns[EMBEDDING] = pa.FixedSizeListArray.from_arrays(pa.array(values), width)
    table = pa.table(columns, schema=schema)
    if project is None:
        return table
    joint = project(values.reshape(len(rows), width))
    column = pa.FixedSizeListArray.from_arrays(pa.array(joint.ravel()), joint.shape[1])
    return table.append_column(PROJECTION, column)


def as_int64(number: int) -> int:
    """A number of nanoseconds in 64 bits, wrapped around from the year 2262 on."""
    return (number + (1 << 63)) % (1 << 64) - (1 << 63)


def shard_schema(embedding_dim: int, metadata: dict[str, str]) -> pa.Schema:
    """Schema of a shard, with its metadata, which names the further columns of the sources."""
    width = pa.list_(pa.float32(), embedding_dim)
    further = [(name, pa.string()) for name in json.loads(metadata.get(COLUMNS_KEY, "[]"))]
    fields = [*ROW_FIELDS, *further, (EMBEDDING, width)]
    return pa.schema(fields, metadata=with_prefix(metadata))


def with_prefix(metadata: dict[str, str]) -> dict[str, str]:
    """Metadata under the keys that `read_metadata` finds in a file."""
    return {PREFIX + key: str(value) for key, value in metadata.items()}


def read_metadata(schema: pa.Schema) -> dict[str, str]:
    """Our keys in a file's metadata."""
    return {
        key.decode("utf-8", "replace")[len(PREFIX) :]: value.decode("utf-8", "replace")
        for key, value in (schema.metadata or {}).items()
        if key.startswith(PREFIX.encode())
    }
