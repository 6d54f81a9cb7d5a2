"""Cost of feeding packed shards: milliseconds of CPU per loop, all threads together.

    python scripts/bench/packed.py --loops 400

Four-second stereo loops, packed to int16 mono at 44.1 kHz, read through the feeder into batches as
`loopjax embed` does, from the page cache; checksums included. Cores / seconds = loops per second.
"""

import tempfile
import time
from pathlib import Path

from decoding import write_loops
from measure import arguments, emit

from loopjax.audio.batching import make_buckets
from loopjax.audio.decode import DecodeOptions
from loopjax.audio.feeding import Feeder
from loopjax.audio.pack import pack
from loopjax.audio.sources.source import open_source
from loopjax.config import EmbedConfig

CORES = 16


def main() -> None:
    """Packs, then feeds twice; the second time counts."""
    parser = arguments(__doc__)
    parser.add_argument("--loops", type=int, default=400)
    args = parser.parse_args()
    options = DecodeOptions(device_rates_hz=(44_100, 48_000))
    config = EmbedConfig()
    with tempfile.TemporaryDirectory() as temporary:
        files, shards = Path(temporary) / "files", Path(temporary) / "shards"
        write_loops(files, args.loops, "wav", "PCM_16")
        pack(open_source([files]), shards, options, 1, 128)
        corpus = open_source([shards])
        cpu_s = wall_s = 0.0
        for _ in range(2):
            buckets = make_buckets(config.buckets_s, config.max_duration_s, 64)
            feeder = Feeder(corpus.loops(), [corpus.decoder(options, 60.0)], buckets, print)
            cpu_s, wall_s = time.process_time(), time.perf_counter()
            for batch in feeder:
                batch.recycle(batch.samples)
            cpu_s, wall_s = time.process_time() - cpu_s, time.perf_counter() - wall_s
            feeder.close()
    cpu_ms = 1000 * cpu_s / args.loops
    emit(
        "packed",
        "one 4-s loop of a packed shard",
        ours=cpu_ms,
        unit="ms of one core",
        target=f"20,000 a second on {CORES} cores: {CORES / 20:g} ms",
        wall_ms=round(1000 * wall_s / args.loops, 3),
        loops_per_s_on_16_cores=round(CORES * 1000 / cpu_ms),
    )


if __name__ == "__main__":
    main()
