"""What a page says, before the template gives it a form: every text, length and place on it."""

import base64
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from loopjax import __version__
from loopjax.evaluation.tables import Evaluation, Table
from loopjax.report.data import Lists
from loopjax.report.facts import Fact, RunFacts
from loopjax.report.histogram import Histogram, histogram
from loopjax.report.inline_svg import InlineFigure
from loopjax.report.loops import PageLoops
from loopjax.report.ranking import Ranking
from loopjax.report.tables import ShownTable, number, shown_table, with_units

MAX_FAILURES = 1000
FAILURE_COLUMNS = ("path", "stage", "reason", "message")


@dataclass(frozen=True)
class Section:
    """An entry of the navigation."""

    id: str
    title: str


@dataclass(frozen=True)
class Tile:
    """A number to print large."""

    label: str
    value: str | None
    is_anomalous: bool = False


@dataclass(frozen=True)
class ColumnHead:
    """A heading of the ranked table, which sorts by it."""

    key: str
    label: str
    title: str
    is_numeric: bool


@dataclass(frozen=True)
class Tab:
    """One list of the page."""

    key: str
    title: str
    count: int


@dataclass(frozen=True)
class EmbeddedClip:
    """Playable audio inside of the page."""

    i: int
    mime_type: str
    base64: str


@dataclass(frozen=True)
class Page:
    """Everything that the template shows, by the name it has there."""

    title: str
    headline: str
    lede: str
    tiles: tuple[Tile, ...]
    histogram: Histogram | None
    sections: tuple[Section, ...]
    n_loops: int
    groups: tuple[str, ...]
    columns: tuple[ColumnHead, ...]
    tabs: tuple[Tab, ...]
    n_points: int
    has_typical: bool
    tables: tuple[ShownTable, ...]
    figures: tuple[InlineFigure, ...]
    failures: ShownTable | None
    failures_text: str
    run_facts: tuple[Fact, ...]
    run_text: str
    clips: tuple[EmbeddedClip, ...]
    notes: tuple[str, ...]
    version: str
    takes_texts: bool


def page_content(
    loops: PageLoops,
    lists: Lists,
    facts: RunFacts,
    evaluation: Evaluation,
    failures: pa.Table,
    figures: Sequence[InlineFigure],
    title: str,
    notes: Sequence[str],
    takes_texts: bool = False,
) -> Page:
    """Puts everything that a page says outside of its lists into words.

    Args:
        loops: with their places and sounds.
        lists: beside the ranking.
        facts: what run.json says.
        evaluation: tables and headline.
        failures: rejected inputs.
        figures: harmless figures.
        title: of the page.
        notes: sentences on what is missing.
        takes_texts: whether loops are found by descriptions; of a live page.
    """
    ranking = loops.ranking
    n, n_flagged = len(ranking.ids), int(ranking.is_anomaly.sum())
    tables = tuple(shown_table(table) for table in evaluation.tables)
    rows = loops.shown_rows()
    sections = (
        ("loops", "Loops", True),
        ("map", "Map", bool(loops.places)),
        ("evaluation", "Evaluation", bool(tables)),
        ("figures", "Figures", bool(figures)),
        ("run", "Run", True),
    )
    tabs = (
        Tab("ranked", "Ranked", n),
        Tab("duplicates", "Duplicates", len(lists.duplicates)),
        Tab("mislabelled", "Mislabelled", len(lists.mislabelled)),
        Tab("rejected", "Rejected inputs", len(failures)),
    )
    return Page(
        title=title,
        headline=with_units(_headline(ranking)),
        lede=with_units(_lede(facts, ranking)),
        tiles=_tiles(n, n_flagged, len(failures), evaluation),
        histogram=histogram(ranking.scores, ranking.threshold),
        sections=tuple(Section(key, title) for key, title, is_there in sections if is_there),
        n_loops=n,
        groups=tuple(sorted({ranking.group_of(row) for row in rows.tolist()} - {""})),
        columns=_columns(ranking),
        tabs=tuple(tab for tab in tabs if tab.count),
        n_points=len(loops.places),
        has_typical=bool(lists.typical),
        tables=tables,
        figures=tuple(figures),
        failures=_failure_table(failures),
        failures_text=_failures_text(len(failures)),
        run_facts=facts.shown,
        run_text=facts.text,
        clips=tuple(
            EmbeddedClip(i, clip.mime_type, base64.b64encode(clip.data).decode())
            for i, row in enumerate(rows.tolist())
            if row in loops.sounds and (clip := loops.sounds[row].clip) and clip.data
        ),
        notes=tuple(map(with_units, notes)),
        version=__version__,
        takes_texts=takes_texts,
    )


def _columns(ranking: Ranking) -> tuple[ColumnHead, ...]:
    among = "the training scores" if ranking.percentiles is not None else "these loops"
    p_value = "Conformal p-value: fraction of normal loops that score at least as high"
    columns = (
        (True, ColumnHead("rank", "#", "Sort by rank", True)),
        (True, ColumnHead("name", "Loop", "Sort by name", False)),
        (True, ColumnHead("percentile", "Percentile", f"Of the score among {among}", True)),
        (True, ColumnHead("score", "Score", "Sort by score, which has no unit", True)),
        (ranking.p_values is not None, ColumnHead("p", "p", p_value, True)),
        (ranking.labels is not None, ColumnHead("label", "Truth", "Label", False)),
        (True, ColumnHead("mark", "Mark", "Sort by mark", False)),
    )
    return tuple(column for is_there, column in columns if is_there)


def _headline(ranking: Ranking) -> str:
    n, n_flagged = len(ranking.ids), int(ranking.is_anomaly.sum())
    if n_flagged == 0:
        return f"None of {n} loops stands out"
    text = f"{n_flagged} of {n} loops sound{'s' if n_flagged == 1 else ''} out of place"
    lowest = _lowest_flagged(ranking)
    return text if lowest is None else f"{text}, above {lowest} % of the training loops"


def _lowest_flagged(ranking: Ranking) -> str | None:
    """The percentile that every flagged loop reaches, as text."""
    if ranking.percentiles is None or not ranking.is_anomaly.any():
        return None
    flagged = ranking.percentiles.filter(pa.array(ranking.is_anomaly))
    if flagged.null_count:
        return None
    lowest = math.floor(10 * float(np.asarray(flagged).min())) / 10
    return f"{lowest:.0f}" if lowest == round(lowest) else f"{lowest:.1f}"


def _lede(facts: RunFacts, ranking: Ranking) -> str:
    detector = ranking.detector or facts.primary
    parts = []
    if detector:
        on = f" on {facts.encoder} embeddings" if facts.encoder else ""
        parts.append(f"Ranked by {detector}{on}.")
    if ranking.percentiles is None and ranking.threshold is not None and ranking.is_anomaly.any():
        fraction = 100 * float(np.mean(ranking.scores <= ranking.threshold))
        parts.append(f"The flagged ones score higher than {fraction:.1f} % of these loops.")
    parts.append("Play them, keep or reject them, and export the decisions.")
    return " ".join(parts)


def _tiles(n: int, n_flagged: int, n_failures: int, evaluation: Evaluation) -> tuple[Tile, ...]:
    tiles = [
        Tile("Loops scored", number(n)),
        Tile("Flagged", f"{100 * n_flagged / n:.1f}\u00a0%", is_anomalous=n_flagged > 0),
    ]
    if n_failures:
        tiles.append(Tile("Rejected inputs", number(n_failures)))
    tiles += [Tile(label, number(value)) for label, value in evaluation.headline.items()]
    return tuple(tiles)


def _failures_text(n: int) -> str:
    told = f"{n} input was rejected and has" if n == 1 else f"{n} inputs were rejected and have"
    listed = f"; the first {MAX_FAILURES} are listed" if n > MAX_FAILURES else ""
    return with_units(f"{told} no score{listed}.")


def _failure_table(failures: pa.Table) -> ShownTable | None:
    if len(failures) == 0:
        return None
    rows = failures.select(list(FAILURE_COLUMNS)).slice(0, MAX_FAILURES).to_pylist()
    return shown_table(Table("Rejected inputs", "", tuple(rows)))
