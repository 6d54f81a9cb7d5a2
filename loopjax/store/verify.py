"""Reading all of a store, to say what is wrong with it."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from loopjax.errors import UserError
from loopjax.store.failures import failure_files, read_failure_file
from loopjax.store.parquet import open_parquet
from loopjax.store.read import matrix_of, part_files
from loopjax.store.schema import IDENTITY_KEYS, read_metadata


@dataclass
class StoreCheck:
    """What a store holds and what is wrong with it.

    Attributes:
        n_rows: embedded loops in sound shards.
        n_failures: rejected inputs in sound lists.
        n_parts: shards, sound or not.
        faults: one sentence each; empty for a sound store.
    """

    n_rows: int = 0
    n_failures: int = 0
    n_parts: int = 0
    faults: list[str] = field(default_factory=list)


def verify_store(folder: Path) -> StoreCheck:
    """Compares every byte of a store with its checksums, and the shards with one another.

    Damaged files are marked by their time, where that is allowed, so that the next `loopjax embed`
    sets them aside and redoes their rows.

    Raises:
        UserError: no store there.
    """
    parts = part_files(folder)
    if not parts and not failure_files(folder):
        raise UserError(f"{folder} holds no part-*.parquet; run `loopjax embed SRC -o {folder}`")
    check = StoreCheck(n_parts=len(parts))
    for path in failure_files(folder):
        try:
            check.n_failures += len(read_failure_file(open_parquet(path)))
        except UserError as error:
            check.faults.append(str(error))
    holders: dict[str, list[str]] = {}
    identities: dict[Path, dict[str, str]] = {}
    for part in parts:
        try:
            file = open_parquet(part)
            table = file.read()
            check.n_rows += len(matrix_of(table, part))
        except UserError as error:
            check.faults.append(str(error))
            continue
        identities[part] = read_metadata(file.schema)
        if "id" in table.schema.names:
            for row_id in table["id"].to_pylist():
                holders.setdefault(row_id, []).append(part.name)
    check.faults += _foreign_parts(identities)
    check.faults += [
        f"{folder}: loop {row_id} is there more than once (in {', '.join(sorted(set(names)))})"
        for row_id, names in holders.items()
        if len(names) > 1
    ]
    return check


def _foreign_parts(identities: dict[Path, dict[str, str]]) -> Iterator[str]:
    """Shards of another encoder or of other settings than most."""
    kinds = {part: tuple(found.get(k) for k in IDENTITY_KEYS) for part, found in identities.items()}
    if len(set(kinds.values())) < 2:
        return
    usual = Counter(kinds.values()).most_common(1)[0][0]
    for part, kind in kinds.items():
        names = [k for k, a, b in zip(IDENTITY_KEYS, kind, usual, strict=True) if a != b]
        if names:
            yield f"{part} comes from another encoder or other settings ({', '.join(names)})"
