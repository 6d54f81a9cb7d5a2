"""What a corpus takes on 1 to 1,024 hosts that may be preempted, simulated from measured costs.

    python scripts/bench/simulate.py                 # the table of docs/scaling.md
    python scripts/bench/simulate.py --validate      # a run on this machine beside its simulation

A host is what one `loopjax embed --worker` has: decoding cores, one feeding process, one device and
one writer. These stages overlap, so a host's rate is that of its slowest one; files also cannot
come faster than the storage that all hosts share delivers them. Hosts take units of files one
after the other, at the same time as all others; a preempted one loses the unit at hand, its lease
expires, and another host of its kind starts after a while. Costs per file are arguments;
their defaults are measured (`decoding.py`, `packed.py`, `gpu_check.jsonl`), and every line names
the stage that bounds it.
"""

import heapq
import json
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from measure import arguments, emit, rounded

HOSTS = (1, 8, 64, 1024)


@dataclass(frozen=True)
class Costs:
    """What a file costs each stage, and what a host is.

    Attributes:
        decode_ms: of one core; all cores share this work.
        feed_ms: Python's part in the process that fills batches, which is one per device.
        device_per_s: clips that front end and encoder finish in a second.
        write_ms: of the writer's thread.
        file_mb: read per file.
        cores: for decoding.
        start_s: until a new worker embeds: imports, listing, compiled programs from the cache.
    """

    decode_ms: float = 1.4  # decoding.py, 4-s stereo WAV, with the copies of the feeding process
    feed_ms: float = 0.062  # packed.py
    device_per_s: float = 13_900.0  # gpu_check: encoder 18,100/s and front end 60,000/s in turns
    write_ms: float = 0.03
    file_mb: float = 0.7
    cores: int = 16
    start_s: float = 30.0

    def rates(self) -> dict[str, float]:
        """Files per second of each stage of a host."""
        return {
            "decode": 1000 * self.cores / self.decode_ms if self.decode_ms else np.inf,
            "feed": 1000 / self.feed_ms,
            "device": self.device_per_s,
            "writer": 1000 / self.write_ms if self.write_ms else np.inf,
        }


@dataclass(frozen=True)
class Outcome:
    """What a simulated run took.

    Attributes:
        hours: until the last unit was written.
        bound: the stage that bounded it.
        lost: fraction of the work that was done twice.
        busy: fraction of the hosts' time in which they embedded.
    """

    hours: float
    bound: str
    lost: float
    busy: float


def simulate(
    n_files: int,
    n_hosts: int,
    costs: Costs,
    *,
    unit_files: int = 4096,
    storage_gb_per_s: float = 100.0,
    preempted_per_day: float = 0.0,
    lease_s: float = 60.0,
    replaced_s: float = 300.0,
    seed: int = 0,
) -> Outcome:
    """Runs units through hosts; see the top of this file."""
    rng = np.random.default_rng(seed)
    rates = costs.rates() | {"storage": 1000 * storage_gb_per_s / costs.file_mb / n_hosts}
    bound = min(rates, key=lambda stage: rates[stage])
    n_units = -(-n_files // unit_files)
    unit_s = unit_files / rates[bound]
    left, done, lost, ends, busy_s = n_units, 0, 0, 0.0, 0.0
    freed: list[float] = []  # when the leases of lost units expire

    def life_s() -> float:
        return rng.exponential(86_400 / preempted_per_day) if preempted_per_day else np.inf

    hosts = []  # when each is free, and when it is preempted
    for _ in range(n_hosts):
        begins = costs.start_s * float(rng.uniform(1.0, 1.2))
        hosts.append((begins, begins + life_s()))
    heapq.heapify(hosts)
    while done < n_units:
        now, dies = heapq.heappop(hosts)
        if left:
            left -= 1
        elif not freed:
            continue  # the others finish what is left
        elif freed[0] > now:
            heapq.heappush(hosts, (freed[0], dies))
            continue
        else:
            heapq.heappop(freed)
        if now + unit_s <= dies:
            done, ends, busy_s = done + 1, max(ends, now + unit_s), busy_s + unit_s
            heapq.heappush(hosts, (now + unit_s, dies))
            continue
        lost, busy_s, gone = lost + 1, busy_s + max(0.0, dies - now), max(dies, now)
        heapq.heappush(freed, gone + lease_s)
        back = gone + replaced_s + costs.start_s
        heapq.heappush(hosts, (back, back + life_s()))
    return Outcome(ends / 3600, bound, lost / n_units, busy_s / (n_hosts * ends))


def table(costs: dict[str, Costs], n_files: int, preempted_per_day: float, storage: float) -> None:
    """One line per kind of source and number of hosts."""
    for name, cost in costs.items():
        for n_hosts in HOSTS:
            found = simulate(
                n_files,
                n_hosts,
                cost,
                preempted_per_day=preempted_per_day,
                storage_gb_per_s=storage,
            )
            calm = simulate(n_files, n_hosts, cost, storage_gb_per_s=storage)
            emit(
                "simulate",
                f"{n_files:,} loops as {name}, {n_hosts} hosts of one H100 and {cost.cores} cores",
                ours=found.hours,
                unit="hours",
                bound=found.bound,
                files_per_s=round(n_files / found.hours / 3600),
                hours_without_preemption=rounded(calm.hours),
                done_twice=rounded(found.lost),
                busy=rounded(found.busy),
                rates_of_a_host={
                    stage: round(rate) for stage, rate in cost.rates().items() if rate < np.inf
                },
            )


def validate(n_files: int) -> None:
    """Embeds on this machine and compares with the simulation of the same stages.

    Every stage's cost is measured on a fourth of the files. On one machine the stages share the
    cores, so seconds of all cores are compared: those of decoding, feeding, device and writer
    together, which a busy machine changes little.
    """
    from decoding import write_loops

    from loopjax.config import EmbedConfig
    from loopjax.embedding.chain import embed_corpus
    from loopjax.encoders.load import load_encoder

    encoder = load_encoder("log-mel-statistics")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_loops(folder / "all", n_files, "wav", "PCM_16")
        few = folder / "few"
        few.mkdir()
        for file in sorted((folder / "all").iterdir())[: n_files // 4]:
            (few / file.name).write_bytes(file.read_bytes())
        found = {}
        for name in ("few", "few", "all"):  # the first run compiles
            out = folder / f"store-{name}-{time.time_ns()}"
            config = EmbedConfig(batch_size=16, workers=1)
            before, started = _all_cores_s(), time.perf_counter()
            embed_corpus([folder / name], encoder, out, config, progress=False)
            found[name] = _all_cores_s() - before, time.perf_counter() - started
    (few_cpu, few_s), (all_cpu, all_s) = found["few"], found["all"]
    cost = Costs(decode_ms=0, feed_ms=1000 * few_cpu / (n_files // 4), write_ms=0, cores=2)
    cost = replace(cost, device_per_s=np.inf, start_s=0.0)
    told = simulate(n_files, 1, cost, unit_files=max(1, n_files // 64), storage_gb_per_s=1e6)
    emit(
        "simulate",
        f"{n_files} loops on this machine, embedded and simulated",
        ours=3600 * told.hours,
        unit="s of all cores",
        peer=all_cpu,
        peer_name="the run",
        higher_is_better=False,
        target="within a fifth",
        wall_s={"few": rounded(few_s), "all": rounded(all_s)},
    )


def _all_cores_s() -> float:
    import os

    return sum(os.times()[:4])


def main() -> None:
    """Prints the table, or the validation."""
    parser = arguments(__doc__)
    parser.add_argument("--files", type=int, default=100_000_000)
    parser.add_argument("--preempted-per-day", type=float, default=2.0, help="per host")
    parser.add_argument("--storage", type=float, default=100.0, metavar="GB/S", help="of all hosts")
    parser.add_argument("--costs", type=json.loads, default={}, help='JSON, {"decode_ms": 2.0}')
    parser.add_argument("--validate", action="store_true", help="a run on this machine instead")
    args = parser.parse_args()
    if args.validate:
        validate(400)
        return
    kinds = {
        "WAV": Costs(**args.costs),
        "FLAC": Costs(**{"decode_ms": 6.0, "file_mb": 0.35} | args.costs),
        "packed shards": Costs(**{"decode_ms": 0.2, "feed_ms": 0.04, "file_mb": 0.35} | args.costs),
    }
    table(kinds, args.files, args.preempted_per_day, args.storage)


if __name__ == "__main__":
    main()
