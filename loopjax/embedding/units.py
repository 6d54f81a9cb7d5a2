"""Units of work: handed out loop by loop, collected row by row, written whole.

`SharedUnits` is both ends of a worker's chain: the manifest that decoders draw from, and the sink
that finished rows end in. A unit's shard appears once all of its loops have come out.
"""

import logging
import random
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from loopjax.audio.loop import Failure, Loop
from loopjax.audio.sources.source import Source
from loopjax.audio.sources.unit import Unit
from loopjax.embedding.leases import Leases
from loopjax.errors import HeldError, UserError
from loopjax.io import locked
from loopjax.store.resume import prepare
from loopjax.store.schema import Place, StoreRow
from loopjax.store.units import WORKERS, Plan, UnitFiles, require_plan, write_plan

log = logging.getLogger(__name__)

LEASES = "leases"  # folder beside the plan
JOIN_S = 60.0  # that joining may have to wait for others that join
EXPIRE_S = 60.0
UNIT_FILES = 4096
OPEN_UNITS = 3  # whose last loops may still be on their way
POLL_S = 0.02
LOOK_S = 1.0  # between two looks at what the others do


@dataclass
class _Open:
    """A unit whose loops are on their way."""

    places: dict[str, int] = field(default_factory=dict)  # key -> place in the unit
    rows: list[StoreRow] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    replaced: dict[Path, list[str]] = field(default_factory=dict)  # older shard -> keys in it
    moved: dict[Path, dict[str, Place]] = field(default_factory=dict)  # the same, and where to
    n_out: int = 0
    all_listed: bool = False


class SharedUnits:
    """The units of a corpus that this worker gets hold of."""

    def __init__(
        self,
        corpus: Source,
        plan: Plan,
        files: UnitFiles,
        leases: Leases,
        slice_of: tuple[int, int] | None = None,
    ):
        """Holds no unit yet.

        Args:
            corpus: what to embed.
            plan: says how it is cut into units.
            files: the store's side.
            leases: shared with all workers.
            slice_of: (i, n): only every n-th unit, from the i-th; None = all.
        """
        self._corpus, self._plan = corpus, plan
        self._files, self._leases = files, leases
        self._slice = slice_of or (0, 1)
        self._open: dict[int, _Open] = {}
        self._done: set[int] = set()  # by this worker
        self._unit_of: dict[str, int] = {}  # of the loops on their way
        self._lock = threading.Lock()
        self._thread = ThreadPoolExecutor(1, "unit-writer")  # the device does not wait for disks
        self._writing: dict[int, Future[None]] = {}
        self._stopped = threading.Event()
        self.is_waiting = False  # for loops to come out, or for other workers

    def loops(self) -> Iterator[Loop | Failure | None]:
        """Every loop of every unit that this worker gets, until all are done; None before waits."""
        start = random.Random().randrange(self._plan.n_units)  # workers begin apart
        while not self._stopped.is_set():
            missing = self._missing()
            if not missing:
                return
            leased = self._leases.remove_expired()
            with self._lock:  # a lease may be lost while its unit is still on its way here
                mine = set(self._open)
            free = {n for n in missing - mine if lease_name(n) not in leased}
            for unit in self._from(start, free):
                while len(self._open) >= OPEN_UNITS and not self._stopped.is_set():
                    yield None
                    self._wait(POLL_S)
                if self._stopped.is_set():
                    return
                if self._take(unit.number):
                    yield from self._listed(unit)
            if not free:
                if self._slice[1] > 1 and not self._open:
                    return  # others have the rest of the slice
                yield None
                self._wait(LOOK_S)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Ends `loops`, which another thread may be waiting in."""
        self._stopped.set()

    def add(self, row: StoreRow, replaces: Path | None = None) -> None:
        """Takes an embedded loop."""
        with self._lock:
            unit = self._open[self._unit_of[row.key]]
            unit.rows.append(row)
        self._came_out(row.key, replaces)

    def add_failure(self, failure: Failure, replaces: Path | None = None) -> None:
        """Takes a rejected input."""
        with self._lock:
            unit = self._open[self._unit_of[failure.key]]
            unit.failures.append(failure)
        self._came_out(failure.key, replaces)

    def move(self, part: Path, key: str, place: Place, replaces: Path | None = None) -> None:
        """Takes a new place for the row with this key in an older shard."""
        with self._lock:
            unit = self._open[self._unit_of[place.key]]
            unit.moved.setdefault(part, {})[key] = place
        self._came_out(place.key, replaces)

    def skip(self, key: str) -> None:
        """Takes note of a loop that the store holds already."""
        self._came_out(key, None)

    def keep_alive(self) -> None:
        """Has complete units written, and tells the others that this worker lives.

        Raises:
            WriteError: a shard could not be written.
        """
        with self._lock:
            complete = [
                (number, unit)
                for number, unit in self._open.items()
                if unit.all_listed and unit.n_out == len(unit.places)
            ]
        for number, unit in complete:
            if number not in self._writing:
                self._writing[number] = self._thread.submit(self._write, number, unit)
        for number in [number for number, write in self._writing.items() if write.done()]:
            self._writing.pop(number).result()
            self._leases.release(lease_name(number))
            with self._lock:
                self._done.add(number)
                for key in self._open.pop(number).places:
                    del self._unit_of[key]
        self._leases.beat()

    def finish(self) -> None:
        """Waits until all complete units are written.

        Raises:
            WriteError: a shard could not be written.
        """
        self.keep_alive()
        wait(self._writing.values())
        self.keep_alive()

    def _write(self, number: int, unit: _Open) -> None:
        unit.rows.sort(key=lambda row: unit.places[row.key])
        unit.failures.sort(key=lambda failure: unit.places[failure.key])
        self._files.write(number, unit.rows, unit.failures, unit.replaced, unit.moved)

    def _missing(self) -> set[int]:
        """Units of this worker's slice that nobody has finished."""
        i, n = self._slice
        return set(range(i, self._plan.n_units, n)) - self._files.finished() - self._done

    def _from(self, start: int, numbers: set[int]) -> Iterator[Unit]:
        """These units in order, round from `start`."""
        late = [number for number in numbers if number >= start]
        for some in (set(late), numbers - set(late)):
            if some:
                for unit in self._corpus.units(self._plan.unit_loops):
                    if unit.number in some:
                        yield unit
                    if unit.number >= max(some):
                        break

    def _take(self, number: int) -> bool:
        name = lease_name(number)
        if not self._leases.take(name):
            return False
        if self._files.is_finished(number):  # since it was last looked at
            self._leases.release(name)
            return False
        return True

    def _listed(self, unit: Unit) -> Iterator[Loop | Failure]:
        opened = _Open()
        with self._lock:
            self._open[unit.number] = opened
        for item in unit.loops():
            with self._lock:
                opened.places[item.key] = len(opened.places)
                self._unit_of[item.key] = unit.number
            yield item
        opened.all_listed = True

    def _came_out(self, key: str, replaces: Path | None) -> None:
        with self._lock:
            unit = self._open[self._unit_of[key]]
            unit.n_out += 1
            if replaces is not None:
                unit.replaced.setdefault(replaces, []).append(key)

    def _wait(self, seconds: float) -> None:
        self.is_waiting = True
        self._stopped.wait(seconds)
        self.is_waiting = False


def join(folder: Path, plan: Plan, metadata: dict[str, str], expire_s: float) -> Leases:
    """Joins the workers of a store, or begins a new plan where nobody is at work.

    Raises:
        UserError: others are at work on another plan, a run of its own holds the store, or the
            store was made with other settings.
        WriteError: the folder cannot be written.
    """
    leases = Leases(folder / WORKERS / LEASES, expire_s)
    give_up_s = time.monotonic() + JOIN_S
    while True:
        if leases.present():
            try:
                require_plan(folder, plan)
            except UserError:
                if not leases.all_dead():
                    raise
                continue
            leases.take(leases.name)
            return leases
        try:
            with locked(folder):
                if not leases.present():
                    prepare(folder, metadata)
                    write_plan(folder, plan)
                    leases.take(leases.name)
                    return leases
        except HeldError:  # by another worker that joins, or by a run of its own
            if time.monotonic() > give_up_s:
                raise
            time.sleep(POLL_S)


def require_no_workers(folder: Path) -> None:
    """Makes sure that no worker is at work in a store; leases of dead ones are removed.

    Raises:
        UserError: somebody is.
    """
    place = folder / WORKERS / LEASES
    if not place.is_dir():
        return
    leases = Leases(place, EXPIRE_S)
    if leases.present():
        log.warning("%s has leases of workers; looking whether they are alive", folder)
    if not leases.all_dead():
        raise UserError(f"workers are writing {folder}; join them with --worker, or wait for them")


def lease_name(number: int) -> str:
    """The name of a unit's lease."""
    return f"unit-{number:06d}"
