"""The last stage: finished loops into a store or into memory, counted."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

import numpy as np

from loopjax.audio.loop import Failure, Loop
from loopjax.embedding.deduplicate import Embedded, Failed, Finished, Kept
from loopjax.embedding.stored import Moved
from loopjax.errors import TooManyRejectedError
from loopjax.store.failures import table_of_failures
from loopjax.store.read import Embeddings
from loopjax.store.schema import (
    EMBEDDING,
    PLACE_FIELDS,
    Place,
    StoreRow,
    shard_schema,
    table_of_rows,
)


@dataclass(frozen=True)
class EmbedSummary:
    """What a run did."""

    n_embedded: int = 0
    n_failed: int = 0
    n_skipped: int = 0  # already in the store
    n_moved: int = 0  # of these, found at another place
    n_unmet: int = 0  # rows of the store that none of these files is
    n_pruned: int = 0  # of these, dropped because their files are gone
    n_duplicates: int = 0  # embedded without computing: same bytes as another file
    n_flagged: int = 0
    wait_fraction: float = 0.0  # of the run's time, in which the device had nothing to do
    duration_s: float = 0.0
    files_per_s: float = 0.0
    reasons: dict[str, int] = field(default_factory=dict)  # of the failures
    missing_limits: tuple[str, ...] = ()  # of the decoders, which this system could not set

    def outcome(self) -> dict[str, int]:
        """How many inputs were rejected, by reason, and how many were not ("")."""
        return {**self.reasons, "": self.n_embedded + self.n_skipped}

    def lines(self, store: str) -> list[str]:
        """What happened to a store, in one line, and a line each for what else is to be known."""
        rate = f" ({self.files_per_s:.1f} files/s)" if self.n_embedded else ""
        lines = [f"{store}: {self.n_embedded} loops embedded in {self.duration_s:.1f} s{rate}"]
        if self.n_skipped:
            moved = f", {self.n_moved} of them at another place" if self.n_moved else ""
            lines.append(f"{self.n_skipped} were there already{moved}")
        if self.n_duplicates:
            lines.append(f"{self.n_duplicates} are copies of others, computed once")
        if self.n_flagged:
            lines.append(f"{self.n_flagged} are flagged in the column `flags`")
        if self.n_failed:
            reasons = ", ".join(f"{n} {reason}" for reason, n in sorted(self.reasons.items()))
            lines.append(f"{self.n_failed} rejected ({reasons}): loopjax store failures {store}")
        if self.missing_limits:
            lines.append(f"decoders ran without limits of {', '.join(self.missing_limits)}")
        return lines


class Sink(Protocol):
    """Where finished rows go."""

    def add(self, row: StoreRow, replaces: Path | None = None) -> None:
        """Takes an embedded loop; `replaces` is the shard with an older row of it."""
        ...

    def add_failure(self, failure: Failure, replaces: Path | None = None) -> None:
        """Takes a rejected input."""
        ...

    def move(self, part: Path, key: str, place: Place, replaces: Path | None = None) -> None:
        """Takes a new place for the row with this key in a shard."""
        ...

    def skip(self, key: str) -> None:
        """Takes note of a loop whose row is there already."""
        ...


class Memory:
    """A sink that keeps everything."""

    def __init__(self):
        self.rows: list[StoreRow] = []
        self.failures: list[Failure] = []

    def add(self, row: StoreRow, replaces: Path | None = None) -> None:
        """Takes an embedded loop."""
        self.rows.append(row)

    def add_failure(self, failure: Failure, replaces: Path | None = None) -> None:
        """Takes a rejected input."""
        self.failures.append(failure)

    def move(self, part: Path, key: str, place: Place, replaces: Path | None = None) -> None:
        """Takes a new place for a row."""
        self.rows = [replace(r, **vars(place)) if r.key == key else r for r in self.rows]

    def skip(self, key: str) -> None:
        """Nothing is there beforehand."""

    def embeddings(self, metadata: dict[str, str]) -> Embeddings:
        """All rows, sorted by path; at least one."""
        rows = sorted(self.rows, key=lambda row: (row.path, row.id))
        schema = shard_schema(len(rows[0].embedding), metadata)
        table = table_of_rows(rows, schema).drop_columns([EMBEDDING]).replace_schema_metadata(None)
        return Embeddings(
            np.stack([row.embedding for row in rows]),
            table,
            metadata,
            table_of_failures(self.failures),
        )


def check_budget(outcomes: Iterable[Mapping[str, int]], max_failures: float, store: Path) -> None:
    """Ends a run that rejected too much.

    Args:
        outcomes: of its processes, see `EmbedSummary.outcome`.
        max_failures: the fraction of inputs that may be rejected.
        store: for the message.

    Raises:
        TooManyRejectedError: more were.
    """
    rejected = sum(map(Counter, outcomes), Counter())
    n_inputs = rejected.total()
    del rejected[""]
    n_failed = rejected.total()
    if n_inputs and n_failed / n_inputs > max_failures:
        reasons = ", ".join(f"{n} {reason}" for reason, n in sorted(rejected.items()))
        raise TooManyRejectedError(
            f"{n_failed} of {n_inputs} inputs were rejected ({reasons}), more than "
            f"max_failures={max_failures:g} allows; list them with `loopjax store failures {store}`"
        )


class Writer:
    """Turns finished loops into a sink's rows and keeps count."""

    def __init__(self, sink: Sink, strict: bool):
        """Fills `sink`; with `strict` the first rejected input is an error."""
        self.n_embedded = self.n_failed = self.n_flagged = 0
        self.reasons: Counter[str] = Counter()
        self._sink, self._strict = sink, strict

    def write(self, loop: Finished) -> None:
        """Takes one loop: with its embedding, with its new place, or why there is none.

        Raises:
            TooManyRejectedError: a rejected input, if strict.
        """
        if isinstance(loop, Failed):
            self._reject(loop)
        elif isinstance(loop, Kept):
            self._sink.skip(loop.key)
        elif isinstance(loop, Moved):
            self._sink.move(loop.shard, loop.key, _place(loop.loop), loop.replaces)
        elif not np.isfinite(loop.embedding).all():
            self._reject(Failed(_not_finite(loop), loop.replaces))
        else:
            self._sink.add(_store_row(loop), loop.replaces)
            self.n_embedded += 1
            self.n_flagged += bool(loop.row.info.flags)

    def _reject(self, loop: Failed) -> None:
        failure = loop.failure
        self._sink.add_failure(failure, loop.replaces)
        self.n_failed += 1
        self.reasons[failure.reason] += 1
        if self._strict:
            raise TooManyRejectedError(
                f"{failure.path}: {failure.reason} ({failure.message}); stopped because of --strict"
            )


def _not_finite(loop: Embedded) -> Failure:
    message = "the encoder returned NaN or infinity"
    return Failure.of(loop.row.loop, "encode", "non_finite", message)


def _place(loop: Loop) -> Place:
    return Place(**{name: getattr(loop, name) for name in PLACE_FIELDS})


def _store_row(item: Embedded) -> StoreRow:
    loop, info = item.row.loop, item.row.info
    return StoreRow(
        id=item.id,
        key=loop.key,
        path=loop.path,
        path_bytes=loop.path_bytes,
        group=loop.group,
        sha256=info.sha256,
        size_bytes=loop.size_bytes,
        mtime_ns=loop.mtime_ns,
        sample_rate_hz=info.source_rate_hz,
        channels=info.channels,
        n_frames=info.n_frames,
        duration_s=info.duration_s,
        subtype=info.subtype,
        flags=list(info.flags),
        crop_std=item.crop_std,
        embedding=item.embedding,
        columns=loop.columns,
    )
