"""What there is to embed: walks folders, files and lists into `Loop` rows.

Of the files themselves only those without an extension, and those named by hand, are opened: their
first bytes must be audio. What cannot be embedded becomes a `Failure` row with a reason; the walk
itself never stops, and no file is taken twice.
"""

# Names that are not UTF-8 must stay bytes, which pathlib does not hold.
# ruff: noqa: PTH100, PTH112, PTH113, PTH116, PTH118, PTH119, PTH120, PTH122
import functools
import hashlib
import itertools
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from loopjax.audio.containers.read import READABLE
from loopjax.audio.decode import DecodeOptions
from loopjax.audio.decoder import Decoder
from loopjax.audio.loop import Failure, Loop, display, make_key, modified_ns, os_reason
from loopjax.audio.process import DecoderProcess
from loopjax.audio.sources.lists import LIST_EXTENSIONS, read_list
from loopjax.audio.sources.selection import Selection
from loopjax.audio.sources.unit import Unit
from loopjax.audio.sources.walk import AUDIO_EXTENSIONS, FOREIGN_EXTENSIONS, is_audio_file, walk
from loopjax.bundled import DATA
from loopjax.errors import UserError

EVERYTHING = Selection()


class Files:
    """Folders, files and lists as one corpus; every file is decoded in a child process."""

    columns: tuple[str, ...] = ()

    def __init__(
        self, sources: Sequence[str | os.PathLike[str]], selection: Selection = EVERYTHING
    ):
        """Counts the files, reading folder listings only.

        Args:
            sources: see `scan`.
            selection: see `scan`.

        Raises:
            UserError: see `scan`.
        """
        self._sources, self._selection = sources, selection
        self._length = sum(1 for _ in _entries(_check_sources(sources), selection))

    def __len__(self) -> int:
        return self._length

    @property
    def n_loops(self) -> int:
        """Rows of the manifest."""
        return self._length

    def loops(self, process_index: int = 0, process_count: int = 1) -> Iterator[Loop | Failure]:
        """The manifest, see `scan`."""
        return scan(self._sources, process_index, process_count, self._selection)

    def units(self, n_loops: int) -> Iterator[Unit]:
        """Stretches of the manifest; a file is looked at when its unit is listed."""
        entries = _entries(_check_sources(self._sources), self._selection)
        number = 0
        while some := list(itertools.islice(entries, n_loops)):
            keys = [make_key(entry.identity) for entry in some]
            digest = hashlib.sha256("".join(keys).encode()).hexdigest()
            yield Unit(number, digest, functools.partial(_rows, some, keys))
            number += 1

    def decoder(self, options: DecodeOptions, timeout_s: float) -> Decoder:
        """A decoder in a process of its own."""
        return DecoderProcess(options, timeout_s)


def _rows(entries: Sequence["_Entry"], keys: Sequence[str]) -> Iterator[Loop | Failure]:
    return map(_row, entries, keys)


def scan(
    sources: Sequence[str | os.PathLike[str]],
    process_index: int = 0,
    process_count: int = 1,
    selection: Selection = EVERYTHING,
) -> Iterator[Loop | Failure]:
    """Lists everything under the sources, in a stable order, as a lazy stream.

    Args:
        sources: folders (walked recursively, links followed, each folder once), audio files, lists
            of paths relative to the list (`lists.py`), and `bundled:demo`.
        process_index: which slice to return; slices depend on the key alone.
        process_count: number of slices.
        selection: patterns of what to take from folders and lists.

    Raises:
        UserError: a source that does not exist, a named file that is no audio, two folders of the
            same name, a list that cannot be read, or no source at all.
    """
    entries = _entries(_check_sources(sources), selection)

    def slice_of_mine() -> Iterator[Loop | Failure]:
        for entry in entries:
            key = make_key(entry.identity)
            if int(key, 16) % process_count == process_index:
                yield _row(entry, key)

    return slice_of_mine()


@dataclass(frozen=True)
class _Entry:
    """A path that was found: `identity` names it in the key, `shown` on screen.

    `group` is its folder relative to the source folder: led by that folder's name where there are
    several, and just that name for files which lie in it directly.
    """

    identity: bytes
    shown: bytes
    absolute: bytes
    group: bytes
    error: OSError | None = None
    problem: str = ""


@dataclass(frozen=True)
class _Source:
    path: bytes
    shown: bytes
    kind: str  # "folder", "list" or "file"


def _check_sources(sources: Sequence[str | os.PathLike[str]]) -> list[_Source]:
    if not sources:
        raise UserError("no sources given; name a folder, an audio file or a .txt list of paths")
    found: list[_Source] = []
    folders: dict[bytes, bytes] = {}
    for source in sources:
        shown = given = os.fsencode(source)
        if b"\0" in given:
            raise UserError(f"{display(given)!r}: a path cannot hold a NUL byte")
        if shown.startswith(b"bundled:"):
            given = _bundled(shown)
        extension = os.path.splitext(given)[1].lower()
        if os.path.isdir(given):
            if os.path.realpath(given) in folders:
                continue  # named twice
            _require_distinct(given, folders)
            folders[os.path.realpath(given)] = given
            found.append(_Source(given, shown, "folder"))
        elif not os.path.lexists(given):
            raise UserError(f"{display(given)}: no such file or folder")
        elif extension in LIST_EXTENSIONS:
            found.append(_Source(given, shown, "list"))
        else:
            _require_audio(given)
            found.append(_Source(given, shown, "file"))
    return found


def _bundled(name: bytes) -> bytes:
    folder = DATA / display(name.removeprefix(b"bundled:"))
    if not folder.is_dir() or folder.parent != DATA:
        raise UserError(f"{display(name)}: no such bundled corpus; there is bundled:demo")
    return os.fsencode(folder)


def _require_distinct(given: bytes, folders: dict[bytes, bytes]) -> None:
    real = os.path.realpath(given)
    for other, shown in folders.items():
        inner, outer = (given, shown) if len(real) >= len(other) else (shown, given)
        if (real + b"/").startswith(other + b"/") or (other + b"/").startswith(real + b"/"):
            raise UserError(
                f"{display(inner)} lies inside {display(outer)}: name only the outer folder"
            )
        if os.path.basename(other) == os.path.basename(real):
            raise UserError(
                f"two folders are called {display(os.path.basename(real))!r}: {display(shown)} and "
                f"{display(given)}; name their common parent folder, or embed into two stores"
            )


def _require_audio(given: bytes) -> None:
    """A file named by hand that is no audio at all is a mistake, not a rejected input."""
    extension = os.path.splitext(given)[1].lower()
    if extension in AUDIO_EXTENSIONS | FOREIGN_EXTENSIONS or not os.path.isfile(given):
        return
    try:
        is_audio = is_audio_file(given)
    except OSError:
        return  # unreadable files become rows with the system's reason
    if not is_audio:
        raise UserError(f"{display(given)} is not an audio file ({READABLE})")


def _entries(sources: list[_Source], selection: Selection) -> Iterator[_Entry]:
    several = sum(source.kind == "folder" for source in sources) > 1
    seen: set[int] = set()
    for source in sources:
        if source.kind == "folder":
            entries = _walk(source, selection, several)
        elif source.kind == "list":
            entries = _list(source, selection)
        else:
            absolute = os.path.abspath(source.path)
            entry = _Entry(absolute, source.shown, absolute, _group_below(b"", absolute))
            entries = iter([entry])
        if source.kind == "folder" and len(sources) == 1:
            yield from entries  # nothing can be named twice
            return
        for entry in entries:
            place = int(make_key(entry.absolute), 16)
            if place not in seen or entry.problem:
                seen.add(place)
                yield entry


def _list(source: _Source, selection: Selection) -> Iterator[_Entry]:
    base = os.path.dirname(os.path.abspath(source.path))
    for line in read_list(source.path):
        absolute = os.path.abspath(line.path)
        if line.problem:
            problem = f"{display(source.path)}:{line.number}: {line.problem}"
            identity = absolute + b":%d" % line.number
            yield _Entry(identity, line.path, absolute, b"", None, problem)
        elif selection.takes(display(absolute.removeprefix(os.path.join(base, b"")))):
            yield _Entry(absolute, line.path, absolute, _group_below(base, absolute))


def _group_below(root: bytes, file: bytes) -> bytes:
    """The folder of a file relative to a root; its mere name where that says nothing."""
    folder = os.path.dirname(file)
    inside = root and folder.startswith(root + b"/")
    return folder[len(root) + 1 :] if inside else os.path.basename(folder)


def _walk(source: _Source, selection: Selection, several: bool) -> Iterator[_Entry]:
    label = os.path.basename(os.path.realpath(source.path))
    absolute = os.path.abspath(source.path)
    for found in walk(absolute, selection):
        relative, outer = found.relative, os.path.dirname(found.relative)
        bases = (label, source.shown, absolute)
        named, shown, path = (os.path.join(b, relative) if relative else b for b in bases)
        group = os.path.join(label, outer).rstrip(b"/") if several else outer or label
        yield _Entry(named, shown, path, group, found.error)


def _row(entry: _Entry, key: str) -> Loop | Failure:
    shown, absolute = display(entry.shown), entry.absolute
    if entry.problem:
        return Failure(key, shown, absolute, "scan", "bad_path", entry.problem)
    try:
        if entry.error is not None:
            raise entry.error
        info = os.stat(absolute)
    except OSError as error:
        return Failure(key, shown, absolute, "scan", os_reason(error), str(error.strerror))
    except ValueError as error:  # a NUL byte, as in a damaged list
        return Failure(key, shown, absolute, "scan", "not_found", f"no name of a file: {error}")
    if not stat.S_ISREG(info.st_mode):
        kind = "folder" if stat.S_ISDIR(info.st_mode) else "device, pipe or socket"
        return Failure(key, shown, absolute, "scan", "not_regular_file", f"is a {kind}")
    return Loop(key, shown, absolute, info.st_size, modified_ns(info), display(entry.group))
