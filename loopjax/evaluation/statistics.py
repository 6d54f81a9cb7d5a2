"""Detector against detector, seed against seed, ours against the published numbers.

Arrays and plain rows only. Scores of different detectors have different units, so the tests here
come on scales without units beside the raw one that the reference used.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from loopjax.errors import UserError

Table = list[dict[str, Any]]
MIN_TRAIN = 5  # loops; no detector learns what is normal from fewer


def finite(values: ArrayLike, what: str) -> np.ndarray:
    """Returns `values` as a float64 vector [N]; refuses an empty, 2-D, NaN or infinite one."""
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or array.size == 0:
        raise UserError(f"{what}: expected a non-empty row of numbers, found {array.shape}")
    if not np.isfinite(array).all():
        raise UserError(f"{what}: {int((~np.isfinite(array)).sum())} of {array.size} not finite")
    return array


def welch_tests(
    scores_by_detector: Mapping[str, ArrayLike],
    reference_scores: Mapping[str, ArrayLike] | None = None,
) -> Table:
    """Compares every pair of detectors by Welch's t-test, Holm-corrected, with effect sizes.

    The reference tests raw scores of different detectors against each other; those have different
    units, so a tiny p-value there only says that the units differ. Beside "raw" stand two scales
    without units: "log" (log10 of score / own median) and "percentile" (of each score among the
    detector's own `reference_scores`), on which detectors may be compared.

    Args:
        scores_by_detector: name -> [N_d] scores, for example of the held-out loops.
        reference_scores: name -> [M_d] scores that give each detector its scale (training
            scores); default: the tested scores, and then the "percentile" scale is left out.

    Returns:
        One row per pair and scale: `a`, `b`, `scale`, `t`, `dof`, `p_value`, `p_holm` (within the
        scale), `cohens_d` (pooled), `cliffs_delta`; nulls with a `note` where a scale does not
        apply (scores at or below 0 have no logarithm).
    """
    scores = {name: finite(s, f"scores of {name}") for name, s in scores_by_detector.items()}
    reference = {
        name: finite(s, f"scores of {name}") for name, s in (reference_scores or scores).items()
    }
    scales: dict[str, dict[str, np.ndarray | None]] = {"raw": dict(scores), "log": {}}
    for name, values in scores.items():
        median = np.median(reference[name])
        positive = median > 0 and values.min() > 0
        scales["log"][name] = np.log10(values / median) if positive else None
    if reference_scores is not None:
        scales["percentile"] = {
            name: 100
            * np.searchsorted(np.sort(reference[name]), values, side="right")
            / len(reference[name])
            for name, values in scores.items()
        }
    names = list(scores)
    rows: Table = []
    for scale, samples in scales.items():
        tested: Table = []
        for i, a in enumerate(names):
            for b in names[i + 1 :]:
                row: dict[str, Any] = {"a": a, "b": b, "scale": scale}
                x, y = samples[a], samples[b]
                if x is None or y is None:
                    which = a if x is None else b
                    rows.append({**row, "note": f"{which} has scores at or below 0"})
                    continue
                tested.append(row | _welch(x, y))
        for row, adjusted in zip(tested, holm([r["p_value"] for r in tested]), strict=True):
            rows.append({**row, "p_holm": float(adjusted)})
    return rows


def _welch(x: np.ndarray, y: np.ndarray) -> dict[str, float]:
    test: Any = stats.ttest_ind(x, y, equal_var=False)
    pooled = np.sqrt(
        ((len(x) - 1) * x.var(ddof=1) + (len(y) - 1) * y.var(ddof=1)) / (len(x) + len(y) - 2)
    )
    u = stats.mannwhitneyu(x, y).statistic
    return {
        "t": float(test.statistic),
        "dof": float(test.df),
        "p_value": float(test.pvalue),
        "cohens_d": float((x.mean() - y.mean()) / pooled) if pooled > 0 else 0.0,
        "cliffs_delta": float(2 * u / (len(x) * len(y)) - 1),
    }


def holm(p_values: Sequence[float]) -> np.ndarray:
    """Returns Holm's step-down adjustment of [K] p-values (family-wise error control)."""
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p)
    stepped = np.maximum.accumulate(p[order] * (len(p) - np.arange(len(p))))
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(stepped, 1.0)
    return adjusted


def seed_interval(values: ArrayLike, level: float = 0.95) -> dict[str, Any]:
    """Returns mean, standard deviation, range and t-interval of one number over [K] seeds.

    With one seed `sd`, `low` and `high` are null: a single run has no spread.
    """
    values = finite(values, "values over seeds")
    n = len(values)
    row: dict[str, Any] = {
        "n_seeds": n,
        "mean": float(values.mean()),
        "sd": None,
        "min": float(values.min()),
        "max": float(values.max()),
        "low": None,
        "high": None,
    }
    if n > 1:
        half = stats.t.ppf(0.5 + level / 2, n - 1) * values.std(ddof=1) / np.sqrt(n)
        row |= {
            "sd": float(values.std(ddof=1)),
            "low": row["mean"] - float(half),
            "high": row["mean"] + float(half),
        }
    return row


def protocol_splits(
    groups: Sequence[str],
    protocol: Literal["P1", "P3"],
    seed: int,
    train_fraction: float = 0.8,
) -> Iterator[tuple[str, np.ndarray, np.ndarray, np.ndarray]]:
    """Yields the one-class-per-category splits of paper.md section 6.

    P1: one group is normal, all others are anomalies. P3: one group is the anomaly, all others
    are normal. `train_fraction` of the normal loops train; the rest of them and all anomalies
    are the test. A group with fewer than `MIN_TRAIN` loops to fit on is never the normal one.

    Args:
        groups: [N] group names.
        protocol: "P1" or "P3".
        seed: of the permutation (one independent draw per group and seed).
        train_fraction: share of normal loops to fit on.

    Yields:
        (group, train [T] row indices, test [S] row indices, labels [S] 1 = anomaly).

    Raises:
        UserError: fewer than two groups, all groups too small, or an unknown protocol.
    """
    if protocol not in ("P1", "P3"):
        raise UserError(f"unknown protocol {protocol!r}: P1 (one normal) or P3 (one odd)")
    names = np.asarray(groups, dtype=object)
    categories = sorted(set(names.tolist()))
    if len(categories) < 2:
        raise UserError(f"protocol {protocol} needs at least two groups (folders) of loops")
    found = False
    for index, category in enumerate(categories):
        is_own = names == category
        is_normal = is_own if protocol == "P1" else ~is_own
        normal = np.random.default_rng([seed, index]).permutation(np.flatnonzero(is_normal))
        n_train = int(train_fraction * len(normal))
        if n_train < MIN_TRAIN:
            continue
        found = True
        test_normal, odd = normal[n_train:], np.flatnonzero(~is_normal)
        labels = np.r_[np.zeros(len(test_normal), int), np.ones(len(odd), int)]
        yield str(category), normal[:n_train], np.r_[test_normal, odd], labels
    if not found:
        raise UserError(f"protocol {protocol}: no group leaves {MIN_TRAIN} normal loops to fit on")


def compare_with_published(rows: Table, reference: Mapping[str, Any]) -> Table:
    """Puts published and independently reproduced values beside ours.

    Args:
        rows: ours; each with `measure` (as in the reference, e.g. "threshold_q95",
            "auroc_P1"), `embeddings` ("ff", "nff", ...), `detector` and `value`; optionally
            `low`, `high`, `n_seeds`.
        reference: parsed `configs/reference_*.json`: `detectors` (canonical name -> list of
            accepted names), `entries` (measure, embeddings, detector, published, published_how,
            reproduced, reproduced_low, reproduced_high, reproduced_seeds), `source`.

    Returns:
        One row per row of ours: with `published`, `reproduced`, its range, `inside_range` (ours
        lies in the reproduction's range over seeds) and `ratio` to the published value; nulls
        where the reference has nothing.
    """
    canonical = {
        alias.lower(): name
        for name, aliases in reference["detectors"].items()
        for alias in (name, *aliases)
    }
    known = {(e["measure"], e["embeddings"], e["detector"]): e for e in reference["entries"]}
    table: Table = []
    for row in rows:
        name = canonical.get(str(row["detector"]).lower(), row["detector"])
        entry = known.get((row["measure"], row["embeddings"], name), {})
        low, high = entry.get("reproduced_low"), entry.get("reproduced_high")
        published = entry.get("published")
        table.append(
            {
                "measure": row["measure"],
                "embeddings": row["embeddings"],
                "detector": row["detector"],
                "ours": row["value"],
                "ours_low": row.get("low"),
                "ours_high": row.get("high"),
                "n_seeds": row.get("n_seeds"),
                "published": published,
                "published_how": entry.get("published_how"),
                "reproduced": entry.get("reproduced"),
                "reproduced_low": low,
                "reproduced_high": high,
                "reproduced_seeds": entry.get("reproduced_seeds"),
                "ratio": row["value"] / published if published else None,
                "inside_range": None if low is None else bool(low <= row["value"] <= high),
            }
        )
    return table
