"""Single strokes of drum kits, in the shards that `scripts.nano.pretrain` reads.

    python -m scripts.nano.hits -o HITS --n 2000 --seed 61

`scripts.render` plays drum kits in patterns; sample libraries hold their strokes one by one. Each
stroke is labeled by its drum, whatever the kit. Needs the Debian packages fluidsynth and
fluid-soundfont-gm.
"""

import argparse
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from loopjax.io import write_atomically
from scripts.render.midi import SAMPLE_RATE_HZ, note_on, render_segments, setup
from scripts.render.one_shots import DRUMS, KITS, SILENT_DB

SHARD_HITS = 250
LENGTH_S = 2
NOTES = {
    "kick": (35, 36), "side stick": (37,), "snare": (38, 40), "clap": (39,),
    "low tom": (41, 43), "middle tom": (45, 47), "high tom": (48, 50), "closed hat": (42, 44),
    "open hat": (46,), "crash": (49, 57), "ride": (51, 59), "china": (52,), "bell": (53,),
    "tambourine": (54,), "splash": (55,), "cowbell": (56,), "vibraslap": (58,), "bongo": (60, 61),
    "conga": (62, 63, 64), "timbale": (65, 66), "agogo": (67, 68), "cabasa": (69,),
    "maracas": (70,), "whistle": (71, 72), "guiro": (73, 74), "claves": (75,),
    "wood block": (76, 77), "cuica": (78, 79), "triangle": (80, 81),
}  # fmt: skip


def write_shard(folder: Path, number: int, seed: int, n: int) -> None:
    """Writes `shard-NNNNN.npy` (int16, all strokes end to end) and then its labels."""
    rng = np.random.default_rng([seed, number])
    names, segments = list(NOTES), []
    chosen = [names[i] for i in rng.integers(len(names), size=n)]
    for name in chosen:
        note = int(rng.choice(NOTES[name]))
        events = [(0, message) for message in setup(DRUMS, int(rng.choice(KITS)))]
        events.append((0, note_on(DRUMS, note, int(rng.integers(60, 127)))))
        segments.append((events, LENGTH_S * SAMPLE_RATE_HZ))
    rows, samples, offset = [], [], 0
    for name, sound in zip(chosen, render_segments(segments), strict=True):
        peak = float(np.abs(sound).max())
        if peak == 0.0:
            continue  # some kits lack some notes
        loud = np.flatnonzero(np.abs(sound) > peak * 10 ** (SILENT_DB / 20))
        hit = sound[: loud[-1] + 1] / peak * rng.uniform(0.3, 0.95)
        samples.append(np.round(32767 * hit).astype(np.int16))
        label = {"program_name": name, "family": "drums", "key": "none", "pattern": "one_shot"}
        place = {"offset_samples": offset, "length_samples": len(hit)}
        rows.append(label | place | {"tempo_bpm": 120.0, "degradation": "none"})
        offset += len(hit)
    np.save(folder / f"shard-{number:05d}.npy", np.concatenate(samples))
    table = pa.Table.from_pylist(rows)
    write_atomically(
        folder / f"shard-{number:05d}.parquet", lambda path: pq.write_table(table, path)
    )


def main() -> None:
    """Writes the shards."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--n", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    for number in range(-(-args.n // SHARD_HITS)):
        write_shard(args.out, number, args.seed, min(SHARD_HITS, args.n - number * SHARD_HITS))


if __name__ == "__main__":
    main()
