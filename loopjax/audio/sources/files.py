"""What there is to embed: walks folders, files and lists into `Loop` rows.

Nothing is opened here except explicitly named files, whose first bytes must be audio. What cannot
be embedded becomes a `Failure` row with a reason; the walk itself never stops.
"""

# Names that are not UTF-8 must stay bytes, which pathlib does not hold.
# ruff: noqa: PTH100, PTH112, PTH113, PTH116, PTH118, PTH119, PTH120, PTH122, PTH123
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from loopjax.audio.containers.read import READABLE
from loopjax.audio.containers.sniff import HEAD_BYTES, sniff
from loopjax.audio.decode import DecodeOptions
from loopjax.audio.decoder import Decoder
from loopjax.audio.loop import Failure, Loop, display, make_key, os_reason
from loopjax.audio.process import DecoderProcess
from loopjax.audio.sources.lists import LIST_EXTENSIONS, read_list
from loopjax.bundled import DATA
from loopjax.errors import UserError

AUDIO_EXTENSIONS = frozenset(
    b".wav .wave .rf64 .bwf .aif .aiff .aifc .flac .ogg .oga .opus .mp3 .au .snd .caf".split()
)


class Files:
    """Folders, files and lists as one corpus; every file is decoded in a child process."""

    def __init__(self, sources: Sequence[str | os.PathLike]):
        """Counts the files, reading folder listings only.

        Args:
            sources: see `scan`.

        Raises:
            UserError: see `scan`.
        """
        self._sources = sources
        self._length = count(sources)

    def __len__(self) -> int:
        return self._length

    def loops(self, process_index: int = 0, process_count: int = 1) -> Iterator[Loop | Failure]:
        """The manifest, see `scan`."""
        return scan(self._sources, process_index, process_count)

    def decoder(self, options: DecodeOptions, timeout_s: float) -> Decoder:
        """A decoder in a process of its own."""
        return DecoderProcess(options, timeout_s)


def scan(
    sources: Sequence[str | os.PathLike], process_index: int = 0, process_count: int = 1
) -> Iterator[Loop | Failure]:
    """Lists everything under the sources, in a stable order, as a lazy stream.

    Args:
        sources: folders (walked recursively, links followed, each folder once), audio files,
            `.txt`/`.lst` lists with one path per line, relative to the list, and `bundled:demo`.
        process_index: which slice to return; slices depend on the key alone.
        process_count: number of slices.

    Raises:
        UserError: a source that does not exist, a named file that is no audio, two folders of the
            same name, or no source at all.
    """
    entries = _entries(_check_sources(sources))

    def slice_of_mine() -> Iterator[Loop | Failure]:
        for entry in entries:
            key = make_key(entry.identity)
            if int(key, 16) % process_count == process_index:
                yield _row(entry, key)

    return slice_of_mine()


def count(sources: Sequence[str | os.PathLike]) -> int:
    """Number of rows `scan` will yield; reads folder listings only."""
    return sum(1 for _ in _entries(_check_sources(sources)))


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


def _check_sources(sources: Sequence[str | os.PathLike]) -> list[tuple[bytes, bytes, str]]:
    """Returns (path, name on screen, kind) of each source."""
    if not sources:
        raise UserError("no sources given; name a folder, an audio file or a .txt list of paths")
    found: list[tuple[bytes, bytes, str]] = []
    folders: dict[bytes, bytes] = {}
    for source in sources:
        shown = given = os.fsencode(source)
        if shown.startswith(b"bundled:"):
            given = _bundled(shown)
        extension = os.path.splitext(given)[1].lower()
        if os.path.isdir(given):
            _require_distinct(given, folders)
            folders[os.path.realpath(given)] = given
            found.append((given, shown, "folder"))
        elif not os.path.lexists(given):
            raise UserError(f"{display(given)}: no such file or folder")
        elif extension in LIST_EXTENSIONS:
            found.append((given, shown, "list"))
        else:
            _require_audio(given)
            found.append((given, shown, "file"))
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
    if os.path.splitext(given)[1].lower() in AUDIO_EXTENSIONS or not os.path.isfile(given):
        return
    try:
        with open(given, "rb") as file:
            head = file.read(HEAD_BYTES)
    except OSError:
        return  # unreadable files become rows with the system's reason
    if sniff(head) is None:
        raise UserError(f"{display(given)} is not an audio file ({READABLE})")


def _entries(sources: list[tuple[bytes, bytes, str]]) -> Iterator[_Entry]:
    several = sum(kind == "folder" for _, _, kind in sources) > 1
    for given, shown, kind in sources:
        absolute = os.path.abspath(given)
        if kind == "folder":
            yield from _walk(given, shown, absolute, several)
        elif kind == "list":
            for path in read_list(given):
                found = os.path.abspath(path)
                yield _Entry(found, path, found, _group_below(os.path.dirname(absolute), found))
        else:
            yield _Entry(absolute, shown, absolute, _group_below(b"", absolute))


def _group_below(root: bytes, file: bytes) -> bytes:
    """The folder of a file relative to a root; its mere name where that says nothing."""
    folder = os.path.dirname(file)
    inside = root and folder.startswith(root + b"/")
    return folder[len(root) + 1 :] if inside else os.path.basename(folder)


def _walk(root: bytes, shown: bytes, absolute: bytes, several: bool) -> Iterator[_Entry]:
    label = os.path.basename(os.path.realpath(root))
    seen: set[tuple[int, int]] = set()
    pending = [b""]
    while pending:
        relative = pending.pop()

        def entry(inner: bytes, error: OSError | None = None, outer: bytes = relative) -> _Entry:
            inner = b"/".join(part for part in (outer, inner) if part)
            bases = (label, shown, absolute)
            named, read, found = (os.path.join(b, inner) if inner else b for b in bases)
            group = os.path.join(label, outer).rstrip(b"/") if several else outer or label
            return _Entry(named, read, found, group, error)

        folder = os.path.join(absolute, relative)
        try:
            info = os.stat(folder)
            if (info.st_dev, info.st_ino) in seen:
                continue
            seen.add((info.st_dev, info.st_ino))
            with os.scandir(folder) as listing:
                names = sorted((item.name, _is_folder(item)) for item in listing)
        except OSError as error:
            yield entry(b"", error)
            continue
        for name, _ in names:
            is_audio = os.path.splitext(name)[1].lower() in AUDIO_EXTENSIONS
            if is_audio and not name.startswith(b"._"):  # AppleDouble companions of real files
                yield entry(name)
        pending.extend(os.path.join(relative, name) for name, inside in names[::-1] if inside)


def _is_folder(item: os.DirEntry) -> bool:
    try:
        return item.is_dir()
    except OSError:
        return False  # a link that cannot be followed; as an audio file it becomes a row


def _row(entry: _Entry, key: str) -> Loop | Failure:
    shown, absolute = display(entry.shown), entry.absolute
    try:
        if entry.error is not None:
            raise entry.error
        info = os.stat(absolute)
    except OSError as error:
        return Failure(key, shown, absolute, "scan", os_reason(error), str(error.strerror))
    if not stat.S_ISREG(info.st_mode):
        kind = "folder" if stat.S_ISDIR(info.st_mode) else "device, pipe or socket"
        return Failure(key, shown, absolute, "scan", "not_regular_file", f"is a {kind}")
    group = display(entry.group)
    return Loop(key, shown, absolute, info.st_size, info.st_mtime_ns, group)
