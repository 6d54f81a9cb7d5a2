"""What a tuned encoder changed: the same heads on the same loops, before and after."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from loopjax.config import DetectorConfig, SplitConfig
from loopjax.errors import UserError
from loopjax.evaluation.metrics import labeled_metrics
from loopjax.evaluation.paired import compare_paired
from loopjax.evaluation.tables import Evaluation, Row, Table
from loopjax.experiment.fit import fit_models
from loopjax.experiment.protocols import run_protocols
from loopjax.experiment.splits import split_rows
from loopjax.store.read import Embeddings

MIN_GROUP = 8  # loops; smaller groups are no class of their own


def compare_encoders(
    before: Embeddings,
    after: Embeddings,
    labels: np.ndarray | None,
    detectors: Sequence[DetectorConfig],
    seeds: Sequence[int],
) -> Evaluation:
    """Tables of every head on the embeddings of both encoders.

    With labels, heads are fitted on normal loops and score all of them by folds; with groups, each
    group in turn is the normal class (protocol P1). Both encoders get the same folds and splits.

    Args:
        before: of the encoder that was tuned.
        after: of the tuned one; the same loops.
        labels: int [N] beside the rows of `before`, 1 anomalous, 0 normal, -1 unknown.
        detectors: the heads.
        seeds: of the splits and of heads that are random.
    """
    after = _in_order(after, before.table["key"].to_pylist())
    tables = [_spread(before, after)]
    headline: dict[str, float] = {}
    if labels is not None:
        tables.append(_labeled(before, after, labels, detectors, seeds))
    groups = np.array([group or "" for group in before.table["group"].to_pylist()])
    names, sizes = np.unique(groups, return_counts=True)
    large = names[sizes >= MIN_GROUP]
    if len(large) > 1:
        tables.append(_grouped(before, after, groups, large, detectors, seeds))
    for row in tables[-1].rows if len(tables) > 1 else ():
        for when in ("before", "after"):
            value = row.get(when)
            if isinstance(value, float):
                headline.setdefault(f"AUROC {when}, {row['detector']}", value)
    return Evaluation(tuple(reversed(tables)), headline)


def _in_order(embeddings: Embeddings, keys: Sequence[str]) -> Embeddings:
    """The rows of these keys, in this order.

    Raises:
        UserError: one is missing.
    """
    place = {key: row for row, key in enumerate(embeddings.table["key"].to_pylist())}
    missing = [key for key in keys if key not in place]
    if missing:
        raise UserError(f"{len(missing)} loops have no embedding any more: the corpus has changed")
    rows = np.array([place[key] for key in keys])
    table = embeddings.table.take(pa.array(rows))
    return Embeddings(embeddings.matrix[rows], table, embeddings.metadata, embeddings.failures)


def _labeled(
    before: Embeddings,
    after: Embeddings,
    labels: np.ndarray,
    detectors: Sequence[DetectorConfig],
    seeds: Sequence[int],
) -> Table:
    measured, rows = labels >= 0, []
    for detector in detectors:
        found: dict[str, list[float]] = {"before": [], "after": []}
        for seed in seeds:
            split = split_rows(before, SplitConfig(train_on="normal", seed=seed), labels)
            for when, embeddings in (("before", before), ("after", after)):
                (model,) = fit_models(embeddings, split.train, detector, [seed], folds=split.folds)
                scores = model.score_rows(embeddings.matrix).scores[measured]
                own = labeled_metrics(labels[measured], scores, bootstrap=0)
                found[when].append(own.auroc.value)
        means = {when: float(np.mean(values)) for when, values in found.items()}
        row: Row = {"detector": detector.name, **means}
        row["difference"] = means["after"] - means["before"]
        rows.append(row)
    note = (
        f"AUROC of {int(measured.sum())} labeled loops, mean over {len(seeds)} seeds; each is "
        "scored by heads that were fitted on other loops, normal ones."
    )
    return Table("Labeled anomalies, before and after", note, tuple(rows))


def _grouped(
    before: Embeddings,
    after: Embeddings,
    groups: np.ndarray,
    large: np.ndarray,
    detectors: Sequence[DetectorConfig],
    seeds: Sequence[int],
) -> Table:
    chosen, rows = np.isin(groups, large), []
    names = groups[chosen].tolist()
    values = {
        when: run_protocols(embeddings.matrix[chosen], names, detectors, ("P1",), seeds)
        for when, embeddings in (("before", before), ("after", after))
    }
    for detector in detectors:
        own = {
            when: {
                (row.folder, row.seed): row.auroc
                for row in found
                if row.method == detector.name and row.auroc is not None
            }
            for when, found in values.items()
        }
        row: Row = {
            "detector": detector.name,
            **{when: float(np.mean([*found.values()])) for when, found in own.items()},
        }
        compared = compare_paired(own["after"], own["before"])
        if compared is not None:
            row["difference"] = compared.difference
            row["groups won"] = f"{compared.groups_won} of {compared.n_groups}"
            row["p (groups)"] = compared.p_groups
        rows.append(row)
    note = (
        f"Each of {len(large)} groups is the normal class once: 80 % of it train, the rest and "
        f"all other groups are the test. AUROC, mean over groups and {len(seeds)} seeds; the "
        "difference with its 95 % interval over groups, and Wilcoxon's signed-rank test over them."
    )
    return Table("Groups, before and after", note, tuple(rows))


def _spread(before: Embeddings, after: Embeddings) -> Table:
    rows = []
    for when, embeddings in (("before", before), ("after", after)):
        rows_64 = embeddings.matrix.astype(np.float64)
        unit = rows_64 / np.linalg.norm(rows_64, axis=1, keepdims=True)
        variances = np.linalg.svd(unit - unit.mean(axis=0), compute_uv=False) ** 2
        row: Row = {
            "encoder": f"{when}: {embeddings.metadata['encoder']}",
            "spread": float(1.0 - np.square(unit.mean(axis=0)).sum()),
            "directions": float(variances.sum() ** 2 / np.square(variances).sum()),
        }
        rows.append(row)
    note = (
        "Spread: 0 where all embeddings point the same way, 1 where none agree. Directions: how "
        "many equally strong ones would hold the same variance."
    )
    return Table("Embeddings, before and after", note, tuple(rows))
