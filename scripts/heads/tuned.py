"""Does tuning the encoder help? Frozen, LoRA, full, and Deep SVDD end to end, under three heads.

    python -m scripts.heads.corpora -o out/corpora --sonic-pi ../shared/data/sonic-pi
    python -m scripts.heads.tuned out/corpora -o out/tuned

Three corpora: the bundled loops, rendered loops of 25 programs, and Sonic Pi's samples. What is
left out is met neither by an encoder's training nor by a head's: of the bundled loops all
anomalies, of the other two a third of the groups, another third with each of three seeds. 80 % of
the loops of all other groups train, without their names; the rest of them is the test's normal
part, beside one left-out group (or kind of anomaly) after the other. All encoders get the same
splits.

A finished training is not repeated. The rows go to tuned.json beside this file and, as a table, to
docs/how-to/finetune.md and stdout.
"""

import argparse
import csv
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from loopjax.bundled import DATA
from loopjax.config import from_dict
from loopjax.config.finetuning import FinetuneConfig
from loopjax.detectors import make_detector
from loopjax.embedding.chain import embed
from loopjax.evaluation.metrics import labeled_metrics
from loopjax.evaluation.paired import compare_paired
from loopjax.experiment.finetune import finetune
from loopjax.io import write_json

SETTINGS, RECORD = (Path(__file__).with_suffix(suffix) for suffix in (".yaml", ".json"))
PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "finetune.md"
BEGIN, END = "<!-- tuned: written by scripts.heads.tuned -->", "<!-- end of tuned -->"
SEEDS = (0, 1, 2)
HEADS = {"spheres": "sphere-svdd", "pca": "pca", "knn": "knn"}
TRAIN_FRACTION = 0.8
NORMAL = "normal"

Values = dict[tuple[str, int], float]  # (group, seed) -> AUROC


@dataclass(frozen=True)
class Corpus:
    """Files [N] and the group of each; for the bundled loops, the kind of anomaly or `NORMAL`."""

    name: str
    files: list[Path]
    groups: np.ndarray


@dataclass(frozen=True)
class Split:
    """Rows of a corpus: what trains, the test's normal part, and what was left out, by group."""

    train: np.ndarray
    normal: np.ndarray
    left_out: dict[str, np.ndarray]


def bundled_corpus() -> Corpus:
    """The demo's loops with their kinds of anomalies."""
    folder = DATA / "demo"
    with (folder / "labels.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    kinds = [NORMAL if row["is_anomaly"] == "0" else row["anomaly_kind"] for row in rows]
    return Corpus("bundled", [folder / row["file"] for row in rows], np.array(kinds))


def folder_corpus(name: str, folder: Path) -> Corpus:
    """Loops in one folder per group."""
    files = sorted(folder.glob("*/*.flac"))
    if not files:
        sys.exit(f"{folder} holds no groups of loops: python -m scripts.heads.corpora makes them")
    return Corpus(name, files, np.array([file.parent.name for file in files]))


def split(corpus: Corpus, seed: int) -> Split:
    """What one seed trains on and leaves out; over all seeds each group is left out once."""
    names = sorted(set(corpus.groups.tolist()))
    if NORMAL in names:
        out = [name for name in names if name != NORMAL]
    else:
        order = np.random.default_rng(0).permutation(len(names))
        out = [names[i] for i in order[seed :: len(SEEDS)]]
    inside = np.flatnonzero(~np.isin(corpus.groups, out))
    inside = np.random.default_rng([seed, 1]).permutation(inside)
    n_train = round(TRAIN_FRACTION * len(inside))
    left_out = {name: np.flatnonzero(corpus.groups == name) for name in out}
    return Split(np.sort(inside[:n_train]), np.sort(inside[n_train:]), left_out)


def settings_of(training: str, corpus: Corpus, rows: Split, seed: int, folder: Path) -> Any:
    """The fine-tuning of a name on a split's training loops."""
    given = yaml.safe_load(SETTINGS.read_text(encoding="utf-8"))
    values = {**given["shared"], **given["trainings"][training], "name": training, "seed": seed}
    folder.mkdir(parents=True, exist_ok=True)
    listed = folder / f"{corpus.name}-{seed}.txt"
    listed.write_text("".join(f"{corpus.files[row].absolute()}\n" for row in rows.train))
    values["data"] = {**values["data"], "sources": [str(listed)]}
    return from_dict(FinetuneConfig, values)


def matrix_of(corpus: Corpus, encoder: str | Path) -> np.ndarray:
    """Embeddings [N, C] in the order of the corpus."""
    found = embed([str(file) for file in corpus.files], str(encoder))
    place = {Path(path).resolve(): i for i, path in enumerate(found.table["path"].to_pylist())}
    return found.matrix[[place[file.resolve()] for file in corpus.files]]


def measure(matrix: np.ndarray, rows: Split, seed: int) -> dict[str, Values]:
    """AUROC of each head, of each left-out group against the normal part of the test."""
    found: dict[str, Values] = {}
    for head, kind in HEADS.items():
        detector = make_detector(kind)
        if detector.depends_on_seed:
            detector.set_params(random_state=seed)
        detector.fit(matrix[rows.train])
        normal = detector.decision_function(matrix[rows.normal])
        found[head] = {}
        for name, members in rows.left_out.items():
            scores = np.r_[normal, detector.decision_function(matrix[members])]
            labels = np.r_[np.zeros(len(normal), int), np.ones(len(members), int)]
            found[head][name, seed] = labeled_metrics(labels, scores, bootstrap=0).auroc.value
    return found


def run(corpora: list[Corpus], out: Path) -> list[dict[str, Any]]:
    """All trainings and measurements; one row per corpus, head and training."""
    names = ("frozen", *yaml.safe_load(SETTINGS.read_text(encoding="utf-8"))["trainings"])
    table = []
    for corpus in corpora:
        frozen = matrix_of(corpus, "loopjax-nano")
        values: dict[str, dict[str, Values]] = {n: {h: {} for h in HEADS} for n in names}
        for seed in SEEDS:
            rows = split(corpus, seed)
            for name in names:
                matrix, started_s = frozen, time.monotonic()
                if name != "frozen":
                    folder = out / f"{corpus.name}-{name}-{seed}"
                    config = settings_of(name, corpus, rows, seed, out)
                    matrix = matrix_of(corpus, finetune(config, folder).encoder)
                for head, found in measure(matrix, rows, seed).items():
                    values[name][head] |= found
                took_s = time.monotonic() - started_s
                print(f"{corpus.name} {name} {seed}: {took_s:.0f} s", file=sys.stderr, flush=True)
        for head in HEADS:
            for name in names:
                own, base = values[name][head], values["frozen"][head]
                row = {"corpus": corpus.name, "head": head, "encoder": name}
                row["auroc"] = float(np.mean([*own.values()]))
                if name != "frozen" and (compared := compare_paired(own, base)) is not None:
                    difference = compared.difference
                    row |= {
                        "difference": difference.value,
                        "low": difference.low,
                        "high": difference.high,
                        "groups_won": compared.groups_won,
                        "n_groups": compared.n_groups,
                        "p_groups": compared.p_groups,
                    }
                table.append(row)
    return table


def markdown(table: list[dict[str, Any]]) -> str:
    """A row per corpus, head and training, beside the frozen encoder."""
    columns = ("corpus", "head", "frozen", "training", "AUROC", "difference", "groups won", "p")
    lines = [f"| {' | '.join(columns)} |", "| --- " * len(columns) + "|"]
    frozen = ""
    for row in table:
        auroc = f"{row['auroc']:.3f}"
        if row["encoder"] == "frozen":
            frozen = auroc
            continue
        cells = [row["corpus"], row["head"], frozen, row["encoder"], auroc, "", "", ""]
        if "difference" in row:
            cells[5] = f"{row['difference']:+.3f} ({row['low']:+.3f} to {row['high']:+.3f})"
            cells[6] = f"{row['groups_won']} of {row['n_groups']}"
            cells[7] = f"{row['p_groups']:.3f}" if row["p_groups"] >= 0.001 else "< 0.001"
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def keep(table: list[dict[str, Any]]) -> None:
    """Keeps the rows, and writes them into the page."""
    write_json(RECORD, table)
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    text = f"{before}{BEGIN}\n\n{markdown(table)}\n\n{END}{after}"
    PAGE.write_text(text, encoding="utf-8")


def main(argv: list[str] | None = None) -> int:
    """Runs everything and prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("corpora", type=Path, help="folder that scripts.heads.corpora wrote")
    parser.add_argument("-o", "--out", type=Path, required=True, metavar="DIR")
    arguments = parser.parse_args(argv)
    corpora = [
        bundled_corpus(),
        *(
            folder_corpus(name, arguments.corpora / name / "loops")
            for name in ("programs", "sonic-pi")
        ),
    ]
    table = run(corpora, arguments.out)
    keep(json.loads(json.dumps(table)))
    print(markdown(table))
    return 0


if __name__ == "__main__":
    sys.exit(main())
