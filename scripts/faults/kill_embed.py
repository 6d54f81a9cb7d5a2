"""Kills embedding runs at random times and checks that nothing is lost, doubled or changed.

    python -m scripts.faults.kill_embed [--files 500] [--kills 20] [--seed 0] [--encoder NAME]

A corpus of synthetic loops of mixed length is embedded once undisturbed and once with SIGKILL sent
to the whole process group at random moments (the same command is started again each time), then
completed. Every third kill comes at any time after the start, the others at any time after the run
has finished its first shard, so that most hit it at work. Prints one line per kill and a verdict;
exit status 1 if any promise is broken.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import soundfile

from loopjax.store.read import part_files, read_embeddings

RATE_HZ = 44_100
SHARD_ROWS = 16
LENGTHS_S = (0.2, 0.4, 0.7, 0.9, 1.6, 2.4, 3.5)


def write_corpus(folder: Path, n_files: int, seed: int) -> None:
    """Writes decaying tones with noise, all different."""
    rng = np.random.default_rng(seed)
    for i in range(n_files):
        t = np.arange(round(LENGTHS_S[i % len(LENGTHS_S)] * RATE_HZ)) / RATE_HZ
        pitch_hz = 55 * 2 ** rng.uniform(0, 4)
        wave = 0.4 * np.sin(2 * np.pi * pitch_hz * t) * np.exp(-2 * t)
        wave += 0.01 * rng.standard_normal(t.size)
        path = folder / f"group_{i % 10}" / f"loop_{i:05d}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, wave, RATE_HZ)


def start(corpus: Path, out: Path, encoder: str) -> subprocess.Popen:
    """Starts a run in its own process group."""
    return subprocess.Popen(
        [sys.executable, __file__, "--child", str(corpus), str(out), encoder],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )


def child(corpus: str, out: str, encoder: str) -> None:
    """One run: what `loopjax embed` does, with small shards so that every kill finds some."""
    from loopjax.config import EmbedConfig
    from loopjax.embedding.chain import embed_corpus
    from loopjax.encoders.load import load_encoder
    from loopjax.parallel import enable_compilation_cache

    enable_compilation_cache()
    options = EmbedConfig(encoder=encoder, shard_rows=SHARD_ROWS, workers=2)
    embed_corpus([corpus], load_encoder(encoder), out, options, progress=False)


def complete(corpus: Path, out: Path, encoder: str) -> float:
    """Runs to the end; returns seconds."""
    started = time.monotonic()
    process = start(corpus, out, encoder)
    _, errors = process.communicate()
    if process.returncode != 0:
        sys.exit(f"embed failed ({process.returncode}): {errors[-2000:]}")
    return time.monotonic() - started


def n_rows(out: Path) -> int:
    """Rows in finished shards."""
    return len(read_embeddings(out)) if part_files(out) else 0


def main() -> int:
    """Runs the trial."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--files", type=int, default=500)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--encoder", default="loopjax-nano")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(*args.child)
        return 0
    rng = random.Random(args.seed)
    with tempfile.TemporaryDirectory() as temporary:
        corpus, clean, killed = (Path(temporary) / name for name in ("corpus", "clean", "killed"))
        write_corpus(corpus, args.files, args.seed)
        undisturbed_s = complete(corpus, clean, args.encoder)
        print(f"undisturbed: {n_rows(clean)} rows in {undisturbed_s:.1f} s")
        for number in range(1, args.kills + 1):
            before = len(part_files(killed))
            process = start(corpus, killed, args.encoder)
            started = time.monotonic()
            if number % 3 == 0:
                time.sleep(rng.uniform(0.0, 0.5) * undisturbed_s)
            else:
                while process.poll() is None and len(part_files(killed)) == before:
                    time.sleep(0.005)
                time.sleep(rng.uniform(0.0, 0.5) * undisturbed_s * SHARD_ROWS / args.files)
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                state = f"SIGKILL after {time.monotonic() - started:5.1f} s"
            else:
                state = "had finished"
            _, errors = process.communicate()
            if process.returncode not in (0, -signal.SIGKILL):
                sys.exit(f"embed failed ({process.returncode}): {errors[-2000:]}")
            print(f"{number:3d}: {state}, {n_rows(killed):4d} rows safe", flush=True)
        complete(corpus, killed, args.encoder)
        return verdict(clean, killed)


def verdict(clean: Path, killed: Path) -> int:
    """Compares the two stores row by row."""
    expected, found = read_embeddings(clean), read_embeddings(killed)
    ids, wanted = found.table["id"].to_pylist(), expected.table["id"].to_pylist()
    duplicates = len(ids) - len(set(ids))
    missing = len(set(wanted) - set(ids))
    equal = ids == wanted and found.matrix.tobytes() == expected.matrix.tobytes()
    leftovers = len(list(killed.glob(".*.tmp")))
    print(
        f"after completion: {len(ids)} rows, {missing} missing, {duplicates} duplicates, "
        f"embeddings {'byte-equal' if equal else 'DIFFERENT'}, {leftovers} half-written files"
    )
    return 0 if equal and not duplicates and not missing and not leftovers else 1


if __name__ == "__main__":
    sys.exit(main())
