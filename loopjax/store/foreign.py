"""Embeddings that other tools made: `.npy`, `.npz` and the reference implementation's `.pkl`."""

import io
import pickle  # noqa: TID251 - only through the allow-list reader below
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from loopjax.errors import UserError

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
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, pickle.UnpicklingError) as error:
        raise UserError(f"cannot read embeddings from {path}: {error}") from None
    matrix = np.asarray(arrays.pop("embeddings"))
    if matrix.ndim != 2 or matrix.dtype.kind not in "fiu":
        raise UserError(
            f"{path}: expected a matrix [rows, width], found {matrix.dtype} {matrix.shape}"
        )
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
    ids = [f"row-{i:0{width}d}" for i in range(n_rows)]
    if "id" in columns and len(set(columns["id"].tolist())) == n_rows:
        ids = [str(value) for value in columns["id"].tolist()]
    paths = columns.get("path", np.full(n_rows, "")).tolist()
    groups = columns.get("group", columns.get("family"))
    table = {"id": pa.array(ids), "path": pa.array([str(p) for p in paths])}
    if groups is not None:
        table["group"] = pa.array([str(g) for g in groups.tolist()])
    return pa.table(table)


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


class _ArrayUnpickler(pickle.Unpickler):
    """Rebuilds NumPy arrays and plain containers; every other name in the file is refused."""

    _ALLOWED = frozenset(
        (module, name)
        for package in ("numpy.core", "numpy._core")
        for module, name in (
            (f"{package}.multiarray", "_reconstruct"),
            (f"{package}.multiarray", "scalar"),
            (f"{package}.numeric", "_frombuffer"),
        )
    ) | {("numpy", "ndarray"), ("numpy", "dtype"), ("_codecs", "encode")}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._ALLOWED:
            raise pickle.UnpicklingError(f"refused to load {module}.{name}: not a NumPy array")
        return super().find_class(module, name)


def _read_pickle(path: Path) -> dict[str, Any]:
    if path.stat().st_size > MAX_PICKLE_BYTES:
        raise ValueError(f"larger than {MAX_PICKLE_BYTES} bytes")
    try:
        content = _ArrayUnpickler(io.BytesIO(path.read_bytes())).load()
    except (AttributeError, TypeError, IndexError, KeyError, ImportError) as error:
        raise ValueError(f"not a pickle of arrays ({error})") from None
    if isinstance(content, np.ndarray):
        return {"embeddings": content}
    if isinstance(content, dict) and "embeddings" in content:
        return dict(content)
    if isinstance(content, list) and content and all(isinstance(row, dict) for row in content):
        names = [name for name in ROW_NAMES if all(name in row for row in content)]
        arrays: dict[str, Any] = {name: [row[name] for row in content] for name in names}
        arrays["embeddings"] = np.stack([np.ravel(row["embedding"]) for row in content])
        return arrays
    if isinstance(content, list):
        return {"embeddings": np.asarray(content)}
    raise ValueError(f"holds a {type(content).__name__}, not embeddings")


SUFFIXES: dict[str, Callable[[Path], dict[str, Any]]] = {
    ".npy": _read_npy,
    ".npz": _read_npz,
    ".pkl": _read_pickle,
    ".pickle": _read_pickle,
}
