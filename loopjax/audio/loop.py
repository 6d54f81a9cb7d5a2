"""One input on its way in: what a source lists, what decoding finds out, and why it may fail."""

import hashlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Loop:
    """One input, identified before it is opened.

    `key` is the first 16 hex digits of sha256(folder name of the source + relative path), so a
    corpus keeps its identities when its folder moves; explicit files and list entries use their
    absolute path. `path` is for people (escaped), `path_bytes` opens the file from anywhere.
    `group` is the file's folder relative to its source, or what a dataset's records name so.
    `fetch` reads the bytes of a loop that is no file of its own (OSError where that fails), and
    `columns` is what its record says beyond them.
    """

    key: str
    path: str
    path_bytes: bytes
    size_bytes: int
    mtime_ns: int
    group: str
    fetch: Callable[[], bytes] | None = field(default=None, compare=False, repr=False)
    columns: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class AudioInfo:
    """What decoding found out about a loop.

    Attributes:
        rate_hz: rate of the samples that were delivered.
        sha256: of the file's bytes, or of a record's samples.
        source_rate_hz: rate of the file.
        channels: of the file.
        n_frames: samples per channel at the file's rate.
        duration_s: of the whole file.
        subtype: sample format, as libsndfile names it.
        flags: sorted peculiarities that do not reject the file (`silence`, `clipped`, ...).
    """

    rate_hz: int
    sha256: str
    source_rate_hz: int
    channels: int
    n_frames: int
    duration_s: float
    subtype: str
    flags: tuple[str, ...] = ()


class DecodeError(Exception):
    """A file was rejected; `reason` is the short code in the list of failures."""

    def __init__(self, reason: str, message: str):
        super().__init__(message)
        self.reason = reason


class UnsupportedFormatError(DecodeError):
    """Audio of a kind that libsndfile does not read, or none; `kind` names what is known."""

    def __init__(self, kind: str = ""):
        super().__init__("unsupported_format", kind or "no known audio")
        self.kind = kind


@dataclass(frozen=True)
class Failure:
    """One input that did not become an embedding, and why."""

    key: str
    path: str
    path_bytes: bytes
    stage: str  # "scan", "decode" or "encode"
    reason: str
    message: str
    size_bytes: int = 0

    @classmethod
    def of(cls, loop: Loop, stage: str, reason: str, message: str) -> "Failure":
        """The failure of a loop that was listed."""
        return cls(loop.key, loop.path, loop.path_bytes, stage, reason, message, loop.size_bytes)


def display(path: bytes) -> str:
    """Readable, always valid UTF-8 form of a path; undecodable bytes appear escaped."""
    return path.decode("utf-8", "backslashreplace")


def make_key(identity: bytes) -> str:
    """First 16 hex digits of the SHA-256 of an identity."""
    return hashlib.sha256(identity).hexdigest()[:16]


def cut_group(group: str, depth: int) -> str:
    """The first `depth` folders of a group; 0 keeps all."""
    return "/".join(group.split("/")[:depth]) if depth else group


def modified_ns(info: os.stat_result) -> int:
    """Modification time in whole 64 bits: a file system may claim a year beyond 2262."""
    return max(-(1 << 63), min((1 << 63) - 1, info.st_mtime_ns))


def os_reason(error: OSError) -> str:
    """The failure reason of an operating-system error."""
    if isinstance(error, PermissionError):
        return "permission"
    if isinstance(error, FileNotFoundError):
        return "not_found"
    return "read_error"
