"""Where loops come from: one typed door to files and to datasets."""

import os
from collections.abc import Iterator, Sequence
from typing import Protocol

from loopjax.audio.decode import DecodeOptions
from loopjax.audio.decoder import Decoder
from loopjax.audio.loop import Failure, Loop
from loopjax.audio.sources.files import EVERYTHING, Files
from loopjax.audio.sources.selection import Selection
from loopjax.audio.sources.unit import Unit
from loopjax.errors import UserError


class Source(Protocol):
    """A corpus: its manifest, and decoders that read the manifest's rows."""

    def __len__(self) -> int:
        """Rows of the whole manifest."""
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
    """Opens folders, files and lists together, or one prepared dataset (`tfds:NAME`).

    Args:
        sources: see `loopjax.audio.sources.files.scan`.
        selection: patterns of what to take from folders and lists.

    Raises:
        UserError: a source that does not exist or is no audio, or a dataset among other sources.
    """
    datasets = [str(s) for s in sources if str(s).startswith("tfds:")]
    if not datasets:
        return Files(sources, selection)
    if len(sources) > 1:
        raise UserError(f"{datasets[0]} must be the only source; embed the others separately")
    from loopjax.audio.sources.tfds import open_dataset  # takes a second to import

    return open_dataset(datasets[0])
