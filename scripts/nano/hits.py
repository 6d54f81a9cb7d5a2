"""Single strokes of drum kits, in the shards that `scripts.nano.pretrain` reads.

    python -m scripts.nano.hits -o HITS --n 2000 --seed 61

`scripts.render` plays drum kits in patterns; sample libraries hold their strokes one by one. Each
stroke is labeled by its drum, whatever the kit. Needs the Debian packages fluidsynth and
fluid-soundfont-gm.
"""

import argparse
from pathlib import Path

import numpy as np

from scripts.render.midi import render_segments
from scripts.render.one_shots import KITS, audible, hit
from scripts.render.output import write_sounds

SHARD_HITS = 250
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
    """Writes `shard-NNNNN.npy` and its labels; strokes that a kit lacks are left out."""
    rng = np.random.default_rng([seed, number])
    drums = [list(NOTES)[i] for i in rng.integers(len(NOTES), size=n)]
    strokes = render_segments([hit(KITS, NOTES[drum])(rng) for drum in drums])
    sounds = []
    for drum, stroke in zip(drums, strokes, strict=True):
        if stroke.any():
            samples = audible(stroke) * rng.uniform(0.3, 0.95)
            samples = np.round(32767 * samples).astype(np.int16)
            label = {"program_name": drum, "family": "drums", "key": "none", "pattern": "one_shot"}
            label |= {"tempo_bpm": 120.0, "degradation": "none", "length_samples": len(samples)}
            sounds.append((samples, label))
    write_sounds(folder, number, sounds)


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
