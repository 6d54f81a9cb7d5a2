"""The rows that a model was fitted on, as a Parquet file beside it."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from loopjax.store.columns import as_matrix
from loopjax.store.parquet import first_line, open_parquet, write_parquet

TRAINING_NAME = "training.parquet"


@dataclass(frozen=True)
class TrainingRows:
    """What a model keeps of its training rows.

    Attributes:
        ids: text [n].
        scores: float64 [n], higher = more anomalous.
        marks: float32 [n, m], by which a row is known again; None where nobody asks.
    """

    ids: pa.Array
    scores: np.ndarray
    marks: np.ndarray | None


def write_training_rows(rows: TrainingRows, folder: Path) -> None:
    """Writes the rows into a model folder.

    Raises:
        WriteError: the file could not be written.
    """
    columns = {"id": rows.ids, "score": pa.array(rows.scores)}
    if rows.marks is not None:
        values = pa.array(rows.marks.ravel())
        columns["marks"] = pa.FixedSizeListArray.from_arrays(values, rows.marks.shape[1])
    write_parquet(pa.table(columns), folder / TRAINING_NAME)


def read_training_rows(folder: Path) -> TrainingRows:
    """Reads what `write_training_rows` wrote.

    Raises:
        UserError: the file is missing or damaged.
    """
    file = open_parquet(folder / TRAINING_NAME, repair="fit the model again")
    table = file.read()
    try:
        ids, scores = table["id"].cast(pa.string()), np.asarray(table["score"], np.float64)
    except (KeyError, ValueError, pa.ArrowException) as error:
        raise file.damaged(first_line(error)) from None
    marks = as_matrix(table["marks"], str(file.path)) if "marks" in table.column_names else None
    return TrainingRows(ids.combine_chunks(), scores, marks)
