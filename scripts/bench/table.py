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

NOT_RUN = """No figure here is an accelerator's. Compiled, not measured, by `python -m scripts.aot`
for one H100 and batches of 128: tiny moves 254 MB of memory per clip in bfloat16, 224 MB with
`--precision bf16-fast`, 127 MB with `bf16-fused`, whose attention kernel tests only interpret and
lower. Targets there: 7,000, 9,000 and 14,000 clips/s, and 1.3x transformers; the front end in 12 %
of the encoder's time; heads at 10x PyTorch; files to embeddings at 80 % of the encoder alone.
`bash scripts/gpu_check.sh` measures all of it in ten minutes and keeps its rows beside these.
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
    if all(row["platform"] == "cpu" for row in results):
        parts.append(NOT_RUN)
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
