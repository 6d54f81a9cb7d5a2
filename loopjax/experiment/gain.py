"""What training adds: the row of `sphere-svdd` minus that of `local-knn`, its untrained form."""

from collections.abc import Sequence

from loopjax.config import DetectorConfig
from loopjax.evaluation.tables import Estimate, Row

TRAINED, UNTRAINED = "sphere-svdd", "local-knn"


def gain_rows(rows: Sequence[Row], detectors: Sequence[DetectorConfig]) -> tuple[Row, ...]:
    """One row of differences where a table has both detectors, else none.

    Args:
        rows: of a table whose column `detector` holds names and whose others hold AUROC and the
            like, which may be subtracted.
        detectors: of the experiment; the first of each kind counts.
    """
    names = {d.kind: d.name for d in reversed(detectors)}
    by_name = {row["detector"]: row for row in rows}
    trained, untrained = (by_name.get(names.get(kind)) for kind in (TRAINED, UNTRAINED))
    if trained is None or untrained is None:
        return ()
    row: Row = {"detector": f"{trained['detector']} minus {untrained['detector']}"}
    for column in trained:
        values = [_value(found.get(column)) for found in (trained, untrained)]
        if values[0] is not None and values[1] is not None:
            row[column] = values[0] - values[1]
    return (row,)


def _value(cell: object) -> float | None:
    if isinstance(cell, Estimate):
        return cell.value
    return cell if isinstance(cell, float) else None
