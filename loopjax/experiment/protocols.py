"""Labeled protocols over folders: many detectors, folders and seeds from one embedding matrix.

P1 calls one folder normal, P3 calls one folder anomalous, P2-5 does so with 5 % of such loops among
the training loops, "unlabeled" fits on 80 % of everything and measures the scores without labels
(the paper's way). Heads of one architecture train together. The reference's row-duplicating shuffle
(`compat: reference`) acts on "unlabeled" only: elsewhere such heads split truly, as the independent
re-implementation of the reference did.
"""

import dataclasses
import hashlib
import json
import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import jax
import numpy as np

from loopjax.config import DetectorConfig, ProtocolName
from loopjax.detectors import make_detector
from loopjax.detectors.base import Detector
from loopjax.detectors.crossfit import N_FOLDS
from loopjax.detectors.svdd.estimator import DeepSVDD
from loopjax.detectors.svdd.fit import FittedHead, group_size
from loopjax.detectors.svdd.together import train_together
from loopjax.errors import ModelCheckError
from loopjax.evaluation.folds import copy_groups
from loopjax.evaluation.metrics import labeled_metrics
from loopjax.evaluation.separation import separation
from loopjax.evaluation.splits import protocol_splits, with_their_like
from loopjax.json_files import parse_json

CACHE_FORMAT = 5  # of its rows; raised when they change
_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class ProtocolRow:
    """One fit: what it was fitted on and how it did; None where a number does not apply.

    Attributes:
        protocol: "unlabeled", or of `protocol_splits`.
        folder: the normal one in P1, the anomalous one in P3, "" else.
        method: name of the detector.
        seed: of the split and of the detector.
        n_train: rows it was fitted on.
        n_moved: rows that copies of theirs drew to the other side, or out of the test.
        collapsed: the reason why a head failed its check; then all numbers are None.
        epochs: trained epochs by stage, of heads.
        threshold: decision threshold.
        median: of the training scores.
        auroc: on the test rows, in labeled protocols.
        pauc: the same up to a false-positive rate of 0.1.
        average_precision: on the test rows.
        n_normal: normal test rows.
        n_anomaly: anomalous test rows.
        false_alarms: fraction of normal test rows above the threshold.
        gap_ratio: see `separation`, in "unlabeled".
        robust_z_top5: see `separation`.
        dynamic_range_log10: see `separation`.
        fraction_above_threshold: of held-out rows.
    """

    protocol: str
    folder: str
    method: str
    seed: int
    n_train: int
    n_moved: int = 0
    collapsed: str = ""
    epochs: dict[str, int] | None = None
    threshold: float | None = None
    median: float | None = None
    auroc: float | None = None
    pauc: float | None = None
    average_precision: float | None = None
    n_normal: int | None = None
    n_anomaly: int | None = None
    false_alarms: float | None = None
    gap_ratio: float | None = None
    robust_z_top5: float | None = None
    dynamic_range_log10: float | None = None
    fraction_above_threshold: float | None = None


@dataclass(frozen=True)
class _Task:
    """One detector to fit on some rows and to test on others."""

    method: str
    protocol: str
    folder: str
    seed: int
    train: np.ndarray
    test: np.ndarray
    labels: np.ndarray | None
    n_moved: int = 0


def run_protocols(
    X: np.ndarray,
    groups: Sequence[str],
    methods: Sequence[DetectorConfig],
    protocols: Sequence[ProtocolName] = ("P1", "P3", "unlabeled"),
    seeds: Sequence[int] = (0, 1, 2, 3, 4),
    *,
    cache: Path | None = None,
    log: Callable[[str], None] | None = None,
) -> list[ProtocolRow]:
    """Rows of every method on every protocol, folder and seed.

    Args:
        X: [N, D] embeddings.
        groups: [N] folder names.
        methods: the detectors; one whose constructor takes `random_state` gets the seed.
        protocols: "unlabeled", and what `protocol_splits` knows.
        seeds: splits (and random states), where a detector has no `protocol_seeds` of its own.
        cache: JSON-lines file of finished rows; what it holds for this X and these settings is
            not computed again.
        log: receives one line per finished group of fits.

    Raises:
        UserError: unknown protocol, kind or parameter, or fewer than two folders.
    """
    X = np.asarray(X, np.float32)
    store = _Cache(cache, X, groups, methods)
    alike = copy_groups(X, N_FOLDS)[0]
    rows: list[ProtocolRow] = []
    for method in methods:
        detector = make_detector(method.kind, **method.params)
        for protocol in protocols:
            own_seeds = method.protocol_seeds.get(protocol, seeds)
            tasks = list(_tasks(method.name, protocol, groups, own_seeds, detector, alike))
            waiting = [task for task in tasks if store.get(task) is None]
            for task, row in _run(detector, X, waiting):
                store.put(task, row)
            rows += [row for task in tasks if (row := store.get(task)) is not None]
            if log is not None:
                known = len(tasks) - len(waiting)
                moved = f", {n} rows follow their copies" if (n := _moved(tasks)) else ""
                log(f"{method.name} {protocol}: {len(tasks)} fits, {known} known{moved}")
    return rows


def _moved(tasks: list[_Task]) -> int:
    return max((task.n_moved for task in tasks), default=0)


def _tasks(
    method: str,
    protocol: str,
    groups: Sequence[str],
    seeds: Sequence[int],
    detector: Detector,
    alike: np.ndarray,
) -> Iterator[_Task]:
    for seed in seeds:
        if protocol == "unlabeled":
            count = len(groups)
            order = np.random.default_rng([seed, 2**16]).permutation(count)
            n_train = int(0.8 * count)
            trains = with_their_like(order, n_train, alike)
            train, test, n_moved = order[trains], order[~trains], int(trains[n_train:].sum())
            if isinstance(detector, DeepSVDD):
                # The head's own held-out part is the test, as in the reference.
                train, test, n_moved = np.arange(count), np.arange(0), 0
            yield _Task(method, protocol, "", seed, train, test, None, n_moved)
        else:
            plain = {split[0]: split for split in protocol_splits(groups, protocol, seed)}
            for split in protocol_splits(groups, protocol, seed, alike=alike):
                folder, train, test, labels = split
                _, plain_train, plain_test, _ = plain[folder]
                n_moved = len(np.setxor1d(train, plain_train)) + (
                    len(plain_train) + len(plain_test) - len(train) - len(test)
                )
                yield _Task(method, protocol, folder, seed, train, test, labels, n_moved)


def _run(
    detector: Detector, X: np.ndarray, tasks: list[_Task]
) -> Iterator[tuple[_Task, ProtocolRow]]:
    if isinstance(detector, DeepSVDD):
        yield from _run_heads(detector, X, tasks)
        return

    def fit(task: _Task) -> ProtocolRow:
        params = detector.get_params()
        if "random_state" in params:
            params["random_state"] = task.seed
        fitted = type(detector)(**params).fit(X[task.train])
        return _measure(task, fitted, X, fitted.decision_scores_, X[task.test])

    yield from zip(tasks, _side_by_side(fit, tasks), strict=True)


def _side_by_side(work: Callable[[_Item], _Result], items: Sequence[_Item]) -> Iterator[_Result]:
    """Results in order; small fits keep about one core busy, so cores take one each."""
    workers = (os.cpu_count() or 1) if jax.default_backend() == "cpu" else 1
    pool = ThreadPoolExecutor(workers)
    try:
        yield from pool.map(work, items)
    finally:
        pool.shutdown(cancel_futures=True)


def _run_heads(
    detector: DeepSVDD, X: np.ndarray, tasks: list[_Task]
) -> Iterator[tuple[_Task, ProtocolRow]]:
    params = detector.get_params()
    if params["compat"] == "reference" and tasks and tasks[0].labels is not None:
        params["compat"] = "reference-true-split"
    heads = [DeepSVDD(**{**params, "random_state": task.seed}) for task in tasks]
    if not heads:
        return
    # On a CPU every head is a program of its own, see `_side_by_side`.
    on_cpu = jax.default_backend() == "cpu"
    size = 1 if on_cpu else group_size(heads[0].network_config(X.shape[1]))
    # Tasks of similar size together: every program is compiled for its largest member.
    order = sorted(range(len(tasks)), key=lambda i: len(tasks[i].train))
    groups = [order[start : start + size] for start in range(0, len(order), size)]

    def train(group: list[int]) -> list[FittedHead]:
        return train_together([heads[i] for i in group], X, [tasks[i].train for i in group])

    for group, trained in zip(groups, _side_by_side(train, groups), strict=True):
        for i, fitted in zip(group, trained, strict=True):
            yield tasks[i], _test_head(tasks[i], heads[i], fitted, X)


def _test_head(task: _Task, head: DeepSVDD, fitted: FittedHead, X: np.ndarray) -> ProtocolRow:
    try:
        head.adopt(fitted, X[task.train])
    except ModelCheckError as error:
        return dataclasses.replace(_describe(task, head), collapsed=str(error))
    test, scores = X[task.test], head.decision_scores_
    if task.labels is None:
        held_out = np.ones(len(X), bool)
        held_out[head.train_rows_] = False
        test, scores = X[held_out], scores[head.train_rows_]
    return _measure(task, head, X, scores, test)


def _measure(
    task: _Task, detector: Detector, X: np.ndarray, train_scores: np.ndarray, test: np.ndarray
) -> ProtocolRow:
    scores = detector.decision_function(test)
    row = _describe(task, detector)
    if task.labels is None:
        found = separation(train_scores, scores)
        return dataclasses.replace(
            row,
            n_train=len(train_scores),
            threshold=found.threshold,
            median=found.median,
            gap_ratio=found.gap_ratio,
            robust_z_top5=found.robust_z_top5,
            dynamic_range_log10=found.dynamic_range_log10,
            fraction_above_threshold=found.fraction_above_threshold,
        )
    found = labeled_metrics(task.labels, scores, bootstrap=0)
    return dataclasses.replace(
        row,
        threshold=detector.threshold_,
        median=float(np.median(train_scores)),
        false_alarms=float(np.mean(scores[task.labels == 0] > detector.threshold_)),
        n_normal=found.n_normal,
        n_anomaly=found.n_anomaly,
        auroc=found.auroc.value,
        pauc=found.pauc.value,
        average_precision=found.average_precision.value,
    )


def _describe(task: _Task, detector: Detector) -> ProtocolRow:
    epochs = None
    if isinstance(detector, DeepSVDD):
        epochs = {stage: len(curves["train_loss"]) for stage, curves in detector.history_.items()}
    return ProtocolRow(
        task.protocol,
        task.folder,
        task.method,
        task.seed,
        len(task.train),
        task.n_moved,
        epochs=epochs,
    )


class _Cache:
    """Finished rows by task, kept in memory and, line by line, in a file."""

    def __init__(
        self,
        path: Path | None,
        X: np.ndarray,
        groups: Sequence[str],
        methods: Sequence[DetectorConfig],
    ):
        self._path = path
        data = hashlib.sha256(X.tobytes() + "\0".join(map(str, groups)).encode())
        self._prefix = {
            method.name: hashlib.sha256(data.digest() + _identity(method)).hexdigest()[:16]
            for method in methods
        }
        self._rows: dict[str, ProtocolRow] = {}
        if path is not None and path.exists():
            for line in path.read_text("utf-8", "replace").splitlines():
                try:
                    entry = parse_json(line)
                    is_whole = entry.pop("crc32") == _checksum(entry)
                except (ValueError, KeyError, TypeError, AttributeError):
                    continue  # the last line of a killed run may be cut
                if is_whole and entry["key"].startswith(tuple(self._prefix.values())):
                    self._rows[entry["key"]] = ProtocolRow(**entry["row"])

    def get(self, task: _Task) -> ProtocolRow | None:
        return self._rows.get(self._key(task))

    def put(self, task: _Task, row: ProtocolRow) -> None:
        self._rows[self._key(task)] = row
        if self._path is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a", encoding="utf-8") as file:
                entry: dict[str, object] = {"key": self._key(task)}
                entry["row"] = dataclasses.asdict(row)
                file.write(json.dumps(entry | {"crc32": _checksum(entry)}) + "\n")

    def _key(self, task: _Task) -> str:
        prefix = self._prefix[task.method]
        return f"{prefix}/{task.protocol}/{task.folder}/{task.seed}"


def _checksum(entry: dict[str, object]) -> int:
    return zlib.crc32(json.dumps(entry, sort_keys=True).encode())


def _identity(method: DetectorConfig) -> bytes:
    """What decides a fit's result, beside data, protocol, folder and seed."""
    known = {"kind": method.kind, "params": method.params, "format": CACHE_FORMAT}
    return json.dumps(known, sort_keys=True, default=str).encode()
