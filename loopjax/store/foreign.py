"""Embeddings that other tools made: tables, arrays and the reference implementation's pickles."""

import re
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv

from loopjax.errors import UserError
from loopjax.json_files import parse_json
from loopjax.restricted_pickle.arrays import NUMPY_FUNCTIONS, PickledArray
from loopjax.restricted_pickle.reader import load
from loopjax.store.columns import (
    GROUP_NAMES,
    ID_NAMES,
    PATH_NAMES,
    as_float32,
    row_order,
    row_table,
    split_table,
)
from loopjax.store.parquet import MAX_EXPANSION, first_line, open_parquet, require_finite
from loopjax.store.schema import EMBEDDING

GET_AGAIN = "get it again from where it was made"  # a damaged file of other origin
MAX_PICKLE_BYTES = 4 << 30
MAX_COLUMNS = 8192  # of a table of text: each takes Arrow ten thousand bytes
MAX_HEADER_BYTES = 1 << 20
MAX_EASY_BYTES = 64 << 20  # compressed members beyond this must not expand more than
_UNREADABLE = (  # what NumPy, zipfile and Arrow raise on damaged files
    *(OSError, EOFError, ValueError, OverflowError, TypeError, KeyError, SyntaxError),
    *(zipfile.BadZipFile, zlib.error, tokenize.TokenError, struct.error),
    *(NotImplementedError, RuntimeError),  # ways of zipping that Python does not know
)
ROW_NAMES = (*ID_NAMES, *PATH_NAMES, *GROUP_NAMES)


def read_foreign_file(path: Path) -> tuple[np.ndarray, pa.Table]:
    """A float32 matrix [N, D] and its row table (id, path, group if there, other columns).

    Tables (`.parquet`, `.csv`, `.tsv`) hold a column `embedding` or counted columns of numbers,
    see `split_table`. `.npz` and `.safetensors` need an array `embeddings`, or exactly one
    two-dimensional array, and `.npz` may hold `id`, `path` and `group` (or `family`). `.pkl` may
    hold a matrix, a mapping like that, or a list of mappings with `embedding`.

    Raises:
        UserError: unreadable, no matrix of numbers, NaN, repeated ids, or columns of different
            lengths.
    """
    try:
        return SUFFIXES[path.suffix](path)
    except _UNREADABLE as error:
        raise UserError(f"cannot read embeddings from {path}: {first_line(error)}") from None


def read_tables(paths: Sequence[Path], where: str) -> tuple[np.ndarray, pa.Table]:
    """Parquet files of other origin as one table, sorted by path and id.

    Raises:
        UserError: damaged, of different columns, with NaN, or without embeddings.
    """
    tables = [open_parquet(path, GET_AGAIN).read() for path in paths]
    return _sorted(*split_table(_joined(tables, where), where), where)


def read_without(paths: Sequence[Path], names: Sequence[str], where: str) -> pa.Table:
    """All columns but `names` of Parquet files of other origin, as one table in their order.

    Raises:
        UserError: damaged, or of different columns.
    """
    tables = []
    for path in paths:
        file = open_parquet(path, GET_AGAIN)
        tables.append(file.read([name for name in file.schema.names if name not in names]))
    return _joined(tables, where)


def _joined(tables: Sequence[pa.Table], where: str) -> pa.Table:
    try:
        return pa.concat_tables(tables, promote_options="default") if tables[1:] else tables[0]
    except pa.ArrowException as error:
        raise UserError(f"{where}: the files do not fit together: {first_line(error)}") from None


def _sorted(matrix: np.ndarray, table: pa.Table, where: str) -> tuple[np.ndarray, pa.Table]:
    require_finite(matrix, where)  # before rows move: a message names the file's own row
    order = row_order(table)
    return matrix[order], table.take(pa.array(order)).combine_chunks()


def _read_csv(path: Path) -> tuple[np.ndarray, pa.Table]:
    with path.open("rb") as file:
        head = [file.readline(MAX_HEADER_BYTES) for _ in range(2)]
    encoding = "utf-16" if head[0].startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8"
    header, row = (line.replace(b"\0", b"") for line in head)  # UTF-16 is ASCII between zeros
    delimiter = max(b"\t,;", key=header.count)
    if header.count(delimiter) >= MAX_COLUMNS:
        raise ValueError(f"more than {MAX_COLUMNS} columns")
    parse = pyarrow.csv.ParseOptions(delimiter=chr(delimiter), newlines_in_values=True)
    has_decimal_comma = delimiter == ord(";") and re.search(rb"\d,\d", row)
    convert = pyarrow.csv.ConvertOptions(decimal_point="," if has_decimal_comma else ".")

    def read(encoding: str) -> pa.Table:
        options = pyarrow.csv.ReadOptions(encoding=encoding)
        return pyarrow.csv.read_csv(path, options, parse, convert)

    table = read(encoding)
    if any(pa.types.is_binary(kind) for kind in table.schema.types):  # no UTF-8
        table = read("latin-1")
    if EMBEDDING in table.schema.names and pa.types.is_string(table[EMBEDDING].type):
        lists = [_list_of_numbers(text, row) for row, text in enumerate(table[EMBEDDING])]
        at = table.schema.get_field_index(EMBEDDING)
        table = table.set_column(at, EMBEDDING, pa.array(lists, pa.list_(pa.float64())))
    return _sorted(*split_table(table, str(path)), str(path))


def _list_of_numbers(text: pa.StringScalar, row: int) -> list[float]:
    try:
        values = parse_json(text.as_py())
        return [float(value) for value in values]
    except (ValueError, TypeError):
        raise ValueError(f"row {row}: column 'embedding' is no list such as [0.5, 1.25]") from None


def _read_npy(path: Path) -> tuple[np.ndarray, pa.Table]:
    return _from_arrays({"embeddings": np.load(path, allow_pickle=False)}, path)


def _read_safetensors(path: Path) -> tuple[np.ndarray, pa.Table]:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        tensors = load_file(path)
    except (SafetensorError, TypeError, KeyError) as error:
        raise ValueError(first_line(error)) from None
    return _from_arrays({"embeddings": _the_matrix(tensors)}, path)


def _the_matrix(arrays: dict[str, np.ndarray]) -> np.ndarray:
    if "embeddings" in arrays:
        return arrays["embeddings"]
    matrices = [name for name, array in arrays.items() if array.ndim == 2]
    if len(matrices) != 1:
        raise ValueError(f"needs an array 'embeddings', found {list(arrays)}")
    return arrays[matrices[0]]


def _from_arrays(arrays: dict[str, Any], path: Path) -> tuple[np.ndarray, pa.Table]:
    matrix = np.asarray(arrays["embeddings"])
    if matrix.ndim != 2 or matrix.dtype.kind not in "fiu":
        raise UserError(
            f"{path}: expected a matrix [rows, width], found {matrix.dtype} {matrix.shape}"
        )
    columns = {name: np.asarray(arrays[name]) for name in ROW_NAMES if name in arrays}
    for name, values in columns.items():
        if values.shape != (len(matrix),):
            raise UserError(f"{path}: {name!r} has shape {values.shape}, expected ({len(matrix)},)")
    matrix = as_float32(matrix, str(path))
    require_finite(matrix, str(path))
    texts = {name: [_text(value) for value in values.tolist()] for name, values in columns.items()}
    table = pa.table({name: pa.array(values, pa.string()) for name, values in texts.items()})
    return matrix, row_table(table, str(path), len(matrix))


def _text(value: object) -> str:
    text = value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
    return text.encode("utf-8", "replace").decode("utf-8")  # names of files may be no valid Unicode


def _read_npz(path: Path) -> tuple[np.ndarray, pa.Table]:
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            ratio = member.file_size / max(1, member.compress_size)
            if member.file_size > MAX_EASY_BYTES and ratio > MAX_EXPANSION:
                raise ValueError(f"{member.filename} would expand {ratio:.0f}-fold")
    with np.load(path, allow_pickle=False) as file:
        arrays: dict[str, Any] = {name: file[name] for name in file.files if name in ROW_NAMES}
        named = "embeddings" in file.files
        wanted = ["embeddings"] if named else [n for n in file.files if n not in ROW_NAMES]
        arrays["embeddings"] = _the_matrix({name: file[name] for name in wanted})
    return _from_arrays(arrays, path)


def _read_pickle(path: Path) -> tuple[np.ndarray, pa.Table]:
    return _from_arrays(_unpickled(path), path)


def _unpickled(path: Path) -> dict[str, Any]:
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


SUFFIXES: dict[str, Callable[[Path], tuple[np.ndarray, pa.Table]]] = {
    ".parquet": lambda path: read_tables([path], str(path)),
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".npy": _read_npy,
    ".npz": _read_npz,
    ".safetensors": _read_safetensors,
    ".pkl": _read_pickle,
    ".pickle": _read_pickle,
}
