"""What a few decisions say about all other loops."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold, cross_val_predict

from loopjax.errors import UserError
from loopjax.library.marks import KEEP, REJECT, count_marks, marks_of_rows, read_marks
from loopjax.store.blocks import open_rows
from loopjax.store.similar import unit_rows

LEAST = 2  # marks of each kind
N_FOLDS = 5
STRENGTH = 10.0  # of the data against the regularization, for rows of length 1
SHOWN = ("id", "path", "group", "duration_s", "sha256", "path_bytes")


@dataclass(frozen=True)
class Reranked:
    """The loops that nobody marked, most like the rejected ones first.

    Attributes:
        table: rank, reject_probability, then the columns of the store.
        n_keep: kept loops that were learned from.
        n_reject: rejected ones.
        auroc: how well marks are predicted that were not learned from; None for too few marks.
    """

    table: pa.Table
    n_keep: int
    n_reject: int
    auroc: float | None


def rerank(store: str | Path, marks: str | Path) -> Reranked:
    """Ranks unmarked loops by what the marks say: logistic regression on the embeddings.

    Args:
        store: folder of `loopjax embed` or of a run, or a file of embeddings.
        marks: file of marks, see `loopjax.library.marks.read_marks`.

    Raises:
        UserError: unreadable, or fewer than two marks of each kind on loops of the store.
    """
    given = read_marks(marks)
    rows = open_rows(store)
    table = rows.table([name for name in SHOWN if name in rows.columns])
    words = marks_of_rows(given, table)
    n_keep, n_reject = int((words == KEEP).sum()), int((words == REJECT).sum())
    if min(n_keep, n_reject) < LEAST:
        raise UserError(
            f"{marks} holds {count_marks(given)}, of which {n_keep} kept and {n_reject} rejected "
            f"loops are in {store}; at least {LEAST} of each are needed to learn from"
        )
    marked = np.flatnonzero(words != "")
    x, y = unit_rows(rows.vectors(marked)), words[marked] == REJECT
    center = x.mean(axis=0)
    head = LogisticRegression(C=STRENGTH, class_weight="balanced", max_iter=1000)
    x = unit_rows(x - center)
    found = None
    if min(n_keep, n_reject) >= N_FOLDS:
        folds = StratifiedKFold(N_FOLDS, shuffle=True, random_state=0)
        unseen = cross_val_predict(head, x, y, cv=folds, method="decision_function")
        found = float(roc_auc_score(y, np.asarray(unseen)))
    head.fit(x, y)
    probability = np.empty(rows.n_rows)
    for block in rows.blocks():
        stop = block.start + len(block.matrix)
        unit = unit_rows(unit_rows(block.matrix) - center)
        probability[block.start : stop] = head.predict_proba(unit)[:, 1]
    unmarked = np.flatnonzero(words == "")
    order = unmarked[np.argsort(-probability[unmarked], kind="stable")]
    front = {
        "rank": pa.array(np.arange(1, len(order) + 1)),
        "reject_probability": pa.array(probability[order]),
    }
    rest = table.take(pa.array(order))
    columns = front | {name: rest[name] for name in rest.column_names}
    return Reranked(pa.table(columns), n_keep, n_reject, found)
