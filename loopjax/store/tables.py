"""Tables of results as files, in the form that the file's name asks for."""

import json
from pathlib import Path

import pyarrow as pa

from loopjax.errors import UserError
from loopjax.io import write_text
from loopjax.store.parquet import write_parquet
from loopjax.store.scores import write_csv

FORMS = (".csv", ".parquet", ".json")


def check_suffix(path: str | Path | None) -> None:
    """Refuses a name that no table can be written under, before the work is done.

    Raises:
        UserError: names the suffixes there are.
    """
    if path is not None and Path(path).suffix.lower() not in FORMS:
        raise UserError(f"{path}: expected a name that ends with one of {', '.join(FORMS)}")


def write_table(table: pa.Table, path: str | Path) -> None:
    """Writes a table as CSV or JSON, without its binary columns, or as Parquet, by the suffix.

    Raises:
        UserError: another suffix.
        WriteError: the file could not be written.
    """
    check_suffix(path)
    path = Path(path)
    if path.suffix.lower() == ".parquet":
        write_parquet(table, path)
    elif path.suffix.lower() == ".csv":
        write_csv(table, path)
    else:
        names = [f.name for f in table.schema if not pa.types.is_binary(f.type)]
        rows = (json.dumps(row) for row in table.select(names).to_pylist())
        write_text(path, "[\n" + ",\n".join(rows) + "\n]\n")
