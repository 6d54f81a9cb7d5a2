"""Tables of any origin as a matrix of embeddings and a row table."""

import re
from collections import Counter
from operator import itemgetter

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from loopjax.errors import UserError
from loopjax.store.schema import EMBEDDING

ID_NAMES = ("id", "__index_level_0__")  # the second is the index of a pandas frame
PATH_NAMES = ("path", "file", "filename", "file_name", "filepath", "uri")
GROUP_NAMES = ("group", "family")
# Float64 columns that span less than a hundred times what float32 moves them lose too much in it.
# Fewer rows, and equal ones, may be copies of one another.
_LOSS, _FEW_ROWS = 0.01, 5
_NUMBERED = re.compile(r"(.*?)(\d+)")


def split_table(table: pa.Table, where: str) -> tuple[np.ndarray, pa.Table]:
    """The embeddings of a table of any origin, and the rest of it with `id`, `path` and `group`.

    Embeddings are a column `embedding` of equally long lists of numbers, or columns of numbers
    that are counted through: `e0`, `e1`, ... or `dim_001`, `dim_002`, ...

    Args:
        table: N rows.
        where: the file, for messages.

    Returns:
        float32 [N, D] and the row table.

    Raises:
        UserError: no embeddings, or a column that cannot be used; names it.
    """
    table = table.replace_schema_metadata(None)
    names = embedding_columns(table.schema, where)
    matrix = matrix_of_columns(table.select(names), where)
    return matrix, row_table(table.drop_columns(names), where, len(matrix))


def embedding_columns(schema: pa.Schema, where: str) -> list[str]:
    """Names of the columns that hold the embeddings: one of lists, or several of numbers.

    Raises:
        UserError: there are none, or several columns of one name.
    """
    name, count = max(Counter(schema.names).items(), key=itemgetter(1), default=("", 0))
    if count > 1:
        raise UserError(f"{where}: several columns are called {name!r}")
    names = [EMBEDDING] if EMBEDDING in schema.names else _counted_columns(schema)
    if not names:
        raise UserError(
            f"{where} has no column {EMBEDDING!r} and no columns of numbers that are counted "
            f"through (e0, e1, ...); columns: {', '.join(schema.names[:50])}"
        )
    return names


def matrix_of_columns(table: pa.Table, where: str, first_row: int = 0) -> np.ndarray:
    """The columns that `embedding_columns` names, float32 [N, D].

    Args:
        table: N rows of these columns alone.
        where: the file, for messages.
        first_row: number of the first row in that file.

    Raises:
        UserError: see `as_matrix`.
    """
    if table.schema.names == [EMBEDDING]:
        return as_matrix(table[EMBEDDING], where, first_row)
    types = [np.float64 if t.bit_width == 64 else np.float32 for t in table.schema.types]
    matrix = np.empty((len(table), table.num_columns), np.result_type(*types))
    for i, (name, column) in enumerate(zip(table.schema.names, table.columns, strict=True)):
        _require_no_nulls(column, name, where, first_row)
        matrix[:, i] = column.to_numpy()
    return as_float32(matrix, where)


def as_matrix(column: pa.ChunkedArray, where: str, first_row: int = 0) -> np.ndarray:
    """A column of equally long lists of numbers as float32 [N, D].

    Raises:
        UserError: another type, nulls, or lists of different lengths; names the row.
    """
    array = pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)
    if isinstance(array, pa.ExtensionArray):
        array = array.storage
    kind = array.type
    fixed = pa.types.is_fixed_size_list(kind)
    is_list = fixed or pa.types.is_list(kind) or pa.types.is_large_list(kind)
    if not is_list or not _is_number(kind.value_type):
        raise UserError(f"{where}: column {EMBEDDING!r} is {kind}, expected lists of numbers")
    if array.null_count:
        row = first_row + int(np.argmax(np.asarray(array.is_null())))
        raise UserError(f"{where}: row {row} has no value in column {EMBEDDING!r}")
    lengths = np.full(len(array), kind.list_size) if fixed else np.asarray(array.value_lengths())
    width = int(lengths[0]) if len(lengths) else 0
    if (lengths != width).any():
        row = int(np.argmax(lengths != width))
        raise UserError(
            f"{where}: row {first_row + row} has {lengths[row]} values, the others {width}"
        )
    values = array.flatten()
    if values.null_count:
        row = first_row + int(np.argmax(np.asarray(values.is_null()))) // width
        raise UserError(f"{where}: row {row} has a null in column {EMBEDDING!r}")
    numbers = values.to_numpy(zero_copy_only=False)
    return as_float32(numbers.reshape(len(array), width), where)


def as_float32(matrix: np.ndarray, where: str) -> np.ndarray:
    """Numbers [N, D] of any type in float32; those beyond its range become infinite.

    Raises:
        UserError: float32 holds too little of what tells the rows apart.
    """
    with np.errstate(over="ignore"):
        narrow = np.ascontiguousarray(matrix, np.float32)
    if matrix.dtype.itemsize < 8 or len(matrix) < _FEW_ROWS or not np.isfinite(narrow).all():
        return narrow
    lost, span = float(np.abs(matrix - narrow).max()), float(np.ptp(matrix, axis=0).max())
    if lost > _LOSS * span > 0:
        raise UserError(
            f"{where}: the widest column spans {span:.3g}, and float32, in which rows are scored, "
            f"moves numbers of this size by up to {lost:.3g}: subtract the mean of every column, "
            "or multiply tiny numbers, before you save them"
        )
    return narrow


def row_table(table: pa.Table, where: str, n_rows: int) -> pa.Table:
    """Columns of any origin with `id` and `path` as text, `id` unique, and `group` if there.

    Raises:
        UserError: ids that are missing or repeated, or of a type that is no text; names them.
    """
    columns: dict[str, pa.ChunkedArray | pa.Array] = {}
    id_name, path_name, group_name = (
        next((name for name in names if name in table.schema.names), None)
        for names in (ID_NAMES, PATH_NAMES, GROUP_NAMES)
    )
    ids = None if id_name is None else _as_text(table[id_name], id_name, where)
    if id_name == "id" and ids is not None:
        _require_unique(ids, where)
    elif ids is not None and (ids.null_count or len(ids.unique()) < n_rows):
        ids = None  # an index is no promise
    if ids is None:
        width = max(6, len(str(n_rows)))
        ids = pa.chunked_array([[f"row-{i:0{width}d}" for i in range(n_rows)]], pa.string())
    columns["id"] = ids
    if path_name is None:
        columns["path"] = pa.array([""] * n_rows, pa.string())
    else:
        columns["path"] = pc.fill_null(_as_text(table[path_name], path_name, where), "")
    if group_name is not None:
        columns["group"] = pc.fill_null(_as_text(table[group_name], group_name, where), "")
    for name, column in zip(table.schema.names, table.columns, strict=True):
        if name not in (id_name, path_name, group_name) and name not in columns:
            columns[name] = _decoded(column)
    return pa.table(columns)


def row_order(table: pa.Table) -> np.ndarray:
    """The places of the rows when sorted by path and id, int64 [N]; equal rows keep their order."""
    keys = table.select(["path", "id"]).append_column("at", pa.array(np.arange(len(table))))
    return np.asarray(keys.sort_by([(name, "ascending") for name in ("path", "id", "at")])["at"])


def _counted_columns(schema: pa.Schema) -> list[str]:
    """The columns of numbers that differ in a number only, if these run from 0 or 1 in steps."""
    series: dict[str, dict[int, str]] = {}
    for field in schema:
        found = _NUMBERED.fullmatch(field.name)
        if found and _is_number(field.type):
            series.setdefault(found[1], {})[int(found[2])] = field.name
    whole = [
        [by_number[number] for number in sorted(by_number)]
        for by_number in series.values()
        if len(by_number) > 1
        and min(by_number) in (0, 1)
        and max(by_number) - min(by_number) == len(by_number) - 1
    ]
    return whole[0] if len(whole) == 1 else []


def _is_number(kind: pa.DataType) -> bool:
    return pa.types.is_floating(kind) or pa.types.is_integer(kind)


def _decoded(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Values instead of places in a dictionary."""
    kind = column.type
    return column.cast(kind.value_type) if pa.types.is_dictionary(kind) else column


def _as_text(column: pa.ChunkedArray, name: str, where: str) -> pa.ChunkedArray:
    column = _decoded(column)
    kind = column.type
    if pa.types.is_null(kind):
        return pa.chunked_array([pa.nulls(len(column), pa.string())])
    try:
        if pa.types.is_nested(kind):
            raise pa.ArrowInvalid("nested")
        return column.cast(pa.string())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        raise UserError(f"{where}: column {name!r} is {kind}, expected text or numbers") from None


def _require_unique(ids: pa.ChunkedArray, where: str) -> None:
    if ids.null_count:
        row = int(np.argmax(np.asarray(ids.is_null())))
        raise UserError(f"{where}: row {row} has no value in column 'id'")
    repeated = repeated_values(ids)
    if repeated:
        raise UserError(
            f"{where}: column 'id' holds {repeated[0]!r} more than once ({len(repeated)} such ids),"
            " so rows could be taken for one another; make the ids unique or leave the column out"
        )


def places_of(values: pa.Array | pa.ChunkedArray, among: pa.Array | pa.ChunkedArray) -> pa.Array:
    """Where each value first stands in a column; null where it does not. int32, like `values`."""
    options = pc.SetLookupOptions(value_set=among)
    found = pc.call_function("index_in", [values], options)
    return found.combine_chunks() if isinstance(found, pa.ChunkedArray) else found


def repeated_values(column: pa.ChunkedArray) -> list[str]:
    """The values that a column holds more than once."""
    counted = column.value_counts()
    values, counts = counted.field("values"), np.asarray(counted.field("counts"))
    return values.filter(pa.array(counts > 1)).to_pylist()


def _require_no_nulls(column: pa.ChunkedArray, name: str, where: str, first_row: int = 0) -> None:
    if column.null_count:
        row = first_row + int(np.argmax(np.asarray(column.is_null())))
        raise UserError(f"{where}: row {row} has no value in column {name!r}")
