"""Tar shards as WebDataset writes them, read as a stream or at random.

Members whose names agree up to the first dot of their last part belong together: audio, and beside
it `.json` with columns, or any other text (`.txt`, `.cls`, ...) as a column of that name.
"""

import json
import os
import tarfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from loopjax.audio.sources.places import open_place
from loopjax.audio.sources.records import ContainerError, Record, as_text, group_of
from loopjax.audio.sources.walk import AUDIO_EXTENSIONS, FOREIGN_EXTENSIONS
from loopjax.io.remote import is_address

TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
TEXT_SUFFIXES = frozenset(["txt", "text", "cls", "label", "caption"])
MAX_TEXT_BYTES = 1 << 20
MAX_AUDIO_BYTES = 2 << 30
_UNREADABLE = (tarfile.TarError, OSError, EOFError, zlib.error, ValueError)


@dataclass(frozen=True)
class Tar:
    """One shard; of a local one that is not compressed, audio is read only when it is wanted."""

    address: str

    kind = "tar"

    @property
    def name(self) -> str:
        """Its file name."""
        return PurePosixPath(self.address).name

    def records(self) -> Iterator[Record]:
        """Its audio members in order.

        Raises:
            ContainerError: it is damaged or cannot be read.
        """
        at_random = self.address.endswith(".tar") and not is_address(self.address)
        try:
            with (
                open_place(self.address) as file,
                tarfile.open(fileobj=file, mode="r:" if at_random else "r|*") as tar,
            ):
                sample: list[tuple[tarfile.TarInfo, Callable[[], bytes]]] = []
                for member in tar:
                    if not member.isfile() or PurePosixPath(member.name).name.startswith("._"):
                        continue
                    if sample and _key(sample[0][0].name) != _key(member.name):
                        yield from self._sample(sample)
                        sample = []
                    sample.append((member, self._content(tar, member, at_random)))
                    tar.members = []  # pyright: ignore # it would grow with the shard
                yield from self._sample(sample)
        except _UNREADABLE as error:
            raise ContainerError(f"{self.address}: {error}") from None

    def _content(
        self, tar: tarfile.TarFile, member: tarfile.TarInfo, at_random: bool
    ) -> Callable[[], bytes]:
        if at_random:
            return lambda: _read_range(self.address, member.offset_data, member.size)
        if member.size > (MAX_AUDIO_BYTES if _is_audio(member.name) else MAX_TEXT_BYTES):
            return lambda: b""
        file = tar.extractfile(member)
        content = b"" if file is None else file.read()
        if len(content) < member.size:
            raise tarfile.ReadError(f"{member.name} is cut off")
        return lambda: content

    def _sample(
        self, members: list[tuple[tarfile.TarInfo, Callable[[], bytes]]]
    ) -> Iterator[Record]:
        audio = [entry for entry in members if _is_audio(entry[0].name)]
        if not audio:
            return
        columns: dict[str, str] = {}
        for member, content in members:
            if not _is_audio(member.name) and member.size <= MAX_TEXT_BYTES:
                columns |= _columns(member.name, content)
        for member, content in audio:
            folder = str(PurePosixPath(member.name).parent)
            group = folder if folder != "." else self.name.partition(".")[0]
            yield Record(
                member.name,
                content,
                member.size,
                int(member.mtime * 10**9),
                group_of(columns, group),
                columns,
            )


def _read_range(path: str, start: int, size: int) -> bytes:
    with Path(path).open("rb", buffering=0) as file:
        content = os.pread(file.fileno(), size, start) if hasattr(os, "pread") else b""
        if len(content) < size:  # a signal, or a system without it
            file.seek(start)
            content = b"".join(iter(lambda: file.read(size), b""))[:size]
    if len(content) < size:
        raise OSError(f"{path} is cut off")
    return content


def _key(name: str) -> str:
    """What the members of one sample share."""
    folder, _, last = name.rpartition("/")
    return f"{folder}/{last.partition('.')[0]}"


def _is_audio(name: str) -> bool:
    suffix = PurePosixPath(name).suffix.lower().encode()
    return suffix in AUDIO_EXTENSIONS or suffix in FOREIGN_EXTENSIONS


def _columns(name: str, content: Callable[[], bytes]) -> dict[str, str]:
    """What a side-car says; one that cannot be read says nothing."""
    suffix = name.rpartition("/")[2].partition(".")[2].lower()
    if suffix.rpartition(".")[2] == "json":
        try:
            value = json.loads(content().decode("utf-8-sig"))
        except (ValueError, RecursionError):
            return {"json_error": f"{name} is no JSON"}
        if isinstance(value, dict):
            return {str(key): as_text(item) for key, item in value.items() if item is not None}
        return {"json": as_text(value)}
    if suffix in TEXT_SUFFIXES:
        return {suffix: content().decode("utf-8", "replace").strip()}
    return {}
