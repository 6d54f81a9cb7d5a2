"""Compiles the package's programs for an H100 and a v5e and compares with the kept table.

    python -m scripts.aot check                   # a worse number fails; nothing is written
    python -m scripts.aot keep --only h100        # measures and rewrites these lines of the table
    python -m scripts.aot check --only "tiny bf16" --hlo out/hlo   # keeps the programs' text too

Needs Python 3.12 or newer with jax[cuda13] (H100) or jax[tpu] (v5e), and neither a driver nor a
device. A target whose wheels are missing is skipped with a word. Bytes are sums over what each
kernel reads and writes; the kernels are those XLA chooses without autotuning.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

from scripts.aot import targets  # first: it sets what jax reads when imported

# isort: split
import jax

from scripts.aot.hlo import Module
from scripts.aot.programs import Program, programs
from scripts.aot.table import TABLE, worse

MIB = 2**20


def measure(program: Program, hlo: Path | None) -> dict[str, Any]:
    """Compiles one program: its numbers, per clip where clips are what it works on."""
    started = time.monotonic()
    compiled = program.compile()
    text = compiled.as_text()
    if hlo:
        hlo.mkdir(parents=True, exist_ok=True)
        name = f"{program.target} {program.name}".replace(" ", "-")
        (hlo / f"{name}.txt").write_text(text)
    module = Module(text)
    # A program on several devices shows what one of them does.
    clips = program.clips / len(targets.devices(program.target))
    kernels = list(module.kernels())
    row: dict[str, Any] = {
        "kernels": len(kernels),
        "mb": round(sum(moved for _, moved in kernels) / clips / 1e6, 2),
        "temp_mib": round(compiled.memory_analysis().temp_size_in_bytes / clips / MIB, 3),
        "collectives": module.collectives(),
        "loops_of_unknown_length": module.whiles().count(None),
    }
    if program.target == "v5e":
        cycles = module.cycles() + targets.kernel_cycles(module.tpu_kernels())
        row["clips_per_s"] = round(clips / (cycles / targets.V5E_CLOCK_HZ))
    return row | {"compile_s": round(time.monotonic() - started)}


def main() -> int:
    """Measures the chosen programs; exit code 1 if one got worse or is not in the table."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.aot",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("action", choices=("check", "keep"))
    parser.add_argument("--only", default="", metavar="TEXT", help="programs whose line holds it")
    parser.add_argument("--hlo", type=Path, metavar="DIR", help="write the programs' text there")
    arguments = parser.parse_args()
    kept = json.loads(TABLE.read_text()) if TABLE.exists() else {"jax": "", "programs": {}}
    failed = 0
    missing: set[str] = set()
    for program in programs():
        line = f"{program.target}: {program.name}"
        if arguments.only not in line or program.target in missing:
            continue
        try:
            targets.devices(program.target)
        except (ValueError, RuntimeError, ImportError) as error:
            reason = str(error).splitlines()[0]
            print(f"{program.target} skipped: its jax plugin is not installed ({reason})")
            missing.add(program.target)
            continue
        row = measure(program, arguments.hlo)
        faults = []
        if arguments.action == "keep":
            kept["programs"][line] = {key: row[key] for key in row if key != "compile_s"}
        elif line in kept["programs"]:
            faults = worse(row, kept["programs"][line])
        else:
            faults = ["not in the table: python -m scripts.aot keep"]
        failed += bool(faults)
        print(line, json.dumps(row), *(f"WORSE: {fault}" for fault in faults), flush=True)
    if arguments.action == "keep":
        kept["jax"] = jax.__version__
        order = [f"{program.target}: {program.name}" for program in programs()]
        kept["programs"] = {
            name: kept["programs"][name] for name in order if name in kept["programs"]
        }
        TABLE.write_text(json.dumps(kept, indent=1) + "\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
