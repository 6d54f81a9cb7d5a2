"""A store that several workers fill: one shard per unit of work, written whole.

A unit is finished when its shard is there, or, where it has no rows, its list of rejected inputs:
there is no second record that could disagree. Workers with the same sources and settings use the
same names and write the same rows, so it does no harm if two of them do the same unit.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from loopjax.errors import UserError
from loopjax.io import write_json
from loopjax.io.locks import locked_file
from loopjax.io.remote import listed
from loopjax.json_files import read_json
from loopjax.store.failures import table_of_failures, unit_failures, write_failures
from loopjax.store.parquet import write_parquet
from loopjax.store.schema import (
    IDENTITY_KEYS,
    Place,
    Project,
    Rejected,
    StoreRow,
    shard_schema,
    table_of_rows,
)
from loopjax.store.write import REWRITE_LOCK_NAME, drop_rows, move_rows

WORKERS = ".workers"  # folder of a store: the plan, and below it the leases
_PLAN = "plan.json"


@dataclass(frozen=True)
class Plan:
    """What the workers of one store must agree on.

    Attributes:
        sources: digest of all loops that are listed.
        n_units: number of units.
        unit_loops: loops of a unit.
        identity: of the embeddings (`IDENTITY_KEYS`).
    """

    sources: str
    n_units: int
    unit_loops: int
    identity: Mapping[str, str]

    @property
    def name(self) -> str:
        """Part of the names of its shards."""
        text = json.dumps(asdict(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:8]


def plan_of(digests: Sequence[str], unit_loops: int, metadata: Mapping[str, str]) -> Plan:
    """The plan of sources whose units have these digests."""
    sources = hashlib.sha256("".join(digests).encode()).hexdigest()
    identity = {key: metadata[key] for key in IDENTITY_KEYS}
    return Plan(sources, len(digests), unit_loops, identity)


def write_plan(folder: Path, plan: Plan) -> None:
    """Makes a plan the one that workers join.

    Raises:
        WriteError: the folder cannot be written.
    """
    write_json(folder / WORKERS / _PLAN, asdict(plan))


def require_plan(folder: Path, plan: Plan) -> None:
    """Refuses to work beside workers that do something else.

    Raises:
        UserError: says what differs.
    """
    try:
        theirs = read_json(folder / WORKERS / _PLAN)
    except (OSError, ValueError):
        theirs = {}
    mine = asdict(plan)
    words = {
        "identity": "another encoder or other settings",
        "unit_loops": "another --unit-files",
        "n_units": "another number of files",
        "sources": "other files under the sources",
    }
    differing = [word for name, word in words.items() if theirs.get(name) != mine[name]]
    if differing:
        raise UserError(
            f"workers with {differing[0]} are writing {folder}; use the same command with the same "
            "files everywhere, or wait until they are done"
        )


class UnitFiles:
    """The shards of a plan's units."""

    def __init__(
        self,
        folder: Path,
        metadata: dict[str, str],
        plan: Plan,
        project: Project | None = None,
    ):
        """Reads and writes nothing yet; for `project` see `table_of_rows`."""
        self._folder, self._metadata, self._project = folder, metadata, project
        self._schema = shard_schema(int(metadata["embedding_dim"]), metadata)
        self._prefix = f"part-u{plan.name}-"
        self._name = plan.name

    def is_of_unit(self, part: Path) -> bool:
        """Whether a shard belongs to this plan."""
        return part.name.startswith(self._prefix)

    def finished(self) -> set[int]:
        """Numbers of the finished units."""
        rowless = self._failures_file(0, has_rows=False).name.split("000000")
        patterns = ((self._prefix, ".parquet"), (rowless[0], rowless[1]))
        return {
            int(path.name[len(start) : -len(end)])
            for start, end in patterns
            for path in listed(self._folder, f"{start}*{end}")
            if path.name[len(start) : -len(end)].isdigit()
        }

    def is_finished(self, number: int) -> bool:
        """Whether a unit is finished."""
        rowless = self._failures_file(number, has_rows=False)
        return self._part(number).exists() or rowless.exists()

    def write(
        self,
        number: int,
        rows: Sequence[StoreRow],
        failures: Sequence[Rejected],
        replaced: Mapping[Path, Sequence[str]],
        moved: Mapping[Path, Mapping[str, Place]],
    ) -> None:
        """Writes a unit, unless somebody did in the meantime.

        Args:
            number: of the unit.
            rows: its embedded loops, in the order of the manifest.
            failures: its rejected inputs.
            replaced: keys whose rows in older shards are outdated.
            moved: new places of rows in older shards, by their keys there.

        Raises:
            WriteError: disk full and the like.
        """
        if self.is_finished(number):
            return
        for part, keys in replaced.items():  # a kill from here on only undoes these rows
            with locked_file(self._folder / REWRITE_LOCK_NAME):
                drop_rows(part, keys)
        for part, places in moved.items():
            with locked_file(self._folder / REWRITE_LOCK_NAME):
                move_rows(part, places)
        listed = self._failures_file(number, has_rows=bool(rows))
        if failures or not rows:
            write_failures(table_of_failures(failures), listed, self._metadata)
        else:
            listed.unlink(missing_ok=True)  # of a worker that was killed
        if rows:
            write_parquet(table_of_rows(rows, self._schema, self._project), self._part(number))

    def _part(self, number: int) -> Path:
        return self._folder / f"{self._prefix}{number:06d}.parquet"

    def _failures_file(self, number: int, *, has_rows: bool) -> Path:
        return unit_failures(self._folder, f"{self._name}-{number:06d}", has_rows)
