"""What a page lists beside the ranking: copies, loops in the wrong folder, reasons."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from loopjax.errors import UserError
from loopjax.io import write_json
from loopjax.json_files import read_json
from loopjax.report.data import Lists, Told
from loopjax.report.loops import PageLoops
from loopjax.report.tables import number

BANDS = ((250.0, "low band"), (2000.0, "middle band"), (float("inf"), "high band"))
REASONS_NAME = "reasons.json"


@dataclass(frozen=True)
class Reason:
    """Where a loop stands out: the stretch and the band whose muting lowers its score most.

    Attributes:
        start_s: of the stretch; None where muting no stretch lowers the score.
        end_s: of the stretch.
        low_hz: of the band; None where muting no band lowers the score.
        high_hz: of the band.
    """

    start_s: float | None
    end_s: float | None
    low_hz: float | None
    high_hz: float | None


def write_reasons(reasons: Mapping[str, Reason], folder: Path) -> None:
    """Writes reasons by the ids of their loops beside the scores of a run.

    Raises:
        WriteError: the file cannot be written.
    """
    write_json(folder / REASONS_NAME, {key: asdict(reason) for key, reason in reasons.items()})


def read_reasons(folder: Path) -> dict[str, Reason]:
    """Reads what `write_reasons` wrote; nothing where there is no such file.

    Raises:
        UserError: the file is damaged.
    """
    file = folder / REASONS_NAME
    if not file.is_file():
        return {}
    try:
        return {key: Reason(**values) for key, values in read_json(file).items()}
    except (ValueError, TypeError, AttributeError, OSError) as error:
        raise UserError(f"{file} is unreadable ({error}): delete it") from None


def reason_text(reason: Reason | None, sounds_like: str) -> str:
    """Such as "high band, 1.2 to 1.6 s; sounds like Bass/Sub"."""
    parts = []
    if reason is not None and reason.low_hz is not None and reason.high_hz is not None:
        middle_hz = (max(reason.low_hz, 20.0) * reason.high_hz) ** 0.5
        parts.append(next(words for end_hz, words in BANDS if middle_hz < end_hz))
    if reason is not None and reason.start_s is not None and reason.end_s is not None:
        digits = 1 if reason.end_s - reason.start_s >= 0.1 else 2
        parts.append(f"{reason.start_s:.{digits}f} to {reason.end_s:.{digits}f}\u00a0s")
    like = f"sounds like {sounds_like}" if sounds_like else ""
    return "; ".join(filter(None, (", ".join(parts), like)))


@dataclass(frozen=True)
class Curated:
    """What was found out about a store.

    Attributes:
        duplicates: as `loopjax.library.dedup` gives them.
        mislabelled: as `loopjax.library.mislabelled` gives them.
        notes: sentences on what was not looked for.
    """

    duplicates: pa.Table | None = None
    mislabelled: pa.Table | None = None
    notes: tuple[str, ...] = ()


def make_lists(loops: PageLoops, curated: Curated, reasons: Mapping[str, Reason]) -> Lists:
    """Fills the lists of a page.

    Args:
        loops: with their nearest loops.
        curated: tables with the ids of loops.
        reasons: by id.
    """
    ids = loops.ranking.ids
    texts = {
        row: reason_text(reasons.get(ids[row].as_py()), loops.sounds_like(row))
        for row in loops.near
    }
    rows = dict(zip(ids.to_pylist(), range(len(ids)), strict=True))
    return Lists(
        typical=loops.typical(),
        duplicates=_told(curated.duplicates, rows, _evidence),
        mislabelled=_told(curated.mislabelled, rows, _doubt),
        reasons={row: text for row, text in texts.items() if text},
    )


def _told(
    table: pa.Table | None, rows: Mapping[str, int], words: Callable[[dict[str, Any]], str]
) -> list[Told]:
    found = [] if table is None else table.to_pylist()
    return [
        Told(rows[row["id"]], words(row), row.get("mark", "")) for row in found if row["id"] in rows
    ]


def _evidence(row: dict[str, Any]) -> str:
    """Why a loop counts as a copy."""
    words = {
        "content": "the same bytes",
        "sound": f"sounds the same (correlation\u00a0{number(row['correlation'])})",
        "cosine": f"embeddings alike (cosine\u00a0{number(row['cosine'], 4)})",
    }
    return f"set {row['set']}: {words[row['evidence']]}"


def _doubt(row: dict[str, Any]) -> str:
    """Why a loop may lie in a wrong folder."""
    p_value = number(row["p_value"], 2)
    return f"in {row['label']}, sounds like {row['sounds_like']} (p\u00a0{p_value})"
