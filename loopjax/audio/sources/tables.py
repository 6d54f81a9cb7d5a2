"""Audio in columns: Parquet files, and data sets of Hugging Face's `datasets`.

An audio column holds bytes, or a struct of `bytes` and `path` as `datasets` writes it, or paths of
files beside the table. Without a column called so, the first one that looks like it is taken.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from loopjax.audio.sources.places import open_place
from loopjax.audio.sources.records import ContainerError, Record, as_text, group_of
from loopjax.audio.sources.walk import AUDIO_EXTENSIONS, FOREIGN_EXTENSIONS
from loopjax.errors import UserError
from loopjax.io.remote import is_address

AUDIO_COLUMNS = ("audio", "bytes", "wav", "flac", "file", "path", "file_name")
NAME_COLUMNS = ("path", "id", "name", "file_name", "filename")
BATCH_ROWS = 64
HF_PREFIX = "hf:"


@dataclass(frozen=True)
class ParquetTable:
    """One Parquet file with an audio column."""

    address: str

    kind = "parquet"

    @property
    def name(self) -> str:
        """Its file name."""
        return PurePosixPath(self.address).name

    def records(self) -> Iterator[Record]:
        """Its rows in order.

        Raises:
            ContainerError: it is damaged or has no audio.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            with open_place(self.address) as file:
                table = pq.ParquetFile(file)
                column = _audio_column(table.schema_arrow.names, self.address)
                row = 0
                for batch in table.iter_batches(BATCH_ROWS):
                    for values in batch.to_pylist():
                        yield _record(values, column, row, self.address)
                        row += 1
        except (OSError, ValueError, pa.ArrowException) as error:
            raise ContainerError(f"{self.address}: {str(error).splitlines()[0]}") from None


@dataclass(frozen=True)
class HuggingFaceSplit:
    """One split of a data set, read as a stream."""

    dataset: str
    split: str

    kind = "hf"

    @property
    def name(self) -> str:
        """Data set and split."""
        return f"{self.dataset.rstrip('/').rpartition('/')[2]}/{self.split}"

    @property
    def address(self) -> str:
        """As it was named."""
        return f"{self.dataset}/{self.split}"

    def records(self) -> Iterator[Record]:
        """Its rows in order.

        Raises:
            ContainerError: it cannot be read.
        """
        import datasets

        rows = _load_hf(self.dataset)[self.split]
        column = _audio_column(list(rows.features or ()), self.dataset)
        if isinstance((rows.features or {}).get(column), datasets.Audio):
            rows = rows.cast_column(column, datasets.Audio(decode=False))
        try:
            for row, values in enumerate(rows):
                yield _record(values, column, row, self.dataset)
        except Exception as error:  # noqa: BLE001 - datasets raises what its readers raise
            raise ContainerError(f"{HF_PREFIX}{self.dataset}: {error}") from None


def open_hf(source: str) -> list[HuggingFaceSplit]:
    """Opens `hf:NAME[@SPLIT]` or `hf:FOLDER[@SPLIT]`, all splits by default.

    Raises:
        UserError: `datasets` is missing, no such data set or split.
    """
    name, _, split = source.removeprefix(HF_PREFIX).partition("@")
    splits = list(_load_hf(name))
    if split and split not in splits:
        raise UserError(f"{source}: no split {split!r}; there are {', '.join(splits)}")
    return [HuggingFaceSplit(name, chosen) for chosen in ([split] if split else splits)]


def _load_hf(name: str) -> Mapping[str, Any]:
    try:
        import datasets
    except ImportError:
        raise UserError(f"{HF_PREFIX}{name}: pip install 'loopjax[hf]'") from None
    try:
        folder = Path(name)
        if (folder / "dataset_dict.json").exists() or (folder / "state.json").exists():
            loaded = datasets.load_from_disk(name)
        else:
            loaded = datasets.load_dataset(name, streaming=True)
    except Exception as error:  # noqa: BLE001 - datasets raises what its readers raise
        raise UserError(f"{HF_PREFIX}{name}: {str(error).splitlines()[0]}") from None
    if not isinstance(loaded, dict):
        return {"train": loaded}
    return {str(split): rows for split, rows in loaded.items()}


def _audio_column(names: Sequence[str], where: str) -> str:
    found = next((name for name in AUDIO_COLUMNS if name in names), None)
    if found is None:
        raise ContainerError(
            f"{where} has no column of audio ({', '.join(AUDIO_COLUMNS)}) among {', '.join(names)}"
        )
    return found


def _record(values: Mapping[str, Any], column: str, row: int, table: str) -> Record:
    audio = values[column]
    content, path = audio, None
    if isinstance(audio, dict):
        content, path = audio.get("bytes"), audio.get("path")
    elif isinstance(audio, str):
        content, path = None, audio
    columns = {
        name: as_text(value)
        for name, value in values.items()
        if name != column and value is not None and not isinstance(value, bytes)
    }
    named = path or next((columns[name] for name in NAME_COLUMNS if columns.get(name)), "")
    name = f"{row:08d}" + (f"/{PurePosixPath(named).name}" if named else "")
    group = group_of(columns, PurePosixPath(table).name.partition(".")[0])
    if content is not None:
        return Record(name, lambda: content, len(content), 0, group, columns)
    return Record(name, lambda: _read_beside(table, path), 0, 0, group, columns)


def _read_beside(table: str, path: str | None) -> bytes:
    """The file that a row names, relative to the table.

    Raises:
        OSError: there is none; only audio is read, whatever a table may name.
    """
    suffix = PurePosixPath(path or "").suffix.lower().encode()
    if path is None or suffix not in AUDIO_EXTENSIONS | FOREIGN_EXTENSIONS:
        raise OSError("the row holds neither audio nor the path of an audio file")
    if is_address(path) or path.startswith("/"):
        place = path
    else:
        place = f"{table.rpartition('/')[0]}/{path}" if "/" in table else path
    with open_place(place) as file:
        return file.read()
