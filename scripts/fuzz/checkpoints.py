"""Damages checkpoints and embeddings in pickles, and watches what converting and reading does.

    python -m scripts.fuzz.checkpoints --n 2000

Every damaged input must be read or refused in plain words. Ends with "0 lost, 0 hung, 0 ran,
0 tracebacks": lost is a file whose checksums were wrong and that was converted all the same, or a
refusal that left something behind; ran is a pickle whose command was executed. Inputs that fail are
kept in `--keep`, named by their seed.
"""

import argparse
import json
import logging
import multiprocessing
import pickle
import re
import resource
import shutil
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from random import Random

import numpy as np
from safetensors.numpy import save_file

from scripts.fuzz.torch_files import Call, Global, pickle_torch, write_torch
from scripts.goldens import synthetic

SHAPES = Path(__file__).parents[2] / "tests/goldens/shapes.json"
HANG_S = 60  # the slowest honest conversion takes two
MEMORY_BYTES = 12 << 30  # address space of a worker; JAX alone maps four
FAULTS = ("lost", "hung", "ran", "tracebacks")
WEIRD = (
    None,
    True,
    -1,
    0,
    1e308,
    -1e308,
    float("nan"),
    float("inf"),
    10**40,
    "",
    "x",
    [],
    {},
    [[]],
)


def tower() -> dict[str, np.ndarray]:
    """A small random tower of Hugging Face's layout."""
    shapes = json.loads(SHAPES.read_text())["hf_mini_unfused"]
    learned = {k: tuple(s) for k, s in shapes.items() if synthetic.is_learned(k)}
    return synthetic.weights(learned, seed=1)


def head() -> dict[str, np.ndarray]:
    """A small trained head."""
    rng = np.random.default_rng(0)
    kernels = {"encoder.layers.0.linear.weight": (6, 8), "encoder.layers.1.linear.weight": (3, 6)}
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in kernels.items()}


# ---- inputs: a folder is filled, and the path to convert or read is returned -----------------


def torch_file(folder: Path, rng: Random, canary: Path) -> Path:
    """A training file whose bytes are damaged anywhere."""
    file = write_torch(folder / "a.pt", training_file(tower()))
    return damaged(file, rng)


def torch_pickle(folder: Path, rng: Random, canary: Path) -> Path:
    """A training file whose pickle is damaged under a right checksum."""
    content = training_file(tower())
    if rng.random() < 0.3:
        content["callbacks"] = {"x": Call(rng.choice(COMMANDS), (f"touch {canary}",))}
    data, _ = pickle_torch(content)
    return write_torch(folder / "a.pt", content, members={"archive/data.pkl": broken(data, rng)})


def head_file(folder: Path, rng: Random, canary: Path) -> Path:
    """A head whose pickle or center is damaged."""
    center = np.zeros(3, np.float32)
    content = {"state_dict": head(), "hyper_parameters": {"center": center, "rate": 1e-3}}
    data, _ = pickle_torch(content)
    return write_torch(folder / "a.ckpt", content, members={"archive/data.pkl": broken(data, rng)})


def safetensors_file(folder: Path, rng: Random, canary: Path) -> Path:
    """Safetensors whose header or data is damaged."""
    save_file(tower(), folder / "model.safetensors")
    return damaged(folder / "model.safetensors", rng, 0.7)


def strange_tensors(folder: Path, rng: Random, canary: Path) -> Path:
    """A well-formed file whose tensors have other names, numbers, shapes, types or values."""
    save_file(changed(tower(), rng), folder / "model.safetensors")
    return folder / "model.safetensors"


def strange_head(folder: Path, rng: Random, canary: Path) -> Path:
    """A well-formed head whose tensors are not what they should be."""
    tensors = {k: v.astype(np.float32) for k, v in changed(head(), rng).items()}
    center = np.zeros(rng.choice((0, 1, 3, 8)), np.float32)
    content = {"state_dict": tensors, "hyper_parameters": {"center": center}}
    return write_torch(folder / "a.ckpt", content)


def hub_folder(folder: Path, rng: Random, canary: Path) -> Path:
    """A Hugging Face folder with one unlikely value, or damaged text, in one of its JSON files."""
    tensors = tower()
    settings = {
        "sampling_rate": 48000,
        "hop_length": 480,
        "max_length_s": 10,
        "fft_window_size": 1024,
        "frequency_min": 50,
        "frequency_max": 14000,
        "feature_size": 64,
        "top_db": None,
        "padding": "repeatpad",
        "truncation": "rand_trunc",
    }
    files: dict[str, object] = {
        "config.json": {
            "audio_config": {"enable_fusion": False, "patch_size": 4, "spec_size": 256}
        },
        "preprocessor_config.json": settings,
        "processor_config.json": {
            "feature_extractor": settings,
            "processor_class": "ClapProcessor",
        },
        "model.safetensors.index.json": {"weight_map": dict.fromkeys(tensors, "part.safetensors")},
    }
    save_file(tensors, folder / "part.safetensors")
    chosen = rng.choice(sorted(files))
    if rng.random() < 0.7:
        files[chosen] = strange(files[chosen], rng)
    for name, value in files.items():
        (folder / name).write_text(json.dumps(value))
    return folder if rng.random() < 0.7 else damaged(folder / chosen, rng).parent


def embeddings(folder: Path, rng: Random, canary: Path) -> Path:
    """Embeddings in a pickle."""
    rows = [{"path": f"{i}.wav", "embedding": np.arange(8, dtype=np.float32)} for i in range(20)]
    content = rng.choice(
        [np.eye(20), {"embeddings": np.eye(20), "id": list("abcdefghijklmnopqrst")}, rows]
    )
    data = pickle.dumps(content, rng.randrange(6))
    if rng.random() < 0.2:
        data, _ = pickle_torch([1, Call(rng.choice(COMMANDS), (f"touch {canary}",))])
    (folder / "a.pkl").write_bytes(broken(data, rng))
    return folder / "a.pkl"


INPUTS: tuple[Callable[[Path, Random, Path], Path], ...] = (
    torch_file,
    torch_pickle,
    torch_pickle,
    head_file,
    safetensors_file,
    strange_tensors,
    strange_tensors,
    strange_head,
    hub_folder,
    embeddings,
    embeddings,
)
COMMANDS = (Global("os", "system"), Global("posix", "system"), Global("subprocess", "getoutput"))


def training_file(state: dict[str, np.ndarray]) -> dict[str, object]:
    """What training leaves around the weights."""
    rate = Call(
        Global("numpy.core.multiarray", "scalar"),
        (Call(Global("numpy", "dtype"), ("f8", False, True)), np.float64(0.25).tobytes()),
    )
    return {"epoch": 3, "state_dict": state, "optimizer": {"lr": rate, "betas": (0.9, 0.99)}}


# ---- damage -----------------------------------------------------------------------------------


def broken(data: bytes, rng: Random) -> bytes:
    """Bytes changed, cut, repeated, moved or inserted, in a few places."""
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        at, end = sorted(rng.randrange(len(data) + 1) for _ in range(2))
        end = min(end, at + rng.choice((1, 4, 64, len(data))))
        piece = data[at:end]
        data = data[:at] + rng.choice((
            bytes(rng.randrange(256) for _ in range(min(len(piece), 64))) + piece[64:],
            b"",
            piece + piece,
            piece[::-1],
            bytes(len(piece)),
            rng.randbytes(rng.randrange(9)) + piece,
        )) + data[end:]  # fmt: skip
        data = data or b"\0"
    return data


def damaged(file: Path, rng: Random, front: float = 0.0) -> Path:
    """The file, damaged; with probability `front` only within its first 20 kB."""
    data = file.read_bytes()
    edge = 20_000 if rng.random() < front else len(data)
    file.write_bytes(broken(data[:edge], rng) + data[edge:])
    return file


def changed(tensors: dict[str, np.ndarray], rng: Random) -> dict[str, np.ndarray]:
    """Tensors with other names, numbers, shapes, types or values, or without some."""
    for _ in range(rng.choice((1, 1, 2, 4))):
        name = rng.choice(sorted(tensors) or [""])
        array = tensors.pop(name, np.zeros(3, np.float32))
        number = rng.choice(("-1", "0", "7", "63", "4000000000", "x", ""))
        change = rng.randrange(6)
        if change == 0:
            name = re.sub(r"\d+", number, name, count=rng.choice((0, 1)))
        elif change == 1:
            array = array.reshape(rng.choice(((-1,), (1, *array.shape), (*array.shape, 1))))
        elif change == 2:
            array = np.repeat(array, rng.choice((0, 2, 3)), axis=rng.randrange(array.ndim))
        elif change == 3:
            with np.errstate(all="ignore"):
                array = array.astype(rng.choice((np.float16, np.int64, np.bool_, np.uint8)))
        elif change == 4:
            array = np.array(rng.choice((np.nan, 0, -1, 1e38)), np.float32)
        if change != 5:  # then it is gone
            tensors[name] = np.ascontiguousarray(array)
    return tensors


def strange(value: object, rng: Random) -> object:
    """The value with something unlikely somewhere in it."""
    if isinstance(value, dict) and value and rng.random() < 0.8:
        key = rng.choice(sorted(value))
        return value | {key: strange(value[key], rng)}
    return rng.choice(WEIRD)


# ---- one attempt, in a process that may die --------------------------------------------------


@dataclass(frozen=True)
class Verdict:
    """What came of one input: a fault, "refused" or "read", and the reason or traceback."""

    kind: str
    text: str = ""


def work(connection: Connection) -> None:
    """Receives paths, answers with verdicts."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    from loopjax.convert.checkpoint import convert
    from loopjax.encoders import storage
    from loopjax.errors import LoopjaxError
    from loopjax.store.read import read_embeddings

    logging.disable()
    # What a folder would embed plays no role here, and takes seconds each.
    storage.probe_embeddings = lambda encoder: np.zeros((2, encoder.embedding_dim), np.float32)
    while True:
        source, out = connection.recv()
        try:
            if source.suffix == ".pkl":
                read_embeddings(source)
            else:
                convert(source, out)
            connection.send(Verdict("read"))
        except LoopjaxError as error:
            connection.send(Verdict("refused", str(error)))
        except BaseException:  # noqa: BLE001 - whatever escapes is what we look for
            connection.send(Verdict("tracebacks", traceback.format_exc()))


class Worker:
    """A process that converts; replaced when it hangs or dies."""

    def __init__(self) -> None:
        self._start()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=work, args=(theirs,), daemon=True)
        self.process.start()
        theirs.close()

    def judge(self, source: Path, out: Path) -> Verdict:
        """Has one input converted."""
        self.connection.send((source, out))
        try:
            if self.connection.poll(HANG_S):
                return self.connection.recv()
            verdict = Verdict("hung")
        except EOFError:
            verdict = Verdict("tracebacks", f"the process died with {self.process.exitcode}")
        self.stop()
        self._start()
        return verdict

    def stop(self) -> None:
        """Ends the process."""
        self.process.kill()
        self.process.join()


def attempt(seed: int, worker: Worker, keep: Path) -> tuple[str, Verdict]:
    """Makes one input, has it converted and looks at what is left."""
    rng = Random(seed)
    with tempfile.TemporaryDirectory() as scratch:
        place, canary = Path(scratch) / "in", Path(scratch) / "canary"
        place.mkdir()
        make = rng.choice(INPUTS)
        source = make(place, rng, canary)
        verdict = worker.judge(source, Path(scratch) / "out")
        left = [p.name for p in Path(scratch).iterdir() if p.name not in ("in", "canary")]
        if canary.exists():
            verdict = Verdict("ran", source.name)
        elif verdict.kind == "refused" and left:
            verdict = Verdict("lost", f"refused, but left {left} behind: {verdict.text}")
        elif verdict.kind == "read" and make is torch_file and not same_weights(source):
            verdict = Verdict("lost", "converted other weights than were saved")
        if verdict.kind in FAULTS:
            shutil.copytree(place, keep / str(seed), dirs_exist_ok=True)
    return make.__name__, verdict


def same_weights(source: Path) -> bool:
    """Whether a training file that was accepted still holds the tower it was made with."""
    from loopjax.convert.torch_zip import TorchZip

    tensors = TorchZip(source).tensors()
    return all(
        np.array_equal(tensors[f"state_dict.{name}"].read(), array)
        for name, array in tower().items()
    )


def attempts(n: int, seed: int, jobs: int, keep: Path) -> Iterator[tuple[int, str, Verdict]]:
    """`n` attempts, shared between `jobs` workers."""

    def share(job: int) -> list[tuple[int, str, Verdict]]:
        worker = Worker()
        try:
            seeds = range(seed + job, seed + n, jobs)
            return [(number, *attempt(number, worker, keep)) for number in seeds]
        finally:
            worker.stop()

    with ThreadPoolExecutor(jobs) as pool:
        for results in pool.map(share, range(jobs)):
            yield from results


def main(arguments: list[str] | None = None) -> int:
    """Runs the attempts and prints a summary; returns how many went wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=2000, help="inputs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--keep", type=Path, default=Path("fuzz-failures"))
    options = parser.parse_args(arguments)
    kinds: Counter[str] = Counter()
    by_input: Counter[tuple[str, str]] = Counter()
    for seed, name, verdict in attempts(options.n, options.seed, options.jobs, options.keep):
        kinds[verdict.kind] += 1
        by_input[name, verdict.kind] += 1
        if verdict.kind in FAULTS:
            print(f"seed {seed}, {name}: {verdict.kind}\n{verdict.text}", file=sys.stderr)
    for (name, kind), count in sorted(by_input.items()):
        print(f"{name}: {count} {kind}")
    print(", ".join(f"{kinds[fault]} {fault}" for fault in FAULTS))
    return sum(kinds[fault] for fault in FAULTS)


if __name__ == "__main__":
    sys.exit(min(main(), 1))
