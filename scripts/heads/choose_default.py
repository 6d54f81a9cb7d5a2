"""Chooses the default detector from a finished run of configs/unseen.yaml.

    python -m scripts.heads.choose_default out/unseen

The rule stands in that file: the highest AUROC on average over its corpora and protocols. Prints
the table and writes it, with the choice, to scripts/heads/default.json. The default itself is
`loopjax.detectors.DEFAULT_KIND`.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from loopjax.evaluation.tables import Estimate, Evaluation
from loopjax.io import write_json

RECORD = Path(__file__).parent / "default.json"


def read_means(run: Path) -> dict[str, dict[str, float]]:
    """Detector -> corpus and protocol -> mean AUROC, from a run folder."""
    file = run / "evaluation.json"
    evaluation = Evaluation.from_json(json.loads(file.read_text("utf-8")), str(file))
    (table,) = (table for table in evaluation.tables if table.title == "AUROC by detector")
    return {
        str(row["detector"]): {
            name: value.value for name, value in row.items() if isinstance(value, Estimate)
        }
        for row in table.rows
        if any(isinstance(value, Estimate) for value in row.values())  # not a difference
    }


def choose(means: dict[str, dict[str, float]]) -> str:
    """The detector with the highest mean over all columns; the first of equals."""
    return max(means, key=lambda name: float(np.mean(list(means[name].values()))))


def main(argv: list[str] | None = None) -> int:
    """Prints table and choice and writes the record."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="run folder of configs/unseen.yaml")
    means = read_means(parser.parse_args(argv).run)
    columns = list(next(iter(means.values())))
    table = Table("detector", "mean", *columns)
    for name, row in sorted(means.items(), key=lambda pair: -np.mean(list(pair[1].values()))):
        values = [float(np.mean(list(row.values()))), *(row[column] for column in columns)]
        table.add_row(name, *(f"{value:.3f}" for value in values))
    chosen = choose(means)
    console = Console()
    console.print(table, f"default: {chosen}", sep="\n")
    rounded = {name: {c: round(v, 4) for c, v in row.items()} for name, row in means.items()}
    write_json(RECORD, {"chosen": chosen, "auroc": rounded})
    return 0


if __name__ == "__main__":
    sys.exit(main())
