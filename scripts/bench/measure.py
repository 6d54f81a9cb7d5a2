"""What every benchmark shares: turns in one run, and one JSON line per result.

    from measure import emit, take_turns

    times = take_turns({"ours": ours, "theirs": theirs}, rounds=5)
    emit("mel", "log-mel", ours=n / times["ours"].median_s, peer=n / times["theirs"].median_s,
         unit="clips/s", peer_name="librosa")

Every round runs every contender once, so that a busy machine hurts all alike; the first call of
each, which compiles, is kept apart. `suite.py` collects the lines, `table.py` prints them.
"""

import argparse
import datetime
import importlib
import importlib.metadata
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY))  # the checkout, not an installed loopjax, is measured
VERSIONED = {
    "jax": "jax",
    "torch": "torch",
    "transformers": "transformers",
    "sklearn": "scikit-learn",
    "pyod": "pyod",
    "librosa": "librosa",
    "soxr": "soxr",
    "soundfile": "soundfile",
}


@dataclass(frozen=True)
class Times:
    """Seconds of one contender: its first call, and one call per round."""

    first_s: float
    seconds: tuple[float, ...]

    @property
    def median_s(self) -> float:
        """Median of the rounds."""
        return statistics.median(self.seconds)

    @property
    def spread(self) -> float:
        """(slowest - fastest) / median of the rounds."""
        return (max(self.seconds) - min(self.seconds)) / self.median_s

    @property
    def compile_s(self) -> float:
        """What the first call cost beyond an ordinary one."""
        return max(0.0, self.first_s - self.median_s)


def seconds(run: Callable[[], Any], clock: Callable[[], float] = time.perf_counter) -> float:
    """Seconds of one call by a clock; a JAX result is waited for."""
    started = clock()
    result = run()
    if "jax" in sys.modules:
        sys.modules["jax"].block_until_ready(result)
    return clock() - started


def take_turns(
    contenders: dict[str, Callable[[], Any]],
    rounds: int,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Times]:
    """Warms every contender up with one call, then lets them take turns.

    On one core `time.process_time` is the better clock: other processes do not disturb it.
    """
    first = {name: seconds(run, clock) for name, run in contenders.items()}
    taken: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, run in contenders.items():
            taken[name].append(seconds(run, clock))
    return {name: Times(first[name], tuple(values)) for name, values in taken.items()}


def emit(
    bench: str,
    row: str,
    *,
    ours: float,
    unit: str,
    peer: float | None = None,
    peer_name: str | None = None,
    higher_is_better: bool = True,
    target: str | None = None,
    **more: Any,
) -> None:
    """Prints one result as a JSON line.

    Args:
        bench: the script's name.
        row: what was measured, unique within the bench.
        ours: loopjax's figure.
        unit: of both figures.
        peer: the figure of `peer_name`, in the same unit; None where nothing is compared.
        peer_name: who it is.
        higher_is_better: False for seconds and bytes. `ratio` is above 1 where loopjax wins.
        target: what the figure was meant to reach, as text.
        more: anything else worth keeping (spread, compile seconds, batch sizes).
    """
    ratio = None
    if peer is not None:
        ratio = rounded(ours / peer if higher_is_better else peer / ours)
    line = {"bench": bench, "row": row, "ours": rounded(ours), "unit": unit}
    line |= {"peer": None if peer is None else rounded(peer), "peer_name": peer_name}
    line |= {"ratio": ratio, "target": target, **more, **circumstances()}
    print(json.dumps(line), flush=True)


def rounded(value: float) -> float:
    """Three significant digits: more would be noise."""
    return float(f"{value:.3g}")


def circumstances() -> dict[str, Any]:
    """Command, device, load, versions and date of a result."""
    script = Path(sys.argv[0]).resolve()
    name = script.relative_to(REPOSITORY) if script.is_relative_to(REPOSITORY) else script
    as_module = getattr(sys.modules["__main__"], "__spec__", None)
    if as_module:
        name = f"-m {as_module.name}"
    versions = {"python": platform.python_version()}
    for module, package in VERSIONED.items():
        if module in sys.modules or module == "jax":  # children use jax where the parent does not
            versions[package] = importlib.metadata.version(package)
    return {
        "command": " ".join(["python", str(name), *sys.argv[1:]]),
        "platform": platform_name(),
        "device": device(),
        "load": rounded(os.getloadavg()[0]),  # runnable processes, this one included
        "versions": versions,
        "date": datetime.date.today().isoformat(),
    }


def platform_name() -> str:
    """What computes: JAX's backend, or in a process without JAX PyTorch's."""
    if "jax" in sys.modules:
        return sys.modules["jax"].default_backend()
    return "gpu" if "torch" in sys.modules and sys.modules["torch"].cuda.is_available() else "cpu"


def device() -> str:
    """The accelerator, else the processor and how many cores may be used."""
    if platform_name() != "cpu":
        if "jax" in sys.modules:
            return str(sys.modules["jax"].devices()[0].device_kind)
        return str(sys.modules["torch"].cuda.get_device_name(0))
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        names = [x for x in cpuinfo.read_text().splitlines() if x.startswith("model name")]
        model = names[0].partition(":")[2].strip() if names else model
    count = len(os.sched_getaffinity(0))
    return f"{count} core{'s' if count > 1 else ''} of {model}"


def peer(module: str) -> Any:
    """Imports a contender late; a missing one ends the program with what to install."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise SystemExit(
            f"{Path(sys.argv[0]).name} compares with {module}: pip install -e '.[bench]' ({error})"
        ) from error


def arguments(doc: str | None) -> argparse.ArgumentParser:
    """A parser whose --help shows the script's docstring, example included."""
    return argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
