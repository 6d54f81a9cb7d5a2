"""Section end to end: files in memory to embeddings on disk, by format and with two sample rates.

Files lie in /dev/shm, so that no disk is measured. Waiting is the part of a run in which the device
had nothing to do.
"""

import os
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import soundfile

from scripts.bench.measure import emit, rounded, seconds
from scripts.gpu_check.common import arguments, earlier, loops

CORPORA = {"wav": 3000, "flac": 1000, "mp3": 1000, "wav and flac, two rates": 1000}
LOOP_S = 4.0


def write_loop(path: Path, number: int, rate_hz: int) -> None:
    """A stereo loop that no other file repeats."""
    (mono,) = loops(1, LOOP_S, rate_hz)
    stereo = np.stack([np.roll(mono, 7 * number), np.roll(mono, 7 * number + 30)], axis=1)
    subtype = None if path.suffix == ".mp3" else "PCM_16"
    soundfile.write(path, stereo, rate_hz, subtype=subtype)


def write_corpus(folder: Path, kind: str, count: int) -> None:
    """Fills a folder, on all cores."""
    folder.mkdir()
    mixed = "rates" in kind
    suffixes = [("flac" if n % 2 else "wav") if mixed else kind for n in range(count)]
    rates_hz = [48_000 if mixed and n % 3 == 0 else 44_100 for n in range(count)]
    paths = [folder / f"{n:05d}.{suffix}" for n, suffix in enumerate(suffixes)]
    with ProcessPoolExecutor(os.cpu_count()) as processes:
        list(processes.map(write_loop, paths, range(count), rates_hz, chunksize=8))


def main() -> None:
    """Prints a row per corpus."""
    args = arguments(__doc__)
    size, precision = ("nano", "bf16") if args.rehearse else ("tiny", "bf16-fused")
    shared = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shared if shared.is_dir() else None) as temporary:
        root = Path(temporary)
        for kind, count in CORPORA.items():
            write_corpus(root / kind, kind, count // 100 if args.rehearse else count)

        from loopjax.config import EmbedConfig
        from loopjax.embedding.chain import embed_corpus
        from scripts.gpu_check.common import encoder

        model = encoder(size, precision)
        alone = earlier(args.rows).get(f"{size} {precision}, batch {4 if args.rehearse else 128}")
        for kind in CORPORA:
            waits = []

            def run(store: Path, kind: str = kind, waits: list[float] = waits) -> None:
                summary = embed_corpus([root / kind], model, store, EmbedConfig(), progress=False)
                waits.append(summary.wait_fraction)

            run(root / f"{kind} compiled")
            taken = seconds(lambda run=run, kind=kind: run(root / f"{kind} timed"))
            count = len(list((root / kind).iterdir()))
            emit(
                "gpu_check",
                f"{kind} to embeddings, {size} {precision}",
                ours=count / taken,
                unit="files/s",
                peer=alone,
                peer_name=None if alone is None else "encoder alone",
                target=">= 80 % of the encoder or of what the host decodes",
                wait_fraction=rounded(waits[-1]),
                busy_fraction=rounded(1.0 - waits[-1]),
            )


if __name__ == "__main__":
    main()
