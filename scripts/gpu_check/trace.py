"""Section trace: where a step's time goes, by the profiler, and which bytes it moves, by ncu.

The bytes stand beside those that the compiler's text promises (`scripts/aot`).
"""

import csv
import gzip
import json
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from loopjax.encoders.encoder import GPU_COMPILER_OPTIONS
from scripts.aot.hlo import Module
from scripts.bench.measure import emit, rounded
from scripts.gpu_check.common import arguments, configuration, encoder

STEPS = 3
LISTED = 60  # kernels


def program(rehearse: bool) -> tuple[Any, Callable[[], Any], str, int]:
    """The encoder's compiled program, a step of it, its name and the batch."""
    size, precision, batch = ("nano", "bf16", 2) if rehearse else ("tiny", "bf16-fused", 128)
    views = configuration(size).views
    noise = np.random.default_rng(0).normal(-40.0, 15.0, (batch, views, 1001, 64))
    mel = jax.device_put(noise.astype(np.float32))
    model = encoder(size, precision)
    options = GPU_COMPILER_OPTIONS
    compiled = jax.jit(model.apply, compiler_options=options).lower(model.params, mel, None)
    compiled = compiled.compile()
    return (
        compiled,
        lambda: compiled(model.params, mel, None),
        f"{size} {precision}, batch {batch}",
        batch,
    )


def microseconds(folder: Path) -> Counter[str]:
    """Device time by kernel of a profile; on a CPU, time of the host's threads."""
    (path,) = folder.rglob("*.trace.json.gz")
    events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    tracks = {e["pid"]: e["args"]["name"] for e in events if e.get("name") == "process_name"}
    wanted = {pid for pid, name in tracks.items() if "/device:" in name} or set(tracks)
    found: Counter[str] = Counter()
    for event in events:
        # Names of Python frames begin with a dollar.
        if event.get("ph") == "X" and event["pid"] in wanted and event["name"][0] != "$":
            found[event["name"]] += event["dur"]
    return found


def profile(step: Callable[[], Any], name: str) -> None:
    """One row: milliseconds in kernels, and the longest of them."""
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(STEPS):
                jax.block_until_ready(step())
        taken = microseconds(Path(folder))
    longest = {kernel: rounded(us / STEPS) for kernel, us in taken.most_common(LISTED)}
    total = sum(taken.values()) / STEPS / 1000
    emit("gpu_check", f"{name}, in kernels", ours=total, unit="ms", microseconds=longest)


def counted_bytes(name: str, batch: int, promised: float) -> None:
    """One row: bytes to and from memory per clip as ncu counts them, in a process of its own."""
    command = ["ncu", "--csv", "--metrics", "dram__bytes.sum", "--print-units", "base"]
    command += [sys.executable, "-m", "scripts.gpu_check.trace", "--once"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith('"')]
    if done.returncode or len(lines) < 2:
        sys.stderr.write(done.stdout[-2000:] + done.stderr[-2000:])
        raise SystemExit("ncu counted nothing")
    rows = list(csv.DictReader(lines))
    total = sum(float(row["Metric Value"].replace(",", "")) for row in rows)
    emit(
        "gpu_check",
        f"{name}, memory traffic",
        ours=total / batch / 1e6,
        unit="MB/clip",
        peer=promised,
        peer_name="sums over the compiled program",
        higher_is_better=False,
        kernels=len(rows),
    )


def main() -> None:
    """Prints the rows; with --once only runs the step, from the kept program."""
    once = "--once" in sys.argv
    sys.argv = [argument for argument in sys.argv if argument != "--once"]
    rehearse = arguments(__doc__).rehearse
    compiled, step, name, batch = program(rehearse)
    jax.block_until_ready(step())
    if once:
        return
    profile(step, name)
    kernels = Module(compiled.as_text()).kernels()
    promised = sum(moved for _, moved in kernels) / batch / 1e6
    if shutil.which("ncu") and not rehearse:
        counted_bytes(name, batch, promised)
    else:
        emit("gpu_check", f"{name}, compiled program", ours=promised, unit="MB/clip")


if __name__ == "__main__":
    main()
