"""What a fuzzed reader may do: return, or refuse with a message. Everything else is counted."""

import argparse
import logging
import multiprocessing
import os
import random
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from loopjax.errors import LoopjaxError

HANG_S = 30.0
LIMIT_S = 280.0  # of a whole run
MEMORY_BYTES = 8 << 30  # a reader that asks for much more than its input fails
CANARY = "fuzz-canary"  # a file that appears where one of the inputs was run


@dataclass
class Outcomes:
    """Counts over all inputs.

    Attributes:
        n: inputs tried.
        n_refused: of these, refused with a message.
        lost: results that were wrong without a word; one line each.
        hung: inputs that took longer than `HANG_S`, or killed their process.
        ran: inputs that ran code.
        tracebacks: errors of any other class than the package's own.
    """

    n: int = 0
    n_refused: int = 0
    lost: list[str] = field(default_factory=list)
    hung: list[str] = field(default_factory=list)
    ran: list[str] = field(default_factory=list)
    tracebacks: list[str] = field(default_factory=list)

    def add(self, other: "Outcomes") -> None:
        """Adds the counts of a further part."""
        self.n, self.n_refused = self.n + other.n, self.n_refused + other.n_refused
        for name in ("lost", "hung", "ran", "tracebacks"):
            getattr(self, name).extend(getattr(other, name))

    @property
    def is_clean(self) -> bool:
        """Whether nothing went wrong."""
        return not (self.lost or self.hung or self.ran or self.tracebacks)

    def summary(self) -> str:
        """The last line that a fuzzer prints."""
        counts = (len(self.lost), len(self.hung), len(self.ran), len(self.tracebacks))
        return "{} lost, {} hung, {} ran, {} tracebacks".format(*counts)

    def details(self) -> Iterator[str]:
        """One line per thing that went wrong, kinds first."""
        for name in ("lost", "hung", "ran", "tracebacks"):
            for text, count in Counter(getattr(self, name)).most_common(20):
                yield f"{name} ({count} times): {text}"


def tried(outcomes: Outcomes, label: str, read: Callable[[], str | None], canary: Path) -> None:
    """Runs one reader on one input.

    Args:
        outcomes: takes the result.
        label: what was done to which input, for messages.
        read: returns what is wrong with its result, or None.
        canary: a file that only code in the input would make.
    """
    outcomes.n += 1
    started_s = time.monotonic()
    try:
        wrong = read()
        if wrong:
            outcomes.lost.append(f"{label}: {wrong}")
    except LoopjaxError:
        outcomes.n_refused += 1
    except Exception as error:  # noqa: BLE001 - what is looked for
        outcomes.tracebacks.append(f"{label}: {type(error).__name__}: {str(error)[:100]}")
    if canary.exists():
        canary.unlink()
        outcomes.ran.append(label)
    if time.monotonic() - started_s > HANG_S:
        outcomes.hung.append(label)


Work = Callable[[Outcomes, int, int, Path], None]  # adds to outcomes: inputs, seed, scratch folder


def in_parts(work: Work, n: int, seed: int, n_parts: int = 2) -> Outcomes:
    """Does the work in processes of their own; one that dies or hangs is counted, not met.

    Args:
        work: tries `n` inputs with a seed in a folder that is empty and goes away afterwards.
        n: inputs in all.
        seed: of the whole run.
        n_parts: processes side by side.
    """
    memory = Path("/dev/shm")
    place = memory if os.access(memory, os.W_OK) else None
    context = multiprocessing.get_context("spawn")
    total = Outcomes()
    with (
        tempfile.TemporaryDirectory(prefix="loopjax-fuzz-", dir=place) as folder,
        context.Pool(n_parts) as pool,
    ):
        shares = [n // n_parts + (i < n % n_parts) for i in range(n_parts)]
        tasks = []
        for i, share in enumerate(shares):
            scratch = Path(folder) / f"part-{i}"
            scratch.mkdir()
            tasks.append(pool.apply_async(_part, (work, share, seed + i, scratch)))
        for i, task in enumerate(tasks):
            try:
                total.add(task.get(timeout=min(LIMIT_S, 60 + 0.5 * n)))
            except multiprocessing.TimeoutError:
                total.hung.append(f"part {i}, seed {seed + i}")
    return total


def _part(work: Work, n: int, seed: int, folder: Path) -> Outcomes:
    """One process's part, under a limit of memory and without a log."""
    if os.name == "posix":
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    logging.disable(logging.CRITICAL)
    outcomes = Outcomes()
    work(outcomes, n, seed, folder)
    return outcomes


def mutated(raw: bytes, rng: random.Random) -> tuple[str, bytes]:
    """One damage of a file's bytes, with its name."""
    kind = rng.choice(("flip", "flip", "flip", "cut", "zero", "insert", "swap", "number", "empty"))
    at = rng.randrange(len(raw)) if raw else 0
    size = rng.choice((1, 4, 16, 256))
    if kind == "flip" and raw:
        return kind, raw[:at] + bytes([raw[at] ^ (1 << rng.randrange(8))]) + raw[at + 1 :]
    if kind == "cut":
        return kind, raw[:at]
    if kind == "zero":
        return kind, raw[:at] + bytes(min(size, len(raw) - at)) + raw[at + size :]
    if kind == "insert":
        return kind, raw[:at] + rng.randbytes(size) + raw[at:]
    if kind == "swap":
        other = rng.randrange(len(raw)) if raw else 0
        a, b = sorted((at, other))
        return kind, raw[:a] + raw[b : b + size] + raw[a + size : b] + raw[a : a + size] + raw[
            b + size :
        ]
    if kind == "number":
        value = rng.choice((0, 1, 255, 2**31 - 1, 2**32 - 1, 2**63 - 1, 2**64 - 1))
        return kind, raw[:at] + value.to_bytes(8, rng.choice(("little", "big"))) + raw[at + 8 :]
    return "empty", b""


def command_line(work: Work, description: str) -> int:
    """Runs a fuzzer as its options say, prints what went wrong, and returns the exit code."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--n", type=int, default=2000, help="inputs")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    started_s = time.monotonic()
    result = in_parts(work, options.n, options.seed)
    print("\n".join(result.details()))
    print(f"{result.n} inputs, {result.n_refused} refused, {time.monotonic() - started_s:.0f} s")
    print(result.summary())
    return int(not result.is_clean)
