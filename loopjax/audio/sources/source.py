"""Where loops come from: one typed door to files and to datasets."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

from loopjax.audio.decode import DecodeOptions
from loopjax.audio.decoder import Decoder
from loopjax.audio.loop import Failure, Loop
from loopjax.audio.sources.files import EVERYTHING, Files
from loopjax.audio.sources.objects import RemoteFolder
from loopjax.audio.sources.packed import PackedShards, packed_among
from loopjax.audio.sources.places import expand, local_matches
from loopjax.audio.sources.records import Container, Records
from loopjax.audio.sources.selection import Selection
from loopjax.audio.sources.tables import HF_PREFIX, ParquetTable, open_hf
from loopjax.audio.sources.tars import TAR_SUFFIXES, Tar
from loopjax.audio.sources.unit import Unit
from loopjax.audio.sources.walk import AUDIO_EXTENSIONS
from loopjax.errors import UserError
from loopjax.io.remote import is_address


class Source(Protocol):
    """A corpus: its manifest, and decoders that read the manifest's rows."""

    @property
    def n_loops(self) -> int | None:
        """Rows of the whole manifest; None where only reading everything would tell."""
        ...

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of what records say beyond their audio."""
        ...

    def loops(self, process_index: int = 0, process_count: int = 1) -> Iterator[Loop | Failure]:
        """The manifest in a stable order, or the slice of one of several processes."""
        ...

    def units(self, n_loops: int) -> Iterator[Unit]:
        """The manifest in stretches of about this many loops; one may be skipped for nothing."""
        ...

    def decoder(self, options: DecodeOptions, timeout_s: float) -> Decoder:
        """A new decoder; several may run side by side."""
        ...


def open_source(
    sources: Sequence[str | os.PathLike[str]], selection: Selection = EVERYTHING
) -> Source:
    """Opens files, or what holds them.

    That is folders, files and lists together; or containers together (tar shards, Parquet tables,
    `hf:NAME`, addresses such as `s3://bucket/loops`, patterns of these); or one prepared dataset
    (`tfds:NAME`).

    Args:
        sources: see `loopjax.audio.sources.files.scan`.
        selection: patterns of what to take from folders and lists.

    Raises:
        UserError: a source that is empty, does not exist or is no audio, or a dataset among
            others.
    """
    if not all(os.fspath(source) for source in sources):
        raise UserError("a source is empty: name a folder, an audio file or a list of paths")
    datasets = [str(s) for s in sources if str(s).startswith("tfds:")]
    if not datasets:
        containers = [_containers(os.fsdecode(source)) for source in sources]
        if not any(containers):
            return Files(sources, selection)
        if not all(containers):
            plain = next(s for s, held in zip(sources, containers, strict=True) if not held)
            raise UserError(
                f"{plain} is a folder or file of audio, other sources hold records: embed the "
                "two kinds separately"
            )
        found = [one for held in containers for one in held]
        addresses = [one.address for one in found]
        packed = packed_among(addresses)
        return PackedShards(addresses, selection) if packed else Records(found, selection)
    if len(sources) > 1:
        raise UserError(f"{datasets[0]} must be the only source; embed the others separately")
    from loopjax.audio.sources.tfds import open_dataset  # takes a second to import

    return open_dataset(datasets[0])


def _containers(source: str) -> list[Container]:
    """What a source holds of containers; nothing if it is a file or folder of files.

    Raises:
        UserError: a container is not there.
    """
    if source.startswith(HF_PREFIX) and not is_address(source):
        return [*open_hf(source)]
    if is_address(source):
        return [_container(address) or RemoteFolder(address) for address in expand(source)]
    if Path(source).is_dir():
        inside = sorted(file for file in Path(source).iterdir() if file.is_file())
        held = [_container(str(file)) for file in inside]
        if any(file.suffix.lower().encode() in AUDIO_EXTENSIONS for file in inside):
            return []
        return [one for one in held if one is not None]
    names = local_matches(source)
    held = [_container(name) for name in names]
    missing = [name for name in names if not Path(name).exists()]
    if missing and (len(names) > 1 or held[0] is not None):
        raise UserError(f"{missing[0]}: no such file")
    return [one for one in held if one is not None]


def _absolute(place: str) -> str:
    return place if is_address(place) else str(Path(place).absolute())


def _container(place: str) -> Container | None:
    if place.lower().endswith(TAR_SUFFIXES):
        return Tar(_absolute(place))
    if place.lower().endswith(".parquet"):
        return ParquetTable(_absolute(place))
    return None
