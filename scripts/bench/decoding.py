"""Cost of one loop on the host, by format: child process and parent, in milliseconds of CPU.

    python scripts/bench/decoding.py --loops 100

Four-second stereo loops at 44.1 kHz from the page cache, one decoder process, rows copied into a
batch array as the feeder does; beside it librosa, which most scripts load audio with, to mono at
the file's rate. CPU time is what counts for sizing a host: cores / seconds = loops per second; the
least of three passes, as neighbors that empty the caches add to it.
"""

import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import soundfile
from measure import arguments, emit, peer

from loopjax.audio.decode import DecodeOptions
from loopjax.audio.decoder import Reply
from loopjax.audio.feeding import MAX_REQUESTED
from loopjax.audio.loop import Loop
from loopjax.audio.process import DecoderProcess
from loopjax.audio.sources.files import scan

PASSES = 3
FORMATS = (("wav", "PCM_16"), ("wav", "PCM_24"), ("flac", "PCM_16"), ("mp3", None), ("ogg", None))


def write_loops(folder: Path, n_loops: int, extension: str, subtype: str | None) -> None:
    """Writes music-like loops: decaying partials and a little noise."""
    rng = np.random.default_rng(0)
    t = np.arange(4 * 44_100) / 44_100
    folder.mkdir()
    for i in range(n_loops):
        wave = sum(np.sin(2 * np.pi * 110 * k * t * rng.uniform(0.99, 1.01)) / k for k in (1, 2, 3))
        wave = 0.3 * wave * np.exp(-(t % 0.5) * 6) + 0.01 * rng.standard_normal(t.size)
        stereo = np.stack([wave, np.roll(wave, 30)], axis=1)
        soundfile.write(folder / f"{i:04d}.{extension}", stereo, 44_100, subtype=subtype)


def main() -> None:
    """Measures one format after the other."""
    parser = arguments(__doc__)
    parser.add_argument("--loops", type=int, default=100)
    args = parser.parse_args()
    options = DecodeOptions(device_rates_hz=(44_100, 48_000))
    row = np.zeros(4 * 48_000, np.float32)
    with tempfile.TemporaryDirectory() as temporary:
        for extension, subtype in FORMATS:
            folder = Path(temporary) / f"{extension}_{subtype}"
            write_loops(folder, args.loops, extension, subtype)
            loops = list(scan([folder]))
            process = DecoderProcess(options)
            process.decode(loops[0]).copy_to(row)  # starts the process
            child, parent, wall = min(
                (feed(process, loops, row) for _ in range(PASSES)), key=lambda taken: sum(taken[:2])
            )
            process.close()
            theirs_ms = librosa_ms([folder / f"{i:04d}.{extension}" for i in range(args.loops)])
            wall_ms, child_ms, parent_ms = (
                1000 * seconds / len(loops) for seconds in (wall, child, parent)
            )
            emit(
                "decoding",
                f"one 4-s stereo loop, {extension} {subtype or ''}".strip(),
                ours=child_ms + parent_ms,
                unit="ms of one core",
                peer=theirs_ms,
                peer_name="librosa",
                higher_is_better=False,
                target="1.4 ms, parent 0.1" if (extension, subtype) == FORMATS[0] else None,
                child_ms=round(child_ms, 2),
                parent_ms=round(parent_ms, 2),
                wall_ms=round(wall_ms, 2),
                files_per_s_on_16_cores=round(16_000 / (child_ms + parent_ms)),
            )


def feed(
    process: DecoderProcess, loops: Sequence[Loop], row: np.ndarray
) -> tuple[float, float, float]:
    """CPU seconds of the child and of this process for all loops, and seconds by the clock."""
    child_before = child_cpu_s(process)
    parent_before, started = time.process_time(), time.perf_counter()
    for start in range(0, len(loops), MAX_REQUESTED):
        for reply in process.decode_each(loops[start : start + MAX_REQUESTED]):
            assert isinstance(reply, Reply)
            reply.copy_to(row)
    wall = time.perf_counter() - started
    parent = time.process_time() - parent_before
    return child_cpu_s(process) - child_before, parent, wall


def librosa_ms(files: list[Path]) -> float:
    """CPU milliseconds per file of librosa.load."""
    librosa = peer("librosa")
    librosa.load(files[0], sr=None)  # imports its parts
    taken = []
    for _ in range(PASSES):
        started = time.process_time()
        for file in files:
            librosa.load(file, sr=None)
        taken.append(time.process_time() - started)
    return 1000 * min(taken) / len(files)


def child_cpu_s(process: DecoderProcess) -> float:
    """CPU seconds of the decoder process so far."""
    child = process._process
    assert child is not None
    fields = Path(f"/proc/{child.pid}/stat").read_text().rsplit(")", 1)[1].split()
    ticks = int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    main()
