"""Cost of feeding: milliseconds of this process's CPU per loop, through the feeder into batches.

    python scripts/bench/packed.py --loops 400

Packed shards of four-second stereo loops (int16 mono at 44.1 kHz), from the page cache, checksums
included: cores / seconds = loops per second. The same loops as WAV files, which other processes
decode and this one copies into batches, in as many threads as there are decoders. Then loops of 64
samples, as files and packed: what is left is Python's own work, which the threads of one process
cannot share, and its inverse the most that one process feeds.
"""

import tempfile
import time
from itertools import chain
from pathlib import Path

import numpy as np
import soundfile
from decoding import write_loops
from measure import arguments, emit

from loopjax.audio.batching import make_buckets
from loopjax.audio.decode import DecodeOptions
from loopjax.audio.feeding import Feeder
from loopjax.audio.pack import pack
from loopjax.audio.sources.source import open_source
from loopjax.config import EmbedConfig

CORES = 16
PASSES = 3  # over the corpus; the first is not counted
FRONT_END_ROWS = 16  # of a batch, as on an accelerator
OPTIONS = DecodeOptions(device_rates_hz=(44_100, 48_000))


def feed_ms(source: Path) -> tuple[float, float]:
    """Milliseconds of CPU and by the clock per loop, once batches lie in memory of earlier ones."""
    corpus, config = open_source([source]), EmbedConfig()
    buckets = make_buckets(config.buckets_s, config.max_duration_s, FRONT_END_ROWS)
    loops = chain.from_iterable(corpus.loops() for _ in range(PASSES))
    feeder = Feeder(loops, [corpus.decoder(OPTIONS, 60.0)], buckets, print)
    fed = []  # loops so far, and the two clocks
    for batch in feeder:
        n_loops = len(batch.rows) + (fed[-1][0] if fed else 0)
        fed.append((n_loops, time.process_time(), time.perf_counter()))
        batch.recycle(batch.samples)
    feeder.close()
    first, last = fed[len(fed) // PASSES], fed[-1]
    n_loops, cpu_s, wall_s = np.subtract(last, first).tolist()
    return 1000 * cpu_s / n_loops, 1000 * wall_s / n_loops


def main() -> None:
    """Writes, packs and feeds."""
    parser = arguments(__doc__)
    parser.add_argument("--loops", type=int, default=400)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_loops(folder / "files", args.loops, "wav", "PCM_16")
        (folder / "tiny").mkdir()
        rng = np.random.default_rng(0)
        for i in range(5 * args.loops):
            noise = rng.integers(-9, 9, 64).astype(np.int16)
            soundfile.write(folder / "tiny" / f"{i:06d}.wav", noise, 44_100)
        for name in ("files", "tiny"):
            pack(open_source([folder / name]), folder / f"{name}-packed", OPTIONS, 1, 256)
        cpu_ms, wall_ms = feed_ms(folder / "files-packed")
        emit(
            "packed",
            "one 4-s loop of a packed shard",
            ours=cpu_ms,
            unit="ms of one core",
            target=f"20,000 a second on {CORES} cores: {CORES / 20:g} ms",
            wall_ms=round(wall_ms, 3),
            loops_per_s_on_16_cores=round(CORES * 1000 / cpu_ms),
        )
        cpu_ms, wall_ms = feed_ms(folder / "files")
        emit(
            "packed",
            "one 4-s WAV file in the feeding process, its samples' copy included",
            ours=cpu_ms,
            unit="ms of one core",
            target=None,
            wall_ms=round(wall_ms, 3),
        )
        for name, what in (("tiny", "a WAV file"), ("tiny-packed", "a packed shard")):
            cpu_ms, _ = feed_ms(folder / name)
            emit(
                "packed",
                f"Python's part of {what} in the feeding process",
                ours=cpu_ms,
                unit="ms of one core",
                target="0.1 ms",
                loops_per_s_of_one_process=round(1000 / cpu_ms),
            )


if __name__ == "__main__":
    main()
