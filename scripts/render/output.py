"""Where rendered loops go: shards for training, or single files."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import soundfile as sf
from numpy.typing import NDArray

from .loops import RenderedLoop, label_row
from .midi import SAMPLE_RATE_HZ


def write_shard(folder: Path, number: int, loops: list[RenderedLoop]) -> Path:
    """Write shard-NNNNN.npy (int16, all loops end to end) and then shard-NNNNN.parquet (labels).

    The label file is renamed into place last: where it exists, the shard is complete.
    """
    return write_sounds(folder, number, [(loop.samples, label_row(loop)) for loop in loops])


def write_sounds(
    folder: Path, number: int, sounds: Sequence[tuple[NDArray[np.int16], dict[str, object]]]
) -> Path:
    """`write_shard` of any sounds and their labels."""
    name = f"shard-{number:05d}"
    rows, offset = [], 0
    for samples, labels in sounds:
        rows.append({"shard": name, "offset_samples": offset, **labels})
        offset += len(samples)
    np.save(folder / f"{name}.npy", np.concatenate([samples for samples, _ in sounds]))
    final = folder / f"{name}.parquet"
    pq.write_table(pa.Table.from_pylist(rows), final.with_suffix(".tmp"))
    final.with_suffix(".tmp").replace(final)
    return final


def merge_labels(folder: Path) -> int:
    """Join the label files of all complete shards into labels.parquet; return its row count."""
    parts = sorted(folder.glob("shard-*.parquet"))
    table = pa.concat_tables([pq.read_table(part) for part in parts])
    final = folder / "labels.parquet"
    temporary = folder / f".labels-{os.getpid()}.tmp"
    pq.write_table(table, temporary)
    temporary.replace(final)
    return table.num_rows


def write_files(
    folder: Path, suffix: str, loops: list[RenderedLoop], by_sound: bool = False
) -> list[dict[str, object]]:
    """Write one WAV or FLAC per loop and return the label rows.

    With `by_sound` into folders that say how it sounds, the degradation or a clean loop's program,
    under names that differ between seeds.
    """
    rows = []
    for loop in loops:
        plan, labels = loop.plan, label_row(loop)
        name = f"{plan.family}_{plan.index:06d}.{suffix}"
        if by_sound:
            sound = labels["program_name"] if plan.degradation == "none" else plan.degradation
            name = f"{sound}/{plan.family}_{plan.seed}_{plan.index:06d}.{suffix}"
            (folder / name).parent.mkdir(exist_ok=True)
        sf.write(folder / name, loop.samples, SAMPLE_RATE_HZ, subtype="PCM_16")
        rows.append({"file": name, **labels})
    return rows
