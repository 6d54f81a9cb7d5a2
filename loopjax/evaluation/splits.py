"""Which rows train and which are tested, decided on arrays alone."""

from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np

from loopjax.errors import UserError

MIN_TRAIN = 5  # loops; no detector learns what is normal from fewer


def protocol_splits(
    groups: Sequence[str],
    protocol: Literal["P1", "P3"],
    seed: int,
    train_fraction: float = 0.8,
) -> Iterator[tuple[str, np.ndarray, np.ndarray, np.ndarray]]:
    """Yields the one-class-per-category splits.

    P1: one group is normal, all others are anomalies. P3: one group is the anomaly, all others
    are normal. `train_fraction` of the normal loops train; the rest of them and all anomalies
    are the test. A group with fewer than `MIN_TRAIN` loops to fit on is never the normal one.

    Args:
        groups: [N] group names.
        protocol: "P1" or "P3".
        seed: of the permutation (one independent draw per group and seed).
        train_fraction: fraction of normal loops to fit on.

    Yields:
        (group, train [T] row indices, test [S] row indices, labels [S] 1 = anomaly).

    Raises:
        UserError: fewer than two groups, all groups too small, or an unknown protocol.
    """
    if protocol not in ("P1", "P3"):
        raise UserError(f"unknown protocol {protocol!r}: P1 (one normal) or P3 (one anomalous)")
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
        test_normal, anomalous = normal[n_train:], np.flatnonzero(~is_normal)
        labels = np.r_[np.zeros(len(test_normal), int), np.ones(len(anomalous), int)]
        yield str(category), normal[:n_train], np.r_[test_normal, anomalous], labels
    if not found:
        raise UserError(f"protocol {protocol}: no group leaves {MIN_TRAIN} normal loops to fit on")
