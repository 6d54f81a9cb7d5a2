"""The variation ladder: how strongly must a loop change before a detector notices?

The paper claims its detectors do better "particularly for larger variations". Here every held-out
normal loop is varied in ten ways at six strengths, and each detector must rank the varied copies
above the originals. Embeddings of the copies are cached per rung, so a killed run continues and
other detectors cost no new embedding.
"""

import hashlib
import importlib.metadata
import importlib.util
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from loopjax.audio.perturb import VARIATIONS, Variation, vary
from loopjax.config import EmbedConfig
from loopjax.embedding.arrays import as_float, embed_arrays, read_samples
from loopjax.errors import UserError
from loopjax.io import write_atomically, write_json

FORMAT = 1  # of the cache; raised when a variation changes
MAX_LOOPS, QUICK_LOOPS = 60, 16
QUICK_STEPS = (1, 3, 5)
MIN_LOOPS = 5
BOOTSTRAP = 1000


@dataclass(frozen=True)
class _Loop:
    id: str
    samples: np.ndarray  # float32 [n]
    rate_hz: int
    group: str


def run_ladder(
    table: pa.Table,
    models: Mapping[str, Sequence[Any]],
    encoder: Any,
    out_dir: str | Path,
    *,
    options: EmbedConfig | None = None,
    quick: bool = False,
    seed: int = 0,
    log: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Runs or continues the ladder.

    Args:
        table: rows of an embedding store (`id`, `path_bytes`, optional `group`): normal loops that
            none of the detectors was fitted on.
        models: detector name -> fitted detectors, one per seed.
        encoder: the one whose embeddings they were fitted on.
        out_dir: run folder; gets `ladder/*.npy` (cache), `ladder.json`, `figures/ladder.svg`.
        options: decoding and buckets as for the store.
        quick: three strengths on few loops.
        seed: of places, noise and donors.
        log: receives one line per variation.

    Returns:
        `rows` (one per variation, strength and detector: `auroc` of copies against originals with
        a bootstrap interval over loops, `share_raised` = copies that score above their own
        original) and `tables` for the evaluation (by strength, by variation).

    Raises:
        UserError: fewer than five loops, a file that vanished, or an extra that is missing.
    """
    out_dir = Path(out_dir)
    if importlib.util.find_spec("audiomentations") is None:
        raise UserError("the ladder needs audiomentations: pip install 'loopjax[eval]'")
    loops = _read_loops(table, encoder, options, QUICK_LOOPS if quick else MAX_LOOPS, seed)
    donors = _donors(loops, seed)
    originals = _embed(loops, [loop.samples for loop in loops], encoder, options)
    base = {name: _scores(detectors, originals) for name, detectors in models.items()}
    rng = np.random.default_rng(seed)
    weights = rng.multinomial(len(loops), np.full(len(loops), 1 / len(loops)), size=BOOTSTRAP)
    rows: list[dict[str, Any]] = []
    wins: dict[tuple[str, int], list[np.ndarray]] = {}
    for variation in VARIATIONS.values():
        if variation.needs_donor and donors is None:
            log(f"ladder: {variation.name} left out, all loops are of one group")
            continue
        steps = QUICK_STEPS if quick else range(len(variation.strengths))
        log(f"ladder: {variation.name}, {len(steps)} strengths on {len(loops)} loops")
        for step in steps:
            matrix = _rung(loops, donors, variation, step, encoder, options, out_dir, seed)
            for name, detectors in models.items():
                win = _wins(_scores(detectors, matrix), base[name])
                wins.setdefault((name, step), []).append(win)
                rows.append(
                    {
                        "variation": variation.name,
                        "unit": variation.unit,
                        "step": step,
                        "strength": f"{variation.strengths[step]:g}",
                        "detector": name,
                        **_auroc([win], weights),
                        "share_raised": float(np.mean(np.diag(win))),
                        "n_loops": len(loops),
                        "n_seeds": len(detectors),
                    }
                )
    result = {
        "rows": rows,
        "tables": [_by_strength(wins, weights, list(models)), _by_variation(rows, list(models))],
    }
    write_json(out_dir / "ladder.json", result, allow_nan=False)
    try:
        from loopjax.report.figures import ladder
    except ImportError:
        raise UserError(
            "the ladder's figure needs matplotlib: pip install 'loopjax[report]'"
        ) from None
    ladder(rows, out_dir / "figures" / "ladder.svg")
    return result


def _read_loops(
    table: pa.Table, encoder: Any, options: EmbedConfig | None, at_most: int, seed: int
) -> list[_Loop]:
    ids = table["id"].to_pylist()
    if len(ids) < MIN_LOOPS:
        raise UserError(
            f"the ladder needs at least {MIN_LOOPS} held-out normal loops, there are {len(ids)}: "
            "lower split.train_fraction"
        )
    # Chosen by id, so that a larger corpus keeps most of its rungs' loops.
    digest = [hashlib.sha256(f"{seed}:{row_id}".encode()).digest() for row_id in ids]
    chosen = sorted(range(len(ids)), key=digest.__getitem__)[:at_most]
    paths = table["path_bytes"].to_pylist()
    names = [Path(p.decode("utf-8", "surrogateescape")) for p in paths]
    groups = table["group"].to_pylist() if "group" in table.column_names else [""] * len(ids)
    if len(set(groups)) < 2:  # one folder: bass_001.ogg and guitar_001.ogg tell their family
        groups = [re.match(r"[^\W\d_]*", name.stem)[0].lower() for name in names]  # pyright: ignore
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
    loops: Sequence[_Loop], arrays: Sequence[np.ndarray], encoder: Any, options: EmbedConfig | None
) -> np.ndarray:
    matrix = np.empty((len(loops), encoder.embedding_dim), np.float32)
    for rate_hz in sorted({loop.rate_hz for loop in loops}):
        own = [i for i, loop in enumerate(loops) if loop.rate_hz == rate_hz]
        matrix[own] = embed_arrays([arrays[i] for i in own], encoder, rate_hz, options)
    return matrix


def _rung(
    loops: Sequence[_Loop],
    donors: Sequence[np.ndarray] | None,
    variation: Variation,
    step: int,
    encoder: Any,
    options: EmbedConfig | None,
    out_dir: Path,
    seed: int,
) -> np.ndarray:
    """Embeddings [N, D] of all loops at one strength, from the cache if they are there."""
    strength = variation.strengths[step]
    identity = {
        "format": FORMAT,
        "weights": encoder.weights_sha256,
        "preprocessing": encoder.preprocessing,
        "precision": getattr(encoder, "precision", "fp32"),
        "loops": [loop.id for loop in loops],
        "variation": variation.name,
        "strength": strength,
        "seed": seed,
        "audiomentations": importlib.metadata.version("audiomentations"),
    }
    key = hashlib.sha256(json.dumps(identity, sort_keys=True, default=str).encode()).hexdigest()
    name = variation.name.replace(" ", "-")
    path = out_dir / "ladder" / f"{name}-{step}-{key[:16]}.npy"
    if path.is_file():
        cached = np.load(path, allow_pickle=False)
        if cached.shape == (len(loops), encoder.embedding_dim):
            return cached
    index = list(VARIATIONS).index(variation.name)
    arrays = [
        vary(
            variation,
            loop.samples,
            loop.rate_hz,
            strength,
            # Not the step: places and noise stay, only the strength changes from rung to rung.
            (seed, index, int(hashlib.sha256(loop.id.encode()).hexdigest()[:8], 16)),
            donors[i] if donors is not None else None,
        )
        for i, loop in enumerate(loops)
    ]
    matrix = _embed(loops, arrays, encoder, options)
    write_atomically(path, lambda temporary: _save(temporary, matrix))
    return matrix


def _save(path: Path, matrix: np.ndarray) -> None:
    with path.open("wb") as file:  # given a name, NumPy would append ".npy"
        np.save(file, matrix)


def _scores(detectors: Sequence[Any], matrix: np.ndarray) -> np.ndarray:
    """[seeds, N]."""
    return np.stack([detector.decision_function(matrix) for detector in detectors])


def _wins(varied: np.ndarray, original: np.ndarray) -> np.ndarray:
    """[N, N]: how often copy i scores above original j, ties half, mean over seeds."""
    above = varied[:, :, None] > original[:, None, :]
    ties = varied[:, :, None] == original[:, None, :]
    return (above + 0.5 * ties).mean(axis=0)


def _auroc(wins: Sequence[np.ndarray], weights: np.ndarray) -> dict[str, float]:
    """AUROC (mean over several win matrices) and its interval when whole loops are resampled."""
    win = np.mean(wins, axis=0)
    n = len(win)
    samples = np.einsum("bi,ij,bj->b", weights, win, weights, optimize=True) / n**2
    low, high = np.quantile(samples, [0.025, 0.975])
    return {"auroc": float(win.mean()), "auroc_low": float(low), "auroc_high": float(high)}


def _by_strength(
    wins: Mapping[tuple[str, int], list[np.ndarray]], weights: np.ndarray, names: Sequence[str]
) -> dict[str, Any]:
    steps = sorted({step for _, step in wins})
    weak, strong = steps[: len(steps) // 2], steps[-(len(steps) // 2) :]
    rows = []
    for name in names:
        row: dict[str, Any] = {"detector": name}
        for step in steps:
            row[f"strength {step + 1}"] = _auroc(wins[name, step], weights)["auroc"]
        for label, part in (("weaker_half", weak), ("stronger_half", strong)):
            pooled = _auroc([win for step in part for win in wins[name, step]], weights)
            row |= {label: pooled["auroc"], f"{label}_low": pooled["auroc_low"]}
            row[f"{label}_high"] = pooled["auroc_high"]
        rows.append(row)
    return {
        "title": "Variation ladder by strength",
        "note": "AUROC of varied copies of held-out normal loops against the originals, mean over "
        "the variations, from the weakest strength to the strongest; 95 % intervals over loops.",
        "rows": rows,
    }


def _by_variation(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> dict[str, Any]:
    variations = list(dict.fromkeys(row["variation"] for row in rows))
    table = []
    for variation in variations:
        own = [row for row in rows if row["variation"] == variation]
        first, last = own[0], own[-1]
        line: dict[str, Any] = {
            "variation": variation,
            "from": f"{first['strength']} {first['unit']}",
            "to": f"{last['strength']} {last['unit']}",
        }
        for name in names:
            line[name] = float(np.mean([row["auroc"] for row in own if row["detector"] == name]))
        table.append(line)
    return {
        "title": "Variation ladder by variation",
        "note": "AUROC, mean over the strengths.",
        "rows": table,
    }
