"""The bundled demo corpus: clean bass and guitar loops, and about a quarter planted anomalies."""

import csv
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soxr

from .loops import RenderedLoop, render
from .midi import SAMPLE_RATE_HZ
from .ogg import write_ogg
from .plans import DEGRADATIONS, LoopPlan
from .programs import KEY_NAMES

SEED = 2505
RATE_HZ = 32000
N_NORMAL = 115
_QUALITY = 0.5
# Every loop has a faint hiss, as recordings do: digital silence then means a dropout.
_HISS_DB = -58.0
_KEYS = tuple(KEY_NAMES.index(k) for k in ("C", "D", "E", "G", "A", "B"))
# family -> (programs, patterns) of the normal loops.
_NORMAL = {
    "bass": ((33, 34), ("root_eighths", "walking", "riff", "root_fifth")),
    "guitar": ((25, 27), ("strum", "fingerpick", "arpeggio", "riff")),
}
_DURATIONS_S = (1.5, 5.5)
_PIANO, _ORGAN, _VIBRAPHONE, _STRINGS, _TRUMPET, _SAX, _FLUTE = 0, 16, 11, 48, 56, 65, 73


class _Planted(NamedTuple):
    """An anomaly: what is done, how much, to a loop of which family and pattern, by whom."""

    degradation: str
    strength: float
    family: str
    pattern: str
    intruder: tuple[str, int] | None = None


_PLANTED = (
    _Planted("other_instrument", 1.0, "bass", "walking", ("keys", _PIANO)),
    _Planted("other_instrument", 1.0, "bass", "root_fifth", ("reed", _SAX)),
    _Planted("other_instrument", 1.0, "guitar", "arpeggio", ("organ", _ORGAN)),
    _Planted("other_instrument", 1.0, "guitar", "riff", ("mallets", _VIBRAPHONE)),
    _Planted("other_instrument", 1.0, "guitar", "strum", ("ensemble", _STRINGS)),
    _Planted("other_instrument", 0.6, "bass", "root_eighths", ("brass", _TRUMPET)),
    _Planted("other_instrument", 0.5, "guitar", "fingerpick", ("pipe", _FLUTE)),
    _Planted("other_instrument", 0.4, "bass", "riff", ("ensemble", _STRINGS)),
    _Planted("detuned", 100.0, "guitar", "strum"),
    _Planted("detuned", 200.0, "bass", "root_eighths"),
    _Planted("varispeed", -600.0, "guitar", "fingerpick"),
    _Planted("varispeed", 900.0, "guitar", "strum"),
    _Planted("varispeed", 1200.0, "bass", "walking"),
    _Planted("clipping", 12.0, "bass", "riff"),
    _Planted("clipping", 16.0, "guitar", "strum"),
    _Planted("clipping", 22.0, "bass", "root_fifth"),
    _Planted("clipping", 28.0, "guitar", "arpeggio"),
    _Planted("clipping", 34.0, "guitar", "riff"),
    _Planted("noise", 18.0, "guitar", "riff"),
    _Planted("noise", 12.0, "bass", "root_eighths"),
    _Planted("noise", 6.0, "guitar", "fingerpick"),
    _Planted("noise", 2.0, "bass", "walking"),
    _Planted("noise", -3.0, "bass", "root_fifth"),
    _Planted("off_grid", 70.0, "guitar", "fingerpick"),
    _Planted("off_grid", 110.0, "bass", "root_eighths"),
    _Planted("off_grid", 160.0, "guitar", "strum"),
    _Planted("dropout", 0.2, "bass", "root_eighths"),
    _Planted("dropout", 0.35, "guitar", "strum"),
    _Planted("dropout", 0.5, "bass", "walking"),
    _Planted("dropout", 0.65, "guitar", "arpeggio"),
    _Planted("silence", 0.8, "bass", "riff"),
    _Planted("silence", 0.94, "guitar", "riff"),
    _Planted("reversed", 1.0, "guitar", "fingerpick"),
    _Planted("reversed", 1.0, "guitar", "strum"),
    _Planted("reversed", 1.0, "bass", "root_fifth"),
)
_KIND_NAMES = {"detuned": "wrong_tuning", "varispeed": "wrong_tuning", "dropout": "dropouts"}


def _clean_plan(index: int, family: str) -> LoopPlan:
    """Draw one clean loop of a family, random within the normal range."""
    rng = np.random.default_rng([SEED, index])
    programs, patterns = _NORMAL[family]
    while True:
        tempo, bars = float(rng.integers(84, 133)), int(rng.choice([1, 2]))
        duration_s = bars * 4 * 60 / tempo
        if _DURATIONS_S[0] <= duration_s <= _DURATIONS_S[1]:
            break
    return LoopPlan(
        index=index,
        seed=SEED,
        family=family,
        program=int(rng.choice(programs)),
        key=int(rng.choice(_KEYS)),
        mode=str(rng.choice(["major", "minor"])),
        tempo_bpm=tempo,
        beats_per_bar=4,
        bars=bars,
        pattern=str(rng.choice(patterns)),
        swing=0.0,
        articulation=str(rng.choice(["normal", "normal", "legato"])),
        velocity=int(rng.integers(84, 106)),
        jitter_ms=2.0,
        duration_s=duration_s,
        peak=round(10 ** (float(rng.uniform(-9, -4)) / 20), 4),
        effects=({"room_s": 0.25} if rng.random() < 0.5 else {}) | {"noise_floor_db": _HISS_DB},
    )


def demo_plans() -> list[LoopPlan]:
    """Return the plans of the corpus: normal loops first, then the planted anomalies."""
    plans = [_clean_plan(i, ("bass", "guitar")[i % 2]) for i in range(N_NORMAL)]
    for i, planted in enumerate(_PLANTED, start=N_NORMAL):
        plans.append(replace(_clean_plan(i, planted.family), **planted._asdict()))
    return plans


def _row(name: str, loop: RenderedLoop) -> dict[str, object]:
    plan = loop.plan
    degraded = plan.degradation != "none"
    return {
        "file": name,
        "family": plan.family,
        "program": plan.program,
        "key": plan.key_name,
        "mode": plan.mode,
        "tempo_bpm": int(plan.tempo_bpm),
        "bars": plan.bars,
        "pattern": plan.pattern,
        "duration_s": round(len(loop.samples) / SAMPLE_RATE_HZ, 3),
        "is_anomaly": int(degraded),
        "anomaly_kind": _KIND_NAMES.get(plan.degradation, plan.degradation),
        "strength": plan.strength if degraded else "",
        "strength_unit": DEGRADATIONS[plan.degradation][2] if degraded else "",
        "detail": loop.detail,
    }


def write_demo(folder: Path) -> int:
    """Render the corpus into a folder with labels.csv; return the number of loops.

    Numbers are dealt at random within a family, so that a name tells nothing about a loop.
    """
    loops = render(demo_plans())
    order = np.random.default_rng(SEED).permutation(len(loops))
    for old in folder.glob("*_[0-9][0-9][0-9].ogg"):
        old.unlink()
    rows, counts = [], {"bass": 0, "guitar": 0}
    for i in order:
        loop = loops[int(i)]
        counts[loop.plan.family] += 1
        name = f"{loop.plan.family}_{counts[loop.plan.family]:03d}.ogg"
        samples = soxr.resample(loop.samples / np.float32(32768), SAMPLE_RATE_HZ, RATE_HZ)
        write_ogg(folder / name, samples, RATE_HZ, serial=len(rows), quality=_QUALITY)
        rows.append(_row(name, loop))
    rows.sort(key=lambda row: str(row["file"]))
    with (folder / "labels.csv").open("w", newline="") as handle:
        writer = csv.DictWriter(handle, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return len(rows)
