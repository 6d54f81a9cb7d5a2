"""Isolation Forest and PCA against scikit-learn, on one core.

    python scripts/bench/baselines.py --shapes 100000x768 1000000x64 --rounds 3

The process keeps to one core, so that rates compare per core (`--all-cores` lifts that). Fits
include the scores of the training rows, which a threshold needs; "trees" leaves them out. Rows are
noise, on which trees are deepest and no cut is lucky.
"""

import argparse
import os
from typing import Any

import numpy as np
from measure import arguments, emit, peer, rounded, take_turns

TARGET_SHAPE = "100000x768"


def main() -> None:
    """Times everything in turns and prints one line per comparison."""
    parser = arguments(__doc__)
    parser.add_argument("--shapes", nargs="+", default=[TARGET_SHAPE, "1000000x64"])
    parser.add_argument("--trees", type=int, default=100)
    parser.add_argument("--components", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--all-cores", action="store_true")
    args = parser.parse_args()
    if not args.all_cores:
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    for shape in args.shapes:
        time_shape(shape, args)


def time_shape(shape: str, args: argparse.Namespace) -> None:
    """Compares everything on noise of one shape."""
    n_rows, width = map(int, shape.split("x"))
    ensemble, decomposition = peer("sklearn.ensemble"), peer("sklearn.decomposition")
    scaling = peer("sklearn.preprocessing")
    from loopjax.detectors.isolation_forest import IsolationForest
    from loopjax.detectors.pca import PCA

    class Trees(IsolationForest):
        """Grown, but without the scores of its training rows."""

        def _score_all(self, rows: Any) -> np.ndarray:
            return np.zeros(len(rows))

    def sk_pca_fit() -> Any:
        scaler = scaling.StandardScaler().fit(X)
        return scaler, decomposition.PCA(n_components).fit(scaler.transform(X))

    def sk_pca_score(model: Any) -> np.ndarray:
        z = model[0].transform(X)
        return ((z - model[1].inverse_transform(model[1].transform(z))) ** 2).sum(axis=1)

    n_components = min(args.components, width // 2)
    X = np.random.default_rng(0).normal(size=(n_rows, width)).astype(np.float32)
    forest = IsolationForest(args.trees).fit(X)
    sk_forest = ensemble.IsolationForest(n_estimators=args.trees, random_state=0).fit(X)
    pca, sk_pca = PCA(n_components).fit(X), sk_pca_fit()
    # scikit-learn's fit scores the training rows only when contamination is a number.
    sk_options = {"n_estimators": args.trees, "contamination": 0.05, "random_state": 0}
    comparisons = {
        "Isolation Forest, trees": (
            lambda: Trees(args.trees).fit(X),
            lambda: ensemble.IsolationForest(n_estimators=args.trees, random_state=0).fit(X),
            ">= 4x",
        ),
        "Isolation Forest, fit": (
            lambda: IsolationForest(args.trees).fit(X),
            lambda: ensemble.IsolationForest(**sk_options).fit(X),
            ">= 2x",
        ),
        "Isolation Forest, score": (
            lambda: forest.decision_function(X),
            lambda: sk_forest.score_samples(X),
            ">= 2x",
        ),
        "PCA, fit": (
            lambda: PCA(n_components).fit(X),
            lambda: sk_pca_score(sk_pca_fit()),
            ">= 0.7x",
        ),
        "PCA, score": (
            lambda: pca.decision_function(X),
            lambda: sk_pca_score(sk_pca),
            ">= 0.7x",
        ),
    }
    for row, (ours, theirs, target) in comparisons.items():
        times = take_turns({"ours": ours, "sklearn": theirs}, args.rounds)
        mine, other = times["ours"], times["sklearn"]
        emit(
            "baselines",
            f"{row}, {n_rows} x {width}",
            ours=n_rows / mine.median_s,
            unit="rows/s",
            peer=n_rows / other.median_s,
            peer_name="scikit-learn",
            target=target if shape == TARGET_SHAPE else None,
            spread={"ours": rounded(mine.spread), "peer": rounded(other.spread)},
            compile_s=rounded(mine.compile_s),
        )


if __name__ == "__main__":
    main()
