"""Embeddings that other tools made: `.npy`, `.npz` and the reference implementation's `.pkl`."""

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from loopjax.errors import UserError
from loopjax.restricted_pickle.arrays import NUMPY_FUNCTIONS, PickledArray
from loopjax.restricted_pickle.reader import load

MAX_PICKLE_BYTES = 4 << 30
MAX_EASY_BYTES = 64 << 20  # compressed members beyond this must not expand more than
MAX_EXPANSION = 100  # fold; embeddings hardly compress at all
ROW_NAMES = ("id", "path", "group", "family")


def read_embedding_file(path: Path) -> tuple[np.ndarray, pa.Table, dict[str, str]]:
    """A float32 matrix [N, D], its row table (id, path and group if there) and metadata.

    `.npz` needs an array `embeddings` (or exactly one two-dimensional array) and may hold `id`,
    `path` and `group` (or `family`); `.pkl` may hold a matrix, a mapping like that, or a list of
    mappings with `embedding`. Rows keep the file's order.

    Raises:
        UserError: unreadable, not a matrix of numbers, or columns of different lengths.
    """
    try:
        arrays = SUFFIXES[path.suffix](path)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, OverflowError) as error:
        raise UserError(f"cannot read embeddings from {path}: {error}") from None
    matrix = np.asarray(arrays.pop("embeddings"))
    if matrix.ndim != 2 or matrix.dtype.kind not in "fiu":
        raise UserError(
            f"{path}: expected a matrix [rows, width], found {matrix.dtype} {matrix.shape}"
        )
    with np.errstate(over="ignore"):  # numbers beyond float32 are refused as infinity later
        matrix = np.ascontiguousarray(matrix, np.float32)
    columns = {name: np.asarray(value) for name, value in arrays.items() if name in ROW_NAMES}
    for name, values in columns.items():
        if values.shape != (len(matrix),):
            raise UserError(f"{path}: {name!r} has shape {values.shape}, expected ({len(matrix)},)")
    metadata = {
        "encoder": "external",
        "source": path.name,
        "embedding_dim": str(matrix.shape[1]),
    }
    return matrix, _row_table(columns, len(matrix)), metadata


def _row_table(columns: dict[str, np.ndarray], n_rows: int) -> pa.Table:
    width = max(6, len(str(n_rows)))
    texts = {name: [_text(value) for value in column.tolist()] for name, column in columns.items()}
    ids = texts.get("id", [])
    if len(set(ids)) != n_rows:
        ids = [f"row-{i:0{width}d}" for i in range(n_rows)]
    table = {"id": ids, "path": texts.get("path", [""] * n_rows)}
    groups = texts.get("group", texts.get("family"))
    if groups is not None:
        table["group"] = groups
    return pa.table({name: pa.array(column, pa.string()) for name, column in table.items()})


def _text(value: object) -> str:
    text = value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
    return text.encode("utf-8", "replace").decode("utf-8")  # names of files may be no valid Unicode


def _read_npy(path: Path) -> dict[str, Any]:
    return {"embeddings": np.load(path, allow_pickle=False)}


def _read_npz(path: Path) -> dict[str, Any]:
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            ratio = member.file_size / max(1, member.compress_size)
            if member.file_size > MAX_EASY_BYTES and ratio > MAX_EXPANSION:
                raise ValueError(f"{member.filename} would expand {ratio:.0f}-fold")
    with np.load(path, allow_pickle=False) as file:
        wanted = [name for name in file.files if name in ("embeddings", *ROW_NAMES)]
        arrays = {name: file[name] for name in wanted}
        if "embeddings" not in arrays:
            matrices = [name for name in file.files if file[name].ndim == 2]
            if len(matrices) != 1:
                raise ValueError(f"needs an array 'embeddings', found {file.files}")
            arrays["embeddings"] = file[matrices[0]]
    return arrays


def _read_pickle(path: Path) -> dict[str, Any]:
    if path.stat().st_size > MAX_PICKLE_BYTES:
        raise ValueError(f"larger than {MAX_PICKLE_BYTES} bytes")
    content = load(path.read_bytes(), NUMPY_FUNCTIONS)
    if isinstance(content, dict) and "embeddings" in content:
        columns = {name: _values(content[name]) for name in ROW_NAMES if name in content}
        return columns | {"embeddings": _matrix(content["embeddings"])}
    if isinstance(content, list) and content and all(isinstance(row, dict) for row in content):
        if not all("embedding" in row for row in content):
            raise ValueError("not every row has an 'embedding'")
        names = [name for name in ROW_NAMES if all(name in row for row in content)]
        columns = {name: _values([row[name] for row in content]) for name in names}
        rows = [np.ravel(_matrix(row["embedding"])) for row in content]
        return columns | {"embeddings": np.stack(rows)}
    if isinstance(content, (list, PickledArray)):
        return {"embeddings": _matrix(content)}
    raise ValueError(f"holds a {type(content).__name__}, not embeddings")


def _matrix(value: object) -> np.ndarray:
    """An array, or nested lists of numbers and arrays, as one array of numbers."""
    if isinstance(value, PickledArray):
        value = value.read()
        return value if value.dtype != object else _matrix(value.tolist())
    if not isinstance(value, (list, tuple)):
        raise ValueError(f"expected numbers, found {type(value).__name__}")
    if any(isinstance(item, (list, tuple, PickledArray)) for item in value):
        return np.stack([_matrix(item) for item in value])
    if not all(isinstance(item, (int, float)) for item in value):
        raise ValueError("expected numbers, found other values in a list")
    return np.asarray(value, np.float64)


def _values(value: object) -> np.ndarray:
    """A column as an array of objects: NumPy's own text would make all as wide as the widest."""
    items = value.read().tolist() if isinstance(value, PickledArray) else value
    if not isinstance(items, (list, tuple)):
        raise ValueError(f"expected a column of values, found {type(value).__name__}")
    column = np.empty(len(items), object)
    for i, item in enumerate(items):
        column[i] = item
    return column


SUFFIXES: dict[str, Callable[[Path], dict[str, Any]]] = {
    ".npy": _read_npy,
    ".npz": _read_npz,
    ".pkl": _read_pickle,
    ".pickle": _read_pickle,
}
