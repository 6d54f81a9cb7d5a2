"""Repeats the tables of the README and says where they differ.

    make reproduce                               # with the versions of constraints.txt
    python -m scripts.reproduce                  # in this one
    python -m scripts.reproduce --bass FOLDER    # with ff.npz and nff.npz, see configs/bass392.yaml

The demo's table must agree with the README to `TOLERANCE`: other machines round differently, and
training amplifies that. The run on the paper's bass loops prints its tables beside the published
values.
"""

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TOLERANCE = 0.005  # of AUROC
_NUMBER = re.compile(r"0\.\d{3}")


def readme_table(text: str) -> list[list[float]]:
    """AUROC by encoder (rows) and detector (columns), as the README has them.

    Raises:
        ValueError: the README has no such table.
    """
    start = text.index("| encoder |")
    lines = text[start : text.index("\n\n", start)].splitlines()[2:]
    return [[float(cell) for cell in _NUMBER.findall(line)] for line in lines]


def run_table(evaluation: str) -> tuple[list[str], list[str], list[list[float]]]:
    """Encoders, detectors and AUROC of a finished demo, from its `evaluation.json`."""
    tables = {table["title"]: table["rows"] for table in json.loads(evaluation)["tables"]}
    rows = tables["Encoders"]
    detectors = [name for name in rows[0] if name != "encoder"]
    encoders = [row["encoder"] for row in rows]
    return encoders, detectors, [[row[name] for name in detectors] for row in rows]


def differences(
    written: list[list[float]], encoders: list[str], detectors: list[str], found: list[list[float]]
) -> list[str]:
    """One line per figure that is not the README's."""
    if [len(row) for row in written] != [len(row) for row in found]:
        return [f"the README has {written}, the demo {found}"]
    return [
        f"{encoder}, {detector}: {ours:.3f} instead of {theirs:.3f}"
        for encoder, ours_row, theirs_row in zip(encoders, found, written, strict=True)
        for detector, ours, theirs in zip(detectors, ours_row, theirs_row, strict=True)
        if abs(ours - theirs) > TOLERANCE
    ]


def main() -> int:
    """Runs the demo, and the bass loops where they are; 1 where a figure differs."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-o", "--out", type=Path, default=Path("out/reproduce"))
    bass = ROOT.parent / "shared" / "data" / "musicradar-bass-392"
    parser.add_argument("--bass", type=Path, default=bass, metavar="FOLDER")
    args = parser.parse_args()
    loopjax = [sys.executable, "-m", "loopjax"]
    subprocess.run([*loopjax, "demo", "-o", str(args.out / "demo")], check=True)
    encoders, detectors, found = run_table((args.out / "demo" / "evaluation.json").read_text())
    differing = differences(
        readme_table((ROOT / "README.md").read_text()), encoders, detectors, found
    )
    print("\n".join(differing) or f"the demo's {len(encoders) * len(detectors)} figures agree")
    sets = [args.bass / f"{name}.npz" for name in ("ff", "nff")]
    if all(file.is_file() for file in sets):
        given = [f"--set=data.sets.{file.stem}={file}" for file in sets]
        command = ["run", "bass392", "--quick", "-o", str(args.out / "bass392"), *given]
        subprocess.run([*loopjax, *command], check=True)
    else:
        print(f"no ff.npz and nff.npz in {args.bass}: the paper's bass loops are left out")
    return bool(differing)


if __name__ == "__main__":
    sys.exit(main())
