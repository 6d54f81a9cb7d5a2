"""Resident memory of an embedding run against the size of the corpus.

    python scripts/bench/memory.py --sizes 1000 5000 20000

Loops of mixed length (50 ms to 12 s) are written once, all different; each size runs in a fresh
process. The default encoder has no network, because the host side is what is measured.
One line per size: the peak against that of the smallest corpus, with the medians of the run's four
quarters beside it.
"""

import json
import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import numpy as np
from measure import REPOSITORY, arguments, emit

RATE_HZ = 16_000
PAGE = os.sysconf("SC_PAGE_SIZE")


def write_corpus(folder: Path, n_files: int) -> None:
    """Writes 16-bit noise of mixed length; about 50 kB per file."""
    import soundfile

    rng = np.random.default_rng(0)
    lengths_s = np.concatenate([rng.uniform(0.05, 4.0, n_files), [12.0]])
    noise = rng.integers(-8000, 8000, 13 * RATE_HZ).astype(np.int16)
    for i in range(n_files):
        seconds = 12.0 if i % 500 == 499 else lengths_s[i]
        wave = np.roll(noise, i * 7)[: max(1, int(seconds * RATE_HZ))]
        path = folder / f"{i // 1000:03d}" / f"{i:06d}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, wave, RATE_HZ)


def measure(listing: str, encoder_name: str) -> None:
    """Embeds the listed files in this process and prints samples of its memory."""
    from loopjax.config import EmbedConfig
    from loopjax.embedding.chain import embed_corpus
    from loopjax.encoders.load import load_encoder

    encoder = load_encoder(encoder_name)
    samples: list[float] = []
    stop = threading.Event()

    def watch() -> None:
        while not stop.wait(0.5):
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            samples.append(pages * PAGE / 2**20)

    watcher = threading.Thread(target=watch)
    watcher.start()
    with tempfile.TemporaryDirectory() as out:
        options = EmbedConfig(workers=1)
        summary = embed_corpus([listing], encoder, out, options, progress=False)
    stop.set()
    watcher.join()
    quarters = [round(float(np.median(part))) for part in np.array_split(samples, 4)]
    record = {"peak_mib": peak_mib(), "quarters_mib": quarters}
    print(json.dumps(record | {"files_per_s": round(summary.files_per_s, 1)}))


def peak_mib() -> float:
    """The most memory this process ever had; Linux only."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = [line for line in lines if line.startswith("VmHWM")]
    return int(line.split()[1]) / 1024


def main() -> None:
    """Runs every size in its own process."""
    parser = arguments(__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1000, 5000, 20_000])
    parser.add_argument("--encoder", default="log-mel-statistics", help="a name or a folder")
    parser.add_argument("--measure", metavar="LIST", help="of files; used by the script itself")
    args = parser.parse_args()
    if args.measure:
        measure(args.measure, args.encoder)
        return
    with tempfile.TemporaryDirectory() as temporary:
        corpus = Path(temporary) / "corpus"
        write_corpus(corpus, max(args.sizes))
        files = sorted(corpus.rglob("*.wav"))
        smallest: float | None = None
        for size in sorted(args.sizes):
            listing = Path(temporary) / f"{size}.txt"
            listing.write_text("\n".join(map(str, files[:size])))
            command = [sys.executable, __file__, "--measure", str(listing)]
            done = subprocess.run(
                [*command, "--encoder", args.encoder],
                stdout=subprocess.PIPE,
                text=True,
                check=True,
                env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
            )
            record = json.loads(done.stdout.splitlines()[-1])
            peak = record.pop("peak_mib")
            emit(
                "memory",
                f"peak resident memory, {size} files, encoder {args.encoder}",
                ours=peak,
                unit="MiB",
                peer=smallest,
                peer_name=None if smallest is None else f"{min(args.sizes)} files",
                higher_is_better=False,
                target="within 10 % of the smallest corpus",
                **record,
            )
            smallest = smallest or peak


if __name__ == "__main__":
    main()
