"""Writes the kept benchmark results into docs/benchmarks.md.

    python scripts/bench/table.py

Reads `scripts/bench/results/*.jsonl` and replaces what stands between the two markers; a test
checks that the page says what the results say.
"""

import argparse
import json
from itertools import groupby
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent
PAGE = FOLDER.parents[1] / "docs" / "benchmarks.md"
BEGIN, END = "<!-- benchmarks: written by make bench -->", "<!-- end of benchmarks -->"
HEAD = """Medians of turns taken in one run, so that ratios compare like with like; above 1 loopjax
is ahead. After `pip install -e ".[bench]"`, `make bench` repeats everything in under 30 minutes,
each command below one table. "Load" counts runnable processes: above the number of cores the
machine was busy and absolute figures are low. The lines behind them, with spread, batch sizes and
compile seconds, stand in [scripts/bench/results](../scripts/bench/results).
"""

GPU = """The H100's figures are of two leases of one card each on 2026-11-26, fourteen minutes in
all. In the first, bias and GELU of bfloat16 products were passes of their own, because XLA's
autotuner gave the products to other libraries than the ahead-of-time compiler does; every batch was
waited for. In the second they stay inside, weights lie in bfloat16, and groups of 50 ms are waited
for, as over a corpus. What the rows do not say:

- `bf16-fused` now also runs the MLP kernel, which was timed and compared alone after the encoder;
  by its parts tiny reaches 21,000 clips/s and moves 97 MB per clip (compiled: `python -m
  scripts.aot`). As a whole this program has not run, nor has parity been measured again since.
- The front end takes 30 % of tiny's time in `bf16-fused` and 15 % in `bf16`, not the 12 % aimed
  at, 6.6 us a clip. Frames into the FFT library, spectra out and their magnitudes are 17 MB a clip,
  6.4 us at the copy's rate; reading, resampling (132 MFLOP in float32), filling and mel filters
  come on top. Transforms by full-precision products are 1.2 GFLOP, 24 us at float32's 50 TFLOP/s.
  Only a Fourier transform within a kernel of ours would come below. With fusion the front end moves
  14 to 16 % less since (compiled: 28.3 MB a clip of 4 s, 50.9 of 20 s).
- The training step of tiny reaches 9 % of the bfloat16 peak (92 TFLOP/s, 388 us a clip), not the
  30 % aimed at, which are 120 us. It works as `bf16` does, whose forward pass alone reaches 111
  TFLOP/s, and is bound by memory: both ways a clip moves 990 MB (compiled), 330 us at 3 TB/s. A
  quarter of that is attention, most of the rest MLPs; the kernels of `bf16-fused` have no
  backward pass. It was measured in a third lease, beside fourteen processes that rendered loops
  on the host's 16 cores. nano's own training (scripts/nano, batches of 256 spectrograms on the
  device) ran at 15,000 clips/s.
- A corpus of 3,000 files takes two seconds, most of which are its start and end; the steady rate is
  not known. kNN's fit is sixteen times its arithmetic's time: the choice of the smallest among
  8,205 distances, by XLA's TopK. It goes by groups since then, with the same result: sorting
  networks over 512 and 221 (compiled). A CPU takes a third of the time, no card was asked.
- A window attention for Hopper's copy engine compiled, was right in the interpreter and ended on
  the card with an illegal instruction; the Triton kernel, which jax 0.11 deprecates, stays.
- Compiled for one TPU v5e, not run: in `bf16-fused`, where a Swin block is one kernel, tiny does
  3,590 clips/s by the compiler's schedule, base 2,550 and nano 28,100 (in plain `bf16`, whose heads
  of 24 channels fill a fifth of a tile, tiny 866 and nano 11,400). Instruction words are counted;
  waits for memory come on top. Its front end (4 s at 44.1 kHz) has no scalar gathers and no FFT any
  more: 6,350 clips/s (3,730 before), loops of unknown length, three of them, counted once; to
  compile it takes 190 seconds of a core.
- Not measured: seeds trained together, base, nano, batches of 512, tf32 and fp32 of the second
  lease, bytes by the profiler's counters, several GPUs, TPUs.
"""


def read_results(folder: Path = FOLDER / "results") -> list[dict[str, Any]]:
    """Every kept result, file by file."""
    return [
        json.loads(line)
        for path in sorted(folder.glob("*.jsonl"))
        for line in path.read_text().splitlines()
    ]


def figure(value: float | None, unit: str, name: str | None = None) -> str:
    """A number with its unit, and whose it is."""
    if value is None:
        return ""
    text = f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    text = f"{text} {unit}"
    return f"{text} ({name})" if name else text


def table(rows: list[dict[str, Any]]) -> str:
    """One Markdown table: the results of one command."""
    compared = any(row["peer"] is not None for row in rows)
    aimed = any(row["target"] for row in rows)
    head = ["", "loopjax"] + ["against", "ratio"] * compared + ["target"] * aimed
    lines = [head, ["---"] * len(head)]
    for row in rows:
        cells = [row["row"], figure(row["ours"], row["unit"])]
        if compared:
            ratio = "" if row["ratio"] is None else f"**{row['ratio']:.2f}**"
            cells += [figure(row["peer"], row["unit"], row["peer_name"]), ratio]
        lines.append(cells + [row["target"] or ""] * aimed)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines) + "\n"


def section(results: list[dict[str, Any]]) -> str:
    """The section between the markers."""
    parts = [HEAD]
    for command, group in groupby(results, key=lambda row: row["command"]):
        rows = list(group)
        versions = {name: number for row in rows for name, number in row["versions"].items()}
        listed = ", ".join(f"{name} {number}" for name, number in versions.items())
        load = max(row["load"] for row in rows)
        where = f"{rows[0]['device']}, load {load:.1f}, {rows[0]['date']}"
        parts.append(f"`{command}`: {where}, {listed}\n")
        parts.append(table(rows))
    if any(row["platform"] == "gpu" for row in results):
        parts.append(GPU)
    return "\n".join(parts)


def with_section(page: str, text: str) -> str:
    """The page with the text between its markers replaced.

    Raises:
        ValueError: a marker is missing.
    """
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the page lacks {BEGIN} or {END}")
    return f"{before}{begin}\n\n{text}\n{end}{after}"


def main() -> None:
    """Rewrites the page in place."""
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    PAGE.write_text(with_section(PAGE.read_text(), section(read_results())))


if __name__ == "__main__":
    main()
