"""Which rows train and which are tested, decided on arrays alone."""

import re
from collections.abc import Iterator, Sequence

import numpy as np

from loopjax.errors import UserError

MIN_TRAIN = 5  # loops; no detector learns what is normal from fewer


def protocol_splits(
    groups: Sequence[str],
    protocol: str,
    seed: int,
    train_fraction: float = 0.8,
    alike: np.ndarray | None = None,
) -> Iterator[tuple[str, np.ndarray, np.ndarray, np.ndarray]]:
    """Yields the one-class-per-category splits.

    P1: one group is normal, all others are anomalies. P3: one group is the anomaly, all others
    are normal. P2-5: as P3, but 5 % of the training loops are unnoticed anomalies of that group: at
    most half of the group, of as many normal loops as make it 5 %.
    `train_fraction` of the normal loops train; the rest of them and all (other) anomalies
    are the test. A group with fewer than `MIN_TRAIN` loops to fit on is never the normal one.

    Args:
        groups: [N] group names.
        protocol: "P1", "P3", or "P2-" and a percentage.
        seed: of the permutation (one independent draw per group and seed).
        train_fraction: fraction of normal loops to fit on.
        alike: int [N], equal for loops that are copies of one another (`linked_groups`): normal
            ones follow the first of them to its side, and an anomaly that is a copy of a training
            loop is not tested.

    Yields:
        (group, train [T] row indices, test [S] row indices, labels [S] 1 = anomaly).

    Raises:
        UserError: fewer than two groups, all groups too small, or an unknown protocol.
    """
    contamination = _contamination(protocol)
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
        trains = with_their_like(normal, n_train, alike)
        train, test_normal = normal[trains], normal[~trains]
        anomalous = np.flatnonzero(~is_normal)
        if contamination:
            wanted = round(contamination * n_train / (1 - contamination))
            drawn = np.random.default_rng([seed, index, 2]).permutation(anomalous)
            hidden = drawn[: min(wanted, len(anomalous) // 2)]  # the other half is the test
            if len(hidden) < wanted:  # a small group is that fraction of fewer training loops
                train = train[: round(len(hidden) * (1 - contamination) / contamination)]
            train, anomalous = np.r_[train, hidden], np.setdiff1d(anomalous, hidden)
        if alike is not None:
            anomalous = anomalous[~np.isin(alike[anomalous], alike[train])]
            test_normal = test_normal[~np.isin(alike[test_normal], alike[train])]
        labels = np.r_[np.zeros(len(test_normal), int), np.ones(len(anomalous), int)]
        yield str(category), train, np.r_[test_normal, anomalous], labels
    if not found:
        raise UserError(f"protocol {protocol}: no group leaves {MIN_TRAIN} normal loops to fit on")


def with_their_like(order: np.ndarray, n_train: int, alike: np.ndarray | None) -> np.ndarray:
    """Which rows of a random order train, bool: those whose like comes first among `n_train`."""
    first = np.arange(len(order))
    if alike is not None:
        _, start, group = np.unique(alike[order], return_index=True, return_inverse=True)
        first = start[group]
    return first < n_train


def _contamination(protocol: str) -> float:
    """Fraction of anomalies among the training loops of a protocol."""
    if protocol in ("P1", "P3"):
        return 0.0
    percent = re.fullmatch(r"P2-(\d{1,2})", protocol)
    if percent is None or percent[1].strip("0") == "":
        raise UserError(
            f"unknown protocol {protocol!r}: P1 (one group normal), P3 (one group anomalous) or, "
            "for example, P2-5 (as P3, with 5 % of the training loops of the anomalous group)"
        )
    return int(percent[1]) / 100
