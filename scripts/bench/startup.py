"""How soon the command line answers, and what compiling costs with and without its cache.

    python scripts/bench/startup.py --rounds 5

"First embedding" is `loopjax embed` on one WAV file in a fresh process, imports, weights and
compilation included: cold with an empty cache of compiled programs, warm with the one that the cold
run left. "Programs" is what the first call of front end and encoder costs beyond the second.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from measure import REPOSITORY, arguments, emit, rounded, seconds


def run(command: list[str], cache: Path) -> str:
    """Runs loopjax's interpreter in a fresh process; its output. A failure ends the program."""
    environment = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    environment |= {"XDG_CACHE_HOME": str(cache), "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(
        [sys.executable, *command], env=environment, capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(f"{command} failed:\n{done.stderr[-2000:]}")
    return done.stdout


def first_calls(size: str) -> None:
    """In a fresh process: seconds beyond the second call, front end and encoder, as JSON."""
    from loopjax.encoders.encoder import HtsatEncoder, random_weights
    from loopjax.htsat.frontend import LogMelConfig
    from loopjax.htsat.model import HtsatConfig
    from loopjax.parallel import enable_compilation_cache

    enable_compilation_cache()
    config = {"nano": HtsatConfig.nano, "tiny": HtsatConfig.tiny}[size]()
    encoder = HtsatEncoder(config, LogMelConfig(), random_weights(config), encoder_id=size)
    samples, lengths = np.zeros((4, 4 * 48_000), np.float32), np.full(4, 4 * 48_000, np.int32)

    def whole() -> None:
        np.asarray(encoder.encode(*encoder.front_end(samples, lengths)))

    first, second = seconds(whole), seconds(whole)
    print(json.dumps(first - second))


def write_loop(folder: Path) -> Path:
    """A two-second WAV file."""
    import soundfile

    path = folder / "loop.wav"
    noise = np.random.default_rng(0).normal(0.0, 0.1, (2 * 44_100, 2))
    soundfile.write(path, noise, 44_100, subtype="PCM_16")
    return path


def main() -> None:
    """Starts fresh processes and prints one line per question."""
    parser = arguments(__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--first-calls", metavar="SIZE", help="the fresh process that compiles")
    args = parser.parse_args()
    if args.first_calls:
        first_calls(args.first_calls)
        return
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        loop = write_loop(root)
        help_s = [
            seconds(lambda: run(["-m", "loopjax.cli", "--help"], root / "cache"))
            for _ in range(args.rounds)
        ]
        middle = statistics.median(help_s)
        spread = rounded((max(help_s) - min(help_s)) / middle)
        emit("startup", "loopjax --help", ours=middle, unit="s", target="< 0.5 s", spread=spread)
        taken = []
        for number in range(args.rounds):
            command = ["-m", "loopjax.cli", "embed", str(loop), "-o", str(root / str(number))]
            taken.append(seconds(lambda command=command: run(command, root / "cache")))
        row, warm = "first embedding, warm cache", statistics.median(taken[1:])
        spread = rounded((max(taken[1:]) - min(taken[1:])) / warm)
        emit("startup", row, ours=warm, unit="s", target="< 10 s", spread=spread)
        emit("startup", "first embedding, cold cache", ours=taken[0], unit="s")
        for size in ("nano", "tiny"):
            command = [__file__, "--first-calls", size]
            cold, again = (json.loads(run(command, root / size)) for _ in range(2))
            emit("startup", f"programs of {size}, cold", ours=cold, unit="s")
            emit("startup", f"programs of {size}, warm", ours=max(again, 0.0), unit="s")


if __name__ == "__main__":
    main()
