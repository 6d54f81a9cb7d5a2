"""Labeled protocols over folders: many detectors, folders and seeds from one embedding matrix.

P1 calls one folder normal, P3 calls one folder odd, "unlabeled" fits on 80 % of everything and
measures the scores without labels (the paper's way). Heads of one architecture train together.
The reference's row-duplicating shuffle (`compat: reference`) acts on "unlabeled" only: in P1 and
P3 such heads split truly, as the independent re-implementation of the reference did.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from loopjax.detectors import make_detector
from loopjax.detectors.base import Detector
from loopjax.detectors.svdd.estimator import DeepSVDD
from loopjax.detectors.svdd.fit import group_size, train_heads
from loopjax.errors import ModelCheckError, UserError
from loopjax.evaluation.metrics import labeled, separation
from loopjax.evaluation.statistics import Table, protocol_splits


@dataclass(frozen=True)
class _Task:
    """One detector to fit on some rows and to judge on others."""

    method: str
    protocol: str
    folder: str
    seed: int
    train: np.ndarray
    test: np.ndarray
    labels: np.ndarray | None


def run_protocols(
    X: np.ndarray,
    groups: Sequence[str],
    methods: Mapping[str, Mapping[str, Any]],
    protocols: Sequence[str] = ("P1", "P3", "unlabeled"),
    seeds: Sequence[int] = (0, 1, 2, 3, 4),
    *,
    cache: Path | None = None,
    log: Callable[[str], None] | None = None,
) -> Table:
    """Rows of every method on every protocol, folder and seed.

    Args:
        X: [N, D] embeddings.
        groups: [N] folder names.
        methods: name -> {"kind": ..., "params": {...}, "protocol_seeds": {...}}; a detector whose
            constructor takes `random_state` gets the seed.
        protocols: of "P1", "P3", "unlabeled".
        seeds: splits (and random states), where a method has no `protocol_seeds` of its own.
        cache: JSON-lines file of finished rows; what it holds for this X and these settings is
            not computed again.
        log: receives one line per finished group of fits.

    Returns:
        Dicts with protocol, folder (the normal one in P1, the odd one in P3, "" else), method,
        seed, n_train, threshold, median, and `auroc`, `pauc_0.1`, `average_precision`, `n_normal`,
        `n_anomaly`, `false_alarms` (share of normal test rows above the threshold) or the numbers
        of `separation`; `collapsed` holds the reason when a head failed its check, else "".

    Raises:
        UserError: unknown protocol, kind or parameter, or fewer than two folders.
    """
    X = np.asarray(X, np.float32)
    store = _Cache(cache, X, groups, methods)
    rows: Table = []
    for name, spec in methods.items():
        detector = make_detector(spec["kind"], **spec.get("params", {}))
        for protocol in protocols:
            own_seeds = spec.get("protocol_seeds", {}).get(protocol, seeds)
            tasks = list(_tasks(name, protocol, groups, own_seeds, detector))
            waiting = [task for task in tasks if store.get(task) is None]
            for task, row in _run(detector, X, waiting):
                store.put(task, row)
            rows += [store.get(task) for task in tasks]
            if log is not None:
                log(f"{name} {protocol}: {len(tasks)} fits, {len(tasks) - len(waiting)} known")
    return rows


def _tasks(
    method: str, protocol: str, groups: Sequence[str], seeds: Sequence[int], detector: Detector
) -> Iterator[_Task]:
    for seed in seeds:
        if protocol == "unlabeled":
            count = len(groups)
            order = np.random.default_rng([seed, 2**16]).permutation(count)
            n_train = int(0.8 * count)
            train, test = order[:n_train], order[n_train:]
            if isinstance(detector, DeepSVDD):
                # The head's own held-out part is the test, as in the reference.
                train, test = np.arange(count), np.arange(0)
            yield _Task(method, protocol, "", seed, train, test, None)
        elif protocol in ("P1", "P3"):
            for folder, train, test, labels in protocol_splits(groups, protocol, seed):
                yield _Task(method, protocol, folder, seed, train, test, labels)
        else:
            raise UserError(f"unknown protocol {protocol!r}: P1, P3 or unlabeled")


def _run(detector: Detector, X: np.ndarray, tasks: list[_Task]) -> Iterator[tuple[_Task, dict]]:
    if isinstance(detector, DeepSVDD):
        yield from _run_heads(detector, X, tasks)
        return
    for task in tasks:
        params = detector.get_params()
        if "random_state" in params:
            params["random_state"] = task.seed
        fitted = type(detector)(**params).fit(X[task.train])
        yield task, _judge(task, fitted, X, fitted.decision_scores_, X[task.test])


def _run_heads(
    detector: DeepSVDD, X: np.ndarray, tasks: list[_Task]
) -> Iterator[tuple[_Task, dict]]:
    params = detector.get_params()
    if params["compat"] == "reference" and tasks and tasks[0].labels is not None:
        params["compat"] = "reference-true-split"
    heads = [DeepSVDD(**{**params, "random_state": task.seed}) for task in tasks]
    for head in heads:
        head.n_features_in_ = X.shape[1]
        head._check_params()
    if not heads:
        return
    if jax.default_backend() == "cpu":
        # Small steps keep about one core busy: cores train single heads side by side.
        workers, size = os.cpu_count() or 1, 1
    else:
        workers, size = 1, group_size(heads[0].network_config())
    # Tasks of similar size together: every program is compiled for its largest member.
    order = sorted(range(len(tasks)), key=lambda i: len(tasks[i].train))
    groups = [order[start : start + size] for start in range(0, len(order), size)]

    def train(group: list[int]) -> list[int]:
        train_heads([heads[i] for i in group], X, [tasks[i].train for i in group])
        return group

    pool = ThreadPoolExecutor(workers)
    try:
        for chosen in pool.map(train, groups):
            yield from _judge_heads([(tasks[i], heads[i]) for i in chosen], X)
    finally:
        pool.shutdown(cancel_futures=True)


def _judge_heads(
    trained: list[tuple[_Task, DeepSVDD]], X: np.ndarray
) -> Iterator[tuple[_Task, dict]]:
    for task, head in trained:
        try:
            scores = head._finish(X[task.train])
        except ModelCheckError as error:
            yield task, _describe(task, head) | {"collapsed": str(error)}
            continue
        head.decision_scores_ = scores
        head.threshold_ = head._threshold_from(scores)
        test = X[task.test]
        if task.labels is None:
            held_out = np.ones(len(X), bool)
            held_out[head.train_rows_] = False
            test, scores = X[held_out], scores[head.train_rows_]
        yield task, _judge(task, head, X, scores, test)


def _judge(
    task: _Task, detector: Detector, X: np.ndarray, train_scores: np.ndarray, test: np.ndarray
) -> dict[str, Any]:
    scores = detector.decision_function(test)
    row = _describe(task, detector)
    if task.labels is None:
        return row | separation(train_scores, scores)
    normal = scores[task.labels == 0]
    return row | {
        "threshold": detector.threshold_,
        "median": float(np.median(train_scores)),
        "false_alarms": float(np.mean(normal > detector.threshold_)),
        **labeled(task.labels, scores, bootstrap=0),
    }


def _describe(task: _Task, detector: Detector) -> dict[str, Any]:
    row = {
        "protocol": task.protocol,
        "folder": task.folder,
        "method": task.method,
        "seed": task.seed,
        "n_train": len(task.train),
        "collapsed": "",
    }
    if isinstance(detector, DeepSVDD):
        row["epochs"] = {k: len(v["train_loss"]) for k, v in detector.history_.items()}
    return row


class _Cache:
    """Finished rows by task, kept in memory and, line by line, in a file."""

    def __init__(
        self,
        path: Path | None,
        X: np.ndarray,
        groups: Sequence[str],
        methods: Mapping[str, Mapping[str, Any]],
    ):
        self._path = path
        data = hashlib.sha256(X.tobytes() + "\0".join(map(str, groups)).encode())
        self._prefix = {
            name: hashlib.sha256(
                data.digest() + json.dumps(_identity(spec), sort_keys=True, default=str).encode()
            ).hexdigest()[:16]
            for name, spec in methods.items()
        }
        self._rows: dict[str, dict[str, Any]] = {}
        if path is not None and path.exists():
            for line in path.read_text("utf-8").splitlines():
                try:
                    entry = json.loads(line)
                except ValueError:
                    continue  # the last line of a killed run may be cut
                self._rows[entry["key"]] = entry["row"]

    def get(self, task: _Task) -> Any:
        return self._rows.get(self._key(task))

    def put(self, task: _Task, row: dict[str, Any]) -> None:
        self._rows[self._key(task)] = row
        if self._path is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"key": self._key(task), "row": row}) + "\n")

    def _key(self, task: _Task) -> str:
        prefix = self._prefix[task.method]
        return f"{prefix}/{task.protocol}/{task.folder}/{task.seed}"


def _identity(spec: Mapping[str, Any]) -> dict[str, Any]:
    return {key: spec[key] for key in ("kind", "params") if key in spec}
