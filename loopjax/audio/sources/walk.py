"""Walks a folder for audio, lazily and in a stable order."""

# Names that are not UTF-8 must stay bytes, which pathlib does not hold.
# ruff: noqa: PTH116, PTH118, PTH122, PTH123
import os
from collections.abc import Iterator
from dataclasses import dataclass

from loopjax.audio.containers.sniff import HEAD_BYTES, describe_foreign, sniff
from loopjax.audio.loop import display
from loopjax.audio.sources.selection import Selection

AUDIO_EXTENSIONS = frozenset(
    b".wav .wave .rf64 .bwf .aif .aiff .aifc .flac .ogg .oga .opus .mp3 .mp2 .mp1 .mpga .au .snd "
    b".caf".split()
)
# Audio that the codecs extra may read; without it, each file is a row that says so.
FOREIGN_EXTENSIONS = frozenset(
    b".m4a .m4b .m4p .m4r .aac .adts .alac .wma .w64 .wv .spx .ape .mka .weba .ac3 .eac3 .dts .tta "
    b".mpc .amr .3ga .ra .dsf .dff .tak .ofr .voc .8svx .sd2 .rx2 .rex .gsm .shn .avr".split()
)


@dataclass(frozen=True)
class Found:
    """A file, or a folder that cannot be listed; paths relative to the walk's root."""

    relative: bytes
    error: OSError | None = None


def walk(root: bytes, selection: Selection) -> Iterator[Found]:
    """Yields audio by extension, and files without one whose first bytes are audio.

    Links are followed, each folder once; `._` companions that macOS leaves are no audio.

    Args:
        root: absolute path.
        selection: patterns of what to take.
    """
    seen: set[tuple[int, int]] = set()
    pending = [b""]
    while pending:
        outer = pending.pop()
        folder = os.path.join(root, outer) if outer else root
        try:
            info = os.stat(folder)
            if (info.st_dev, info.st_ino) in seen:
                continue
            seen.add((info.st_dev, info.st_ino))
            with os.scandir(folder) as listing:
                items = sorted((item.name, _is_folder(item), item) for item in listing)
        except OSError as error:
            yield Found(outer, error)
            continue
        for name, _, item in items:
            relative = outer + b"/" + name if outer else name
            if _is_audio(item) and selection.takes(display(relative)):
                yield Found(relative)
        pending.extend(
            outer + b"/" + name if outer else name for name, inside, _ in items[::-1] if inside
        )


def _is_folder(item: os.DirEntry[bytes]) -> bool:
    try:
        return item.is_dir()
    except OSError:
        return False  # a link that cannot be followed; as an audio file it becomes a row


def _is_audio(item: os.DirEntry[bytes]) -> bool:
    if item.name.startswith(b"._"):
        return False
    extension = os.path.splitext(item.name)[1].lower()
    if extension:
        return extension in AUDIO_EXTENSIONS or extension in FOREIGN_EXTENSIONS
    try:
        return item.is_file() and is_audio_file(item.path)
    except OSError:
        return False


def is_audio_file(path: bytes) -> bool:
    """Whether a file's first bytes are those of audio, readable here or not.

    Raises:
        OSError: it cannot be read.
    """
    with open(path, "rb") as file:
        head = file.read(HEAD_BYTES)
    return sniff(head) is not None or bool(describe_foreign(head))
