"""What a page says, before the template gives it a form: every text, length and place on it."""

import base64
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from loopjax import __version__
from loopjax.evaluation.tables import Evaluation, Table
from loopjax.report.facts import Fact, RunFacts
from loopjax.report.histogram import Histogram, histogram
from loopjax.report.inline_svg import InlineFigure
from loopjax.report.loops import PageLoops
from loopjax.report.ranking import Ranking
from loopjax.report.sound import WAVE_COLUMNS
from loopjax.report.tables import ShownTable, number, shown_table

MAX_FAILURES = 100
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
class LoopRow:
    """One loop as the ranked table shows it."""

    i: int
    rank: int
    name: str
    path: str
    group: str
    is_anomaly: bool
    flags: tuple[str, ...]
    audio: str
    wave: str
    picture: str
    score_text: str | None
    bar: float  # percent
    percentile_text: str
    p_text: str
    label_text: str


@dataclass(frozen=True)
class Point:
    """One loop on the map."""

    i: int
    x: float
    y: float
    is_anomaly: bool


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
    rows: tuple[LoopRow, ...]
    typical: tuple[LoopRow, ...]
    has_percentile: bool
    has_p_value: bool
    has_label: bool
    threshold_bar: float | None
    wave_columns: int
    points: tuple[Point, ...]
    map_label: str
    tables: tuple[ShownTable, ...]
    figures: tuple[InlineFigure, ...]
    failures: ShownTable | None
    failures_text: str
    run_facts: tuple[Fact, ...]
    run_text: str
    clips: tuple[EmbeddedClip, ...]
    notes: tuple[str, ...]
    version: str


def page_content(
    page: PageLoops,
    listed: Sequence[int],
    typical: Sequence[int],
    facts: RunFacts,
    evaluation: Evaluation,
    failures: pa.Table,
    figures: Sequence[InlineFigure],
    title: str,
    notes: Sequence[str],
) -> Page:
    """Puts everything that a page shows into words and lengths.

    Args:
        page: the loops, with their places and sounds.
        listed: which of them the ranked table lists.
        typical: which of them show what is normal.
        facts: what run.json says.
        evaluation: tables and headline.
        failures: rejected inputs.
        figures: harmless figures.
        title: of the page.
        notes: sentences on what is missing.
    """
    ranking = page.ranking
    n, n_flagged = len(ranking.ids), int(ranking.is_anomaly.sum())
    tables = tuple(shown_table(table) for table in evaluation.tables)
    points = tuple(
        Point(loop.i, *loop.place, loop.is_anomaly)
        for loop in sorted(page.loops, key=lambda loop: loop.is_anomaly)
        if loop.place is not None
    )
    sections = (
        ("loops", "Loops", True),
        ("map", "Map", bool(points)),
        ("evaluation", "Evaluation", bool(tables)),
        ("figures", "Figures", bool(figures)),
        ("rejected", "Rejected", len(failures) > 0),
        ("run", "Run", True),
    )
    bar = _bar_scale(ranking.scores)
    return Page(
        title=title,
        headline=_headline(n, n_flagged),
        lede=_lede(facts, ranking, len(listed)),
        tiles=_tiles(n, n_flagged, len(failures), evaluation),
        histogram=histogram(ranking.scores, ranking.threshold),
        sections=tuple(Section(key, title) for key, title, is_there in sections if is_there),
        n_loops=n,
        groups=tuple(sorted({loop.group for loop in page.loops if loop.group})),
        columns=_columns(ranking),
        rows=tuple(_row(page, i, bar) for i in listed),
        typical=tuple(_row(page, i, bar) for i in typical),
        has_percentile=ranking.percentiles is not None,
        has_p_value=ranking.p_values is not None,
        has_label=ranking.labels is not None,
        threshold_bar=None if ranking.threshold is None else bar(ranking.threshold),
        wave_columns=WAVE_COLUMNS,
        points=points,
        map_label=f"{len(points)} loops by the first two principal components of their "
        "embeddings; click one to hear it.",
        tables=tables,
        figures=tuple(figures),
        failures=_failure_table(failures),
        failures_text=f"{len(failures)} inputs were rejected and have no score"
        + (f"; the first {MAX_FAILURES} are listed." if len(failures) > MAX_FAILURES else "."),
        run_facts=facts.shown,
        run_text=facts.text,
        clips=tuple(
            EmbeddedClip(
                loop.i,
                loop.sound.clip.mime_type,
                base64.b64encode(loop.sound.clip.data).decode(),
            )
            for loop in page.loops
            if loop.sound and loop.sound.clip
        ),
        notes=tuple(notes),
        version=__version__,
    )


def _columns(ranking: Ranking) -> tuple[ColumnHead, ...]:
    percentile = "Percentile among the training scores"
    p_value = "Conformal p-value: fraction of normal loops that score at least as high"
    columns = (
        (True, ColumnHead("rank", "#", "Sort by rank", True)),
        (True, ColumnHead("name", "Loop", "Sort by name", False)),
        (True, ColumnHead("score", "Score", "Sort by score", True)),
        (ranking.percentiles is not None, ColumnHead("percentile", "Pct.", percentile, True)),
        (ranking.p_values is not None, ColumnHead("p", "p", p_value, True)),
        (ranking.labels is not None, ColumnHead("label", "Truth", "Label", False)),
        (True, ColumnHead("mark", "Mark", "Sort by mark", False)),
    )
    return tuple(column for is_there, column in columns if is_there)


def _row(page: PageLoops, i: int, bar: Callable[[float], float]) -> LoopRow:
    loop = page.loops[i]
    return LoopRow(
        i=i,
        rank=loop.rank,
        name=loop.name,
        path=loop.path,
        group=loop.group,
        is_anomaly=loop.is_anomaly,
        flags=loop.flags,
        audio=loop.audio,
        wave=loop.sound.wave if loop.sound else "",
        picture=loop.sound.picture if loop.sound else "",
        score_text=number(loop.score),
        bar=bar(loop.score),
        percentile_text="" if loop.percentile is None else f"{loop.percentile:.1f}",
        p_text=number(loop.p_value, 2) or "",
        label_text={None: "", False: "normal", True: "anomaly"}[loop.label],
    )


def _bar_scale(scores: np.ndarray) -> Callable[[float], float]:
    """Function from score to bar length in percent, on a log axis where scores allow it."""
    low, high = float(scores.min()), float(scores.max())
    place = np.log if low > 0 and high / low > 5 else np.asarray
    start, end = float(place(low)), float(place(high))

    def length(score: float) -> float:
        if end == start or (place is np.log and score <= 0):
            return 0.0
        return round(float(np.clip((place(score) - start) / (end - start), 0, 1)) * 96 + 4, 1)

    return length


def _headline(n: int, n_flagged: int) -> str:
    if n_flagged == 0:
        return f"None of {n} loops stands out"
    return f"{n_flagged} of {n} loops sound{'s' if n_flagged == 1 else ''} out of place"


def _lede(facts: RunFacts, ranking: Ranking, n_listed: int) -> str:
    detector = ranking.detector or facts.primary
    parts = []
    if detector:
        on = f" on {facts.encoder} embeddings" if facts.encoder else ""
        parts.append(f"Ranked by {detector}{on}.")
    flagged = None
    if ranking.percentiles is not None:
        flagged = ranking.percentiles.filter(pa.array(ranking.is_anomaly))
    if flagged is not None and len(flagged) and not flagged.null_count:
        lowest = np.asarray(flagged).min()
        parts.append(
            f"Flagged ones score higher than {lowest:.0f} % of the training loops or more."
        )
    elif ranking.threshold is not None and ranking.is_anomaly.any():
        parts.append(f"A loop is flagged from a score of {number(ranking.threshold)}.")
    if n_listed < len(ranking.ids):
        parts.append(f"The {n_listed} most anomalous are listed below.")
    parts.append("Play them, keep or reject them, and export the decisions.")
    return " ".join(parts)


def _tiles(n: int, n_flagged: int, n_failures: int, evaluation: Evaluation) -> tuple[Tile, ...]:
    tiles = [
        Tile("Loops scored", number(n)),
        Tile("Flagged", f"{100 * n_flagged / n:.1f} %", is_anomalous=n_flagged > 0),
    ]
    if n_failures:
        tiles.append(Tile("Rejected inputs", number(n_failures)))
    tiles += [Tile(label, number(value)) for label, value in evaluation.headline.items()]
    return tuple(tiles)


def _failure_table(failures: pa.Table) -> ShownTable | None:
    if len(failures) == 0:
        return None
    rows = failures.select(list(FAILURE_COLUMNS)).slice(0, MAX_FAILURES).to_pylist()
    return shown_table(Table("Rejected inputs", "", tuple(rows)))
