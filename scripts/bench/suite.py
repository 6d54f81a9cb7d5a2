"""Runs the benchmarks one after the other and keeps their results in the repository.

    python scripts/bench/suite.py                     # everything, under 30 minutes on two cores
    python scripts/bench/suite.py encoder startup     # these alone; the other results stay

Each script runs in its own process with the arguments below. Its JSON lines replace the kept ones
of the same script in `scripts/bench/results/`, a file per platform (cpu, gpu, tpu); then the
docs/benchmarks.md is rewritten. A script that fails is named at the end, exit code 1, and its kept
results stay as they were.
"""

import argparse
import json
import subprocess
import sys
import time
from importlib.util import find_spec

from table import FOLDER, PAGE, read_results, section, with_section

RESULTS = FOLDER / "results"
NEEDED = ("jax", "torch", "transformers", "sklearn", "pyod", "librosa")
COMMANDS: dict[str, list[str]] = {
    "encoder": [],
    "frontend": [],
    "end_to_end": [],
    "feeding": ["--files", "200", "--encoders", "tiny", "loopjax-nano", "--rounds", "2"],
    "memory": [],
    "heads": [],
    "baselines": [],
    "decoding": [],
    "growth": [],
    "large": [],
    "startup": [],
    "finetuning": [],
}


def run(name: str) -> list[str] | None:
    """One script's result lines; None when it failed. Its output goes through as it comes."""
    command = [sys.executable, str(FOLDER / f"{name}.py"), *COMMANDS[name]]
    print("$", " ".join(["python", f"scripts/bench/{name}.py", *COMMANDS[name]]), flush=True)
    started, lines = time.monotonic(), []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            if line.startswith("{") and "bench" in json.loads(line):
                lines.append(line)
    print(f"{name}: {time.monotonic() - started:.0f} s", flush=True)
    return None if process.returncode else lines


def keep(name: str, lines: list[str]) -> None:
    """Replaces one script's kept lines, in the order of COMMANDS."""
    path = RESULTS / f"{json.loads(lines[0])['platform']}.jsonl"
    kept = path.read_text().splitlines(keepends=True) if path.exists() else []
    kept = [line for line in kept if json.loads(line)["bench"] != name] + lines
    order = list(COMMANDS)
    kept.sort(key=lambda line: order.index(json.loads(line)["bench"]))
    RESULTS.mkdir(exist_ok=True)
    path.write_text("".join(kept))


def main() -> int:
    """Runs the named scripts, all by default."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", choices=[*COMMANDS, []], metavar="NAME")
    names = parser.parse_args().names or list(COMMANDS)
    if missing := [module for module in NEEDED if find_spec(module) is None]:
        parser.error(f"{', '.join(missing)} not installed: pip install -e '.[bench]'")
    failed = []
    for name in names:
        lines = run(name)
        if lines is None:
            failed.append(name)
        else:
            keep(name, lines)
            PAGE.write_text(with_section(PAGE.read_text(), section(read_results())))
    if failed:
        print("failed:", ", ".join(failed), file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
