"""The labels of a store's rows: their folders, or another column."""

import numpy as np

from loopjax.errors import UserError
from loopjax.store.blocks import StoredRows


def labels_of(rows: StoredRows, column: str, depth: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """The different labels, sorted, text [L]; and the number of each row's, -1 for none, [N].

    Args:
        rows: the store.
        column: with the labels; it may be empty in some rows.
        depth: take only the first so many folders of a label such as `Drums/Kicks/Soft`; 0: all.

    Raises:
        UserError: there is no such column.
    """
    if column not in rows.columns:
        raise UserError(f"there is no column {column!r}; columns: {', '.join(rows.columns)}")
    values = rows.table([column])[column].to_pylist()
    texts = ["" if value is None else str(value) for value in values]
    if depth:
        texts = ["/".join(text.split("/")[:depth]) for text in texts]
    labels, of_row = np.unique(np.array(texts, object).astype(str), return_inverse=True)
    has_empty = labels[0] == ""
    return labels[int(has_empty) :], of_row - int(has_empty)
