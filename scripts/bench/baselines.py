"""Isolation Forest and PCA against scikit-learn, interleaved in one process.

    python scripts/bench/baselines.py --rows 20000 --width 768 --rounds 3

Every round runs every contender once; one JSON line per measurement, then the best of each and the
ratios. loopjax's first fit and score, which compile, are reported apart.
"""

import argparse
import json
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from sklearn.decomposition import PCA as SkPCA
from sklearn.ensemble import IsolationForest as SkForest
from sklearn.preprocessing import StandardScaler

from loopjax.detectors import PCA, IsolationForest


def seconds(run: Callable[[], Any]) -> float:
    """Wall-clock seconds of one call."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def sklearn_pca(X: np.ndarray, components: int) -> tuple[StandardScaler, SkPCA]:
    """The reference's PCA baseline, fitted."""
    scaler = StandardScaler().fit(X)
    return scaler, SkPCA(components).fit(scaler.transform(X))


def sklearn_pca_score(model: tuple[StandardScaler, SkPCA], X: np.ndarray) -> np.ndarray:
    """Its score of every row."""
    z = model[0].transform(X)
    return ((z - model[1].inverse_transform(model[1].transform(z))) ** 2).sum(axis=1)


def main() -> None:
    """Run all contenders and print JSON lines."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=20000)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--trees", type=int, default=100)
    parser.add_argument("--components", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    X = np.random.default_rng(0).normal(size=(args.rows, args.width)).astype(np.float32)
    forest = IsolationForest(args.trees).fit(X)
    sk_forest = SkForest(n_estimators=args.trees, random_state=0).fit(X)
    pca = PCA(args.components).fit(X)
    sk_pca = sklearn_pca(X, args.components)
    tasks: dict[str, dict[str, Callable[[], Any]]] = {
        "forest fit": {
            "loopjax": lambda: IsolationForest(args.trees).fit(X),
            # scikit-learn's fit leaves the training scores out unless contamination is a number.
            "sklearn": lambda: SkForest(n_estimators=args.trees, contamination=0.05).fit(X),
        },
        "forest score": {
            "loopjax": lambda: forest.decision_function(X),
            "sklearn": lambda: sk_forest.score_samples(X),
        },
        "pca fit": {
            "loopjax": lambda: PCA(args.components).fit(X),
            "sklearn": lambda: sklearn_pca_score(sklearn_pca(X, args.components), X),
        },
        "pca score": {
            "loopjax": lambda: pca.decision_function(X),
            "sklearn": lambda: sklearn_pca_score(sk_pca, X),
        },
    }
    for task, contenders in tasks.items():
        first = seconds(contenders["loopjax"])
        best = dict.fromkeys(contenders, float("inf"))
        for number in range(args.rounds):
            for name, run in contenders.items():
                took = seconds(run)
                best[name] = min(best[name], took)
                line = {"task": task, "contender": name, "round": number, "seconds": took}
                print(json.dumps(line))
        ratio = best["sklearn"] / best["loopjax"]
        print(json.dumps({"task": task, "best_s": best, "speed_up": ratio, "first_s": first}))


if __name__ == "__main__":
    main()
