"""Rows and rejected inputs of files that are no longer there."""

import os
from pathlib import Path

import numpy as np

from loopjax.store.parquet import open_footer
from loopjax.store.read import part_files
from loopjax.store.write import drop_rows


def is_gone(path_bytes: bytes) -> bool:
    """Whether there is certainly no such file.

    A file in a folder that cannot be read may be there, and a record of a data set has no file.
    """
    if not os.path.isabs(path_bytes):  # noqa: PTH117 - names that are not UTF-8 stay bytes
        return False
    try:
        os.stat(path_bytes)  # noqa: PTH116
    except (FileNotFoundError, NotADirectoryError):
        return True
    except (OSError, ValueError):
        return False
    return False


def drop_gone(folder: Path) -> int:
    """Drops the rows of files that are gone; returns how many there were.

    Raises:
        UserError: a shard is damaged.
        WriteError: a shard could not be written; it stays as it was.
    """
    n_dropped = 0
    for part in part_files(folder):
        rows = open_footer(part).read(["key", "path_bytes"])
        gone = np.array([is_gone(path) for path in rows["path_bytes"].to_pylist()], bool)
        if gone.any():
            drop_rows(part, np.asarray(rows["key"])[gone].tolist())
            n_dropped += int(gone.sum())
    return n_dropped
