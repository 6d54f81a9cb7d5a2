"""Kills every verb that writes at random moments, and checks that nothing is lost or left behind.

    python -m scripts.faults.kill_verbs [--kills 100] [--seed 0] [--verbs embed fit ...]

Each verb runs once undisturbed. Then it is started again and again in a place of its own, and
SIGKILL is sent to its whole process group at a random moment of the time it took; a verb that was
killed is run to its end, which must give what the undisturbed one gave and leave no temporary file.
Half of the kills hit a place that holds an older result already. Prints one line per kill, with the
first thing that differs where something does, and keeps that place beside the undisturbed one. Ends
with "0 lost, 0 tracebacks, 0 left behind", or exit code 1.
"""

import argparse
import csv
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile

from loopjax.store.read import read_embeddings
from loopjax.store.scores import read_scores

ROOT = Path(__file__).parents[2]
RATE_HZ = 44_100
TEMPORARY = re.compile(
    r"\..*\.(tmp|old)|\.loopjax\.held-by-.*|\..*\.writing\.lock|.*orbax-checkpoint-tmp.*"
)
EMBED = ("--encoder", "log-mel-statistics", "--workers", "1", "--shard-rows", "6")


@dataclass(frozen=True)
class Trial:
    """One verb: its arguments in a place, and what it leaves there that must be equal."""

    name: str
    arguments: Callable[[Path], list[str]]
    content: Callable[[Path], object]
    starts_from: str = ""  # another trial whose result it works on


def trials(inputs: Path) -> list[Trial]:
    """All verbs that write, over the same small inputs."""
    names = ("loops", "loops/keys/loop_00.wav", "emb", "model", "head.ckpt", "config.yaml")
    loops, loop, store, model, head, config = (str(inputs / name) for name in names)
    marks = str(inputs / "marks.csv")
    return [
        Trial("embed", lambda o: ["embed", loops, "-o", f"{o}/emb", *EMBED], rows_in),
        Trial("fit", lambda o: ["fit", store, "-o", f"{o}/model", "--detector", "pca"], model_in),
        Trial("score", lambda o: ["score", model, store, "-o", f"{o}/s.parquet"], scores_in),
        Trial(
            "explain",
            lambda o: ["explain", model, loop, "-o", f"{o}/why"],
            explanation_in,
        ),
        Trial("convert", lambda o: ["convert", head, "-o", f"{o}/head"], model_in),
        Trial("run", lambda o: ["run", config, "-o", f"{o}/run"], run_in),
        Trial("evaluate", lambda o: ["evaluate", f"{o}/run"], run_in, "run"),
        Trial("report", lambda o: ["report", f"{o}/run"], run_in, "run"),
        Trial("similar", lambda o: ["similar", store, loop, "-o", f"{o}/t.csv"], table_in),
        Trial("dedup", lambda o: ["dedup", store, "-o", f"{o}/t.csv"], table_in),
        Trial("mislabelled", lambda o: ["mislabelled", store, "-o", f"{o}/t.csv"], table_in),
        Trial("rerank", lambda o: ["rerank", store, marks, "-o", f"{o}/t.csv"], table_in),
        Trial("apply", lambda o: ["apply", marks, "--copy", f"{o}/copied", "--yes"], copies_in),
    ]


def rows_in(place: Path) -> object:
    """Rows, rejected inputs and embeddings of a store."""
    found = read_embeddings(place / "emb")
    return {
        "rows": found.table.to_pylist(),
        "failures": found.failures.to_pylist(),
        "embeddings": found.matrix.tolist(),
    }


def model_in(place: Path) -> object:
    """What a model folder says of itself, with the checksums of its arrays."""
    (file,) = (f for f in place.glob("*/config.json"))
    return json.loads(file.read_text("utf-8"))


def scores_in(place: Path) -> object:
    """Rows of a score file."""
    return read_scores(place / "s.parquet").table.to_pylist()


def table_in(place: Path) -> object:
    """The bytes of a table."""
    return (place / "t.csv").read_bytes()


def copies_in(place: Path) -> object:
    """The copied files by their places."""
    files = sorted(file for file in (place / "copied").rglob("*.wav"))
    return {str(file.relative_to(place)): file.read_bytes() for file in files}


def explanation_in(place: Path) -> object:
    """The explanation, without the place where it lies, and its picture."""
    text = (place / "why" / "explain.json").read_text("utf-8").replace(str(place), "")
    picture = (place / "why" / "explain.svg").read_text("utf-8")
    return {"explain.json": json.loads(text), "explain.svg": picture}


def run_in(place: Path) -> object:
    """Scores, evaluation, figures and the length of the page of a run folder."""
    run = place / "run"
    figures = {f.name: f.read_text("utf-8") for f in sorted((run / "figures").rglob("*.svg"))}
    page = (run / "report" / "index.html").read_text("utf-8").replace(str(place), "")
    page = re.sub(r"\d{4}-\d\d-\d\d[T ][\d:]+", "", page)
    return {
        "scores": read_scores(run / "scores.parquet").table.to_pylist(),
        "evaluation.json": json.loads((run / "evaluation.json").read_text("utf-8")),
        "figures": figures,
        "characters of the page": len(page),
    }


def write_inputs(folder: Path) -> None:
    """Loops, one broken file, a store, marks, a model, a trained head and a configuration."""
    from scripts.fuzz.checkpoints import head
    from scripts.fuzz.torch_files import write_torch

    rng = np.random.default_rng(0)
    for name in ("keys", "bass"):
        (folder / "loops" / name).mkdir(parents=True)
    for i in range(16):
        t = np.arange(RATE_HZ // 10 * (1 + i % 2)) / RATE_HZ
        wave = 0.4 * np.sin(2 * np.pi * 55 * 2 ** rng.uniform(0, 4) * t)
        wave += 0.01 * rng.standard_normal(t.size)
        group = folder / "loops" / ("keys", "bass")[i // 8]
        soundfile.write(group / f"loop_{i:02d}.wav", wave, RATE_HZ)
    (folder / "loops" / "broken.wav").write_bytes(b"")
    content = {"state_dict": head(), "hyper_parameters": {"center": np.zeros(3, np.float32)}}
    write_torch(folder / "head.ckpt", content)
    config = {
        "name": "killed",
        "data": {"embeddings": str(folder / "emb")},
        "seeds": [0],
        "detectors": [{"name": "pca", "kind": "pca"}, {"name": "cosine", "kind": "mean-cosine"}],
        "evaluate": {"bootstrap": 20},
        "report": {"audio": "none"},
    }
    (folder / "config.yaml").write_text(json.dumps(config), "utf-8")
    complete(["embed", str(folder / "loops"), "-o", str(folder / "emb"), *EMBED])
    complete(["fit", str(folder / "emb"), "-o", str(folder / "model"), "--detector", "pca"])
    with (folder / "marks.csv").open("w", encoding="utf-8", newline="") as file:
        lines = csv.writer(file)
        lines.writerow(("id", "path", "mark"))
        rows = read_embeddings(folder / "emb").table.to_pylist()
        for i, row in enumerate(rows[:10]):
            lines.writerow((row["id"], os.fsdecode(row["path_bytes"]), ("keep", "reject")[i % 2]))


def start(arguments: list[str]) -> subprocess.Popen:
    """Starts a verb in a process group of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "loopjax.cli", *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


def complete(arguments: list[str]) -> str:
    """Runs a verb to its end; what went wrong, or ""."""
    process = start(arguments)
    _, errors = process.communicate()
    if "Traceback" in errors:
        return f"traceback: {errors[-1000:]}"
    return "" if process.returncode in (0, 3) else f"exit {process.returncode}: {errors[-500:]}"


def killed(arguments: list[str], after_s: float) -> bool:
    """Whether a verb was still at work when it was killed."""
    process = start(arguments)
    try:
        process.communicate(timeout=after_s)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return True
    return False


def difference(found: object, expected: object, at: str = "") -> str:
    """The first value that differs between two results, with its place in them; or ""."""
    if isinstance(found, dict) and isinstance(expected, dict):
        keys = dict.fromkeys((*expected, *found))
        inner = ((key, found.get(key, "nothing"), expected.get(key, "nothing")) for key in keys)
    elif isinstance(found, list) and isinstance(expected, list):
        if len(found) != len(expected):
            return f"{at}: {len(found)} entries for {len(expected)}"
        inner = ((i, *pair) for i, pair in enumerate(zip(found, expected, strict=True)))
    else:
        has, wanted = repr(found), repr(expected)  # which also says when two NaN are equal
        return "" if has == wanted else f"{at}: {has[:200]} for {wanted[:200]}"
    return next(filter(None, (difference(a, b, f"{at}/{key}") for key, a, b in inner)), "")


def left_behind(place: Path) -> list[str]:
    """Temporary names below a place."""
    return [path.name for path in place.rglob("*") if TEMPORARY.fullmatch(path.name)]


def main(n_kills: int = 100, seed: int = 0, verbs: Collection[str] = ()) -> Counter[str]:
    """Runs the kills, of all verbs or some; returns how often what went wrong."""
    rng, faults = random.Random(seed), Counter(lost=0, tracebacks=0)
    faults["left behind"] = 0
    folder = Path(tempfile.mkdtemp())
    inputs, wholes = folder / "inputs", folder / "whole"
    write_inputs(inputs)
    known, expected, takes_s = trials(inputs), {}, {}
    known = [trial for trial in known if not verbs or trial.name in verbs]
    for trial in known:
        whole = wholes / trial.name
        _begin(whole, wholes, trial, older=False)
        started_s = time.monotonic()
        problem = complete(trial.arguments(whole))
        takes_s[trial.name] = time.monotonic() - started_s
        if problem:
            sys.exit(f"{trial.name} undisturbed: {problem}")
        expected[trial.name] = trial.content(whole)
    for number in range(n_kills):
        trial = known[number % len(known)]
        place = folder / f"kill-{number}"
        _begin(place, wholes, trial, older=rng.random() < 0.5)
        after_s = takes_s[trial.name] * rng.uniform(0.2, 1.0)
        hit = killed(trial.arguments(place), after_s)
        is_there = trial.name == "convert" and (place / "head").exists()  # it replaces nothing
        problem = "" if is_there else complete(trial.arguments(place))
        if problem.startswith("traceback"):
            faults["tracebacks"] += 1
        else:
            problem = problem or difference(trial.content(place), expected[trial.name])
            faults["lost"] += bool(problem)
        left = left_behind(place)
        faults["left behind"] += bool(left)
        state = f"killed after {after_s:.1f} s" if hit else "had finished"
        print(f"{number:3d} {trial.name}: {state} {problem} {' '.join(left)}", flush=True)
        if problem or left:
            print(f"    kept: {place}, undisturbed: {wholes / trial.name}", flush=True)
        else:
            shutil.rmtree(place)
    if not any(faults.values()):
        shutil.rmtree(folder)
    return faults


def _begin(place: Path, wholes: Path, trial: Trial, *, older: bool) -> None:
    """Makes a place: empty, or with what the verb works on or has left there before."""
    source = trial.starts_from or (trial.name if older and trial.name != "convert" else "")
    if source:
        shutil.copytree(wholes / source, place, copy_function=shutil.copy2)
    else:
        place.mkdir(parents=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--verbs", nargs="+", default=(), help="only these; `run` comes first")
    options = parser.parse_args()
    found = main(options.kills, options.seed, options.verbs)
    print(", ".join(f"{count} {kind}" for kind, count in found.items()))
    sys.exit(int(any(found.values())))
