"""Robustness curves of a run: how severely must a loop be perturbed before a detector notices?

The paper claims its detectors do better "particularly for larger variations" (abstract). Here every
held-out normal loop is perturbed in ten ways at six severities, and each detector must rank the
perturbed copies above the originals. Embeddings of the copies are cached per perturbation and
severity, so a killed run continues and other detectors cost no new embedding.
"""

import hashlib
import importlib.metadata
import importlib.util
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import pyarrow as pa

from loopjax.audio.perturb import PERTURBATIONS, Perturbation, perturb
from loopjax.config import EmbedConfig
from loopjax.embedding.read import read_samples
from loopjax.embedding.samples import as_float, embed_arrays
from loopjax.embedding.settings import space_of
from loopjax.encoders.protocol import Encoder
from loopjax.errors import UserError
from loopjax.evaluation.robustness import (
    CurvePoint,
    auroc_of_wins,
    perturbation_table,
    severity_table,
    win_matrix,
)
from loopjax.evaluation.tables import Table
from loopjax.io import write_atomically

FORMAT = 1  # of the cache; raised when a perturbation changes
MAX_LOOPS, QUICK_LOOPS = 60, 16
QUICK_LEVELS = (1, 3, 5)
MIN_LOOPS = 5
BOOTSTRAP = 1000


class Scorer(Protocol):
    """What a robustness curve needs of a detector."""

    def decision_function(self, X: np.ndarray, /) -> np.ndarray:
        """Scores [N] of rows [N, D]."""
        ...


@dataclass(frozen=True)
class RobustnessCurves:
    """Every point of every curve, and the two tables that sum them up."""

    points: tuple[CurvePoint, ...]
    tables: tuple[Table, ...]


@dataclass(frozen=True)
class _Loop:
    id: str
    samples: np.ndarray  # float32 [n]
    rate_hz: int
    group: str


@dataclass(frozen=True)
class _Copies:
    """Makes and embeds perturbed copies of some loops, or finds them in the cache."""

    loops: Sequence[_Loop]
    donors: Sequence[np.ndarray] | None  # per loop
    encoder: Encoder
    options: EmbedConfig | None
    cache: Path
    seed: int

    def embed(self, perturbation: Perturbation, level: int) -> np.ndarray:
        """Embeddings [N, D] of all loops at one severity."""
        path = self._path(perturbation, level)
        if path.is_file():
            cached = np.load(path, allow_pickle=False)
            if cached.shape == (len(self.loops), self.encoder.embedding_dim):
                return cached
        index = list(PERTURBATIONS).index(perturbation.name)
        copies = [
            perturb(
                perturbation,
                loop.samples,
                loop.rate_hz,
                perturbation.severities[level],
                # Not the level: places and noise stay, only the severity changes along a curve.
                (self.seed, index, int(hashlib.sha256(loop.id.encode()).hexdigest()[:8], 16)),
                self.donors[i] if self.donors is not None else None,
            )
            for i, loop in enumerate(self.loops)
        ]
        matrix = _embed(self.loops, copies, self.encoder, self.options)
        write_atomically(path, lambda temporary: _save(temporary, matrix))
        return matrix

    def _path(self, perturbation: Perturbation, level: int) -> Path:
        identity = {
            "format": FORMAT,
            "space": space_of(self.encoder, self.options or EmbedConfig()).to_metadata(),
            "loops": [loop.id for loop in self.loops],
            "perturbation": perturbation.name,
            "severity": perturbation.severities[level],
            "seed": self.seed,
            "pedalboard": importlib.metadata.version("pedalboard"),
        }
        text = json.dumps(identity, sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()[:16]
        return self.cache / f"{perturbation.name.replace(' ', '-')}-{level}-{digest}.npy"


def measure_robustness(
    table: pa.Table,
    models: Mapping[str, Sequence[Scorer]],
    encoder: Encoder,
    cache: Path,
    *,
    options: EmbedConfig | None = None,
    quick: bool = False,
    seed: int = 0,
    log: Callable[[str], None] = lambda line: None,
) -> RobustnessCurves:
    """Measures every detector's robustness curves; what an earlier call embedded is not redone.

    Args:
        table: rows of an embedding store (`id`, `path_bytes`, optional `group`): normal loops that
            none of the detectors was fitted on.
        models: detector name -> fitted detectors, one per seed.
        encoder: the one whose embeddings they were fitted on.
        cache: folder for the embeddings of the copies; nothing else is written.
        options: decoding and buckets as for the store.
        quick: three severities on few loops.
        seed: of places, noise and donors.
        log: receives one line per perturbation.

    Raises:
        UserError: fewer than five loops, a file that vanished, or the extra [eval] is missing.
    """
    if importlib.util.find_spec("pedalboard") is None:
        raise UserError("robustness curves need pedalboard: pip install 'loopjax[eval]'")
    loops = _read_loops(table, encoder, options, QUICK_LOOPS if quick else MAX_LOOPS, seed)
    copies = _Copies(loops, _donors(loops, seed), encoder, options, cache, seed)
    originals = _embed(loops, [loop.samples for loop in loops], encoder, options)
    base = {name: _scores(detectors, originals) for name, detectors in models.items()}
    rng = np.random.default_rng(seed)
    weights = rng.multinomial(len(loops), np.full(len(loops), 1 / len(loops)), size=BOOTSTRAP)
    points: list[CurvePoint] = []
    wins: dict[tuple[str, int], list[np.ndarray]] = {}
    for perturbation in PERTURBATIONS.values():
        if perturbation.needs_donor and copies.donors is None:
            log(f"robustness: {perturbation.name} left out, all loops are of one group")
            continue
        levels = QUICK_LEVELS if quick else range(len(perturbation.severities))
        log(f"robustness: {perturbation.name}, {len(levels)} severities on {len(loops)} loops")
        for level in levels:
            matrix = copies.embed(perturbation, level)
            for name, detectors in models.items():
                win = win_matrix(_scores(detectors, matrix), base[name])
                wins.setdefault((name, level), []).append(win)
                points.append(
                    CurvePoint(
                        perturbation=perturbation.name,
                        unit=perturbation.unit,
                        level=level,
                        severity=f"{perturbation.severities[level]:g}",
                        detector=name,
                        auroc=auroc_of_wins([win], weights),
                        fraction_raised=float(np.mean(np.diag(win))),
                        n_loops=len(loops),
                        n_seeds=len(detectors),
                    )
                )
    tables = (
        severity_table(wins, weights, list(models)),
        perturbation_table(points, list(models)),
    )
    return RobustnessCurves(tuple(points), tables)


def _read_loops(
    table: pa.Table, encoder: Encoder, options: EmbedConfig | None, at_most: int, seed: int
) -> list[_Loop]:
    ids = table["id"].to_pylist()
    if len(ids) < MIN_LOOPS:
        raise UserError(
            f"robustness curves need at least {MIN_LOOPS} held-out normal loops, there are "
            f"{len(ids)}: lower split.train_fraction"
        )
    # Chosen by id, so that a larger corpus keeps most of its cached copies.
    digest = [hashlib.sha256(f"{seed}:{row_id}".encode()).digest() for row_id in ids]
    chosen = sorted(range(len(ids)), key=digest.__getitem__)[:at_most]
    paths = table["path_bytes"].to_pylist()
    names = [Path(p.decode("utf-8", "surrogateescape")) for p in paths]
    groups = table["group"].to_pylist() if "group" in table.column_names else [""] * len(ids)
    if len(set(groups)) < 2:  # one folder: bass_001.ogg and guitar_001.ogg tell their family
        groups = [_family(name) for name in names]
    loops = []
    for i in chosen:
        sound = read_samples(names[i], encoder, options)
        loops.append(_Loop(ids[i], as_float(sound.samples), sound.info.rate_hz, groups[i]))
    return loops


def _donors(loops: Sequence[_Loop], seed: int) -> list[np.ndarray] | None:
    """Per loop the samples of one of another group, same rate; None if a loop has no such."""
    rng = np.random.default_rng([seed, 1])
    donors = []
    for loop in loops:
        foreign = [x for x in loops if x.group != loop.group and x.rate_hz == loop.rate_hz]
        if not foreign:
            return None
        donors.append(foreign[int(rng.integers(len(foreign)))].samples)
    return donors


def _embed(
    loops: Sequence[_Loop],
    arrays: Sequence[np.ndarray],
    encoder: Encoder,
    options: EmbedConfig | None,
) -> np.ndarray:
    matrix = np.empty((len(loops), encoder.embedding_dim), np.float32)
    for rate_hz in sorted({loop.rate_hz for loop in loops}):
        own = [i for i, loop in enumerate(loops) if loop.rate_hz == rate_hz]
        matrix[own] = embed_arrays([arrays[i] for i in own], encoder, rate_hz, options)
    return matrix


def _family(file: Path) -> str:
    """The letters that a file name starts with."""
    letters = re.match(r"[^\W\d_]*", file.stem)
    return letters[0].lower() if letters else ""


def _save(path: Path, matrix: np.ndarray) -> None:
    with path.open("wb") as file:  # given a name, NumPy would append ".npy"
        np.save(file, matrix)


def _scores(detectors: Sequence[Scorer], matrix: np.ndarray) -> np.ndarray:
    """[seeds, N]."""
    return np.stack([detector.decision_function(matrix) for detector in detectors])
