"""One self-contained HTML page per run: listen to what is odd, see why, mark it, export the marks.

Reads a run folder and writes one file that needs no server and no network. What a run folder does
not hold (embeddings, audio, tables) is named on the page and left out. Every name on the page is
escaped, and a content security policy lets only the page's own script run.
"""

import base64
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from loopjax import __version__
from loopjax.config import ReportConfig
from loopjax.errors import UserError
from loopjax.io import write_text
from loopjax.report.loops import (
    WAVE_COLUMNS,
    PageLoop,
    PageLoops,
    RankedScores,
    read_matrix,
    read_ranking,
)
from loopjax.report.tables import (
    histogram,
    lookup,
    number,
    prepare_table,
    read_figures,
    run_facts,
)

ASSETS = Path(__file__).parent / "assets"
MAX_FAILURES = 100


def write_report(
    run_dir: str | Path,
    out_html: str | Path | None = None,
    config: ReportConfig | None = None,
    *,
    embeddings: Any = None,
    audio_roots: Sequence[str | Path] = (),
) -> Path:
    """Writes the report of one run folder.

    Args:
        run_dir: folder with `scores.parquet` (id, path, score; optional percentile, p_value,
            is_anomaly, rank, group, flags, path_bytes, is_labeled) and, each optional, `run.json`,
            `evaluation.json` ({"tables": [{title, note, columns, rows}]}), `figures/*.svg`,
            `embeddings/`, `failures.parquet`.
        out_html: file to write; default `run_dir/report/index.html`.
        config: how many rows (`top`), audio policy and title.
        embeddings: `Embeddings` (matrix [N, D], table with `id`) for the map and the nearest
            normal loops; default: what run.json names, or the store in `run_dir/embeddings`.
        audio_roots: folders that relative paths of the scores table are looked up in.

    Returns:
        The written file.

    Raises:
        UserError: no scores in the folder, a broken part, or the extra [report] missing.
        WriteError: the page cannot be written.
    """
    run_dir, config = Path(run_dir), config or ReportConfig()
    out = Path(out_html) if out_html else run_dir / "report" / "index.html"
    if not (run_dir / "scores.parquet").is_file():
        raise UserError(
            f"{run_dir} holds no scores.parquet; make one with `loopjax run` or `score`"
        )
    run = _read_json(run_dir / "run.json")
    evaluation = _read_json(run_dir / "evaluation.json")
    scores = read_ranking(run_dir / "scores.parquet")
    given = lookup(run, "config.data.embeddings")
    store = Path(given) if given else run_dir / "embeddings"
    notes: list[str] = []
    matrix, files = read_matrix(embeddings, store, scores, notes)
    page = PageLoops(scores, matrix, files, [Path(root) for root in (*audio_roots, run_dir)])
    listed = page.add(range(min(config.top, len(scores.ids))))
    typical = page.add(page.typical_rows()) if matrix is not None else []
    nearest = page.add_neighbors(listed)
    page.add_map_points()
    page.add_audio([*listed, *typical, *nearest], len(listed), config.audio, out.parent, notes)
    html = _render(page, listed, typical, run, evaluation, run_dir, config, notes)
    write_text(out, html)
    return out


def _render(
    page: PageLoops,
    listed: list[PageLoop],
    typical: list[PageLoop],
    run: dict[str, Any],
    evaluation: dict[str, Any],
    run_dir: Path,
    config: ReportConfig,
    notes: list[str],
) -> str:
    try:
        import jinja2
        import markupsafe
    except ImportError:
        raise UserError("the report needs Jinja2: pip install 'loopjax[report]'") from None
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(ASSETS),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=False,
    )
    trusted = markupsafe.Markup  # for our own assets, and SVG and JSON made harmless above
    js = (ASSETS / "report.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(js.encode()).digest()).decode()
    context = _context(page, listed, typical, run, evaluation, run_dir, config)
    for figure in context["figures"]:
        figure["svg"] = trusted(figure["svg"])
    return environment.get_template("report.html.j2").render(
        **context,
        notes=notes,
        css=trusted((ASSETS / "report.css").read_text(encoding="utf-8")),
        js=trusted(js),
        script_hash=trusted(f"sha256-{digest}"),
        data=trusted(_json_for_script(_data(page, listed, run_dir))),
        version=__version__,
    )


def _json_for_script(value: Any) -> str:
    """JSON that cannot end the script element it stands in."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _data(page: PageLoops, listed: list[PageLoop], run_dir: Path) -> dict[str, Any]:
    first = {loop.i for loop in listed}
    loops = []
    for loop in page.loops:
        item: dict[str, Any] = {
            "id": loop.id,
            "name": loop.name,
            "path": loop.path,
            "group": loop.group,
            "rank": loop.rank,
            "score": loop.score,
            "percentile": loop.percentile,
            "p": loop.p_value,
            "label": loop.label,
            "odd": loop.is_anomaly,
            "audio": loop.audio,
        }
        if loop.file:
            item["file"] = loop.file.decode("utf-8", "replace")
        if loop.audio == "link":
            item["href"] = loop.href
        if loop.seconds is not None:
            item |= {"seconds": loop.seconds, "whole_s": loop.whole_s, "is_cut": loop.is_cut}
        if loop.near:
            item["near"] = loop.near
        if loop.wave and loop.i not in first:
            item["wave"] = loop.wave
        loops.append(item)
    key = hashlib.sha256("\n".join(sorted(page.scores.ids)).encode()).hexdigest()[:16]
    return {"loops": loops, "total": len(page.scores.ids), "key": f"loopjax-marks-{key}"}


def _context(
    page: PageLoops,
    listed: list[PageLoop],
    typical: list[PageLoop],
    run: dict[str, Any],
    evaluation: dict[str, Any],
    run_dir: Path,
    config: ReportConfig,
) -> dict[str, Any]:
    scores = page.scores
    n, n_odd = len(scores.ids), int(scores.is_anomaly.sum())
    tables = [prepare_table(table) for table in evaluation.get("tables", [])]
    figures = read_figures(run_dir / "figures") if (run_dir / "figures").is_dir() else []
    failures, n_failures = _failures(run_dir / "failures.parquet")
    points = [
        {"i": loop.i, "x": loop.x, "y": loop.y, "is_anomaly": loop.is_anomaly}
        for loop in sorted(page.loops, key=lambda loop: loop.is_anomaly)
        if loop.x is not None
    ]
    sections = [("loops", "Loops"), ("map", "Map"), ("evaluation", "Evaluation")]
    sections += [("figures", "Figures"), ("rejected", "Rejected"), ("run", "Run")]
    present = {"loops": True, "map": points, "evaluation": tables, "figures": figures}
    present |= {"rejected": failures, "run": True}
    bar = _bar_scale(scores.scores)
    optional = scores.optional
    columns = [
        {"key": "rank", "label": "#", "title": "Sort by rank", "numeric": True},
        {"key": "name", "label": "Loop", "title": "Sort by name", "numeric": False},
        {"key": "score", "label": "Score", "title": "Sort by score", "numeric": True},
    ]
    if optional["percentile"]:
        title = "Percentile among the training scores"
        columns.append({"key": "percentile", "label": "Pct.", "title": title, "numeric": True})
    if optional["p_value"]:
        title = "Conformal p-value: share of normal loops at least as odd"
        columns.append({"key": "p", "label": "p", "title": title, "numeric": True})
    if optional["label"]:
        columns.append({"key": "label", "label": "Truth", "title": "Label", "numeric": False})
    columns.append({"key": "mark", "label": "Mark", "title": "Sort by mark", "numeric": False})
    title = config.title or lookup(run, "name", "config.name") or run_dir.resolve().name
    return {
        "title": title,
        "headline": _headline(n, n_odd),
        "lede": _lede(run, scores, len(listed)),
        "tiles": _tiles(n, n_odd, n_failures, evaluation),
        "histogram": histogram(scores.scores, scores.threshold),
        "sections": [{"id": i, "title": t} for i, t in sections if present[i]],
        "n_loops": n,
        "groups": sorted({loop.group for loop in listed if loop.group}),
        "columns": columns,
        "rows": [_row(loop, bar) for loop in listed],
        "typical": [_row(loop, bar) for loop in typical],
        "has_percentile": bool(optional["percentile"]),
        "has_p_value": bool(optional["p_value"]),
        "has_label": bool(optional["label"]),
        "threshold_bar": None if scores.threshold is None else bar(scores.threshold),
        "wave_columns": WAVE_COLUMNS,
        "points": points,
        "map_label": f"{len(points)} loops by the first two principal components of their "
        "embeddings; click one to hear it.",
        "tables": tables,
        "figures": figures,
        "failures": failures,
        "failures_text": f"{n_failures} inputs were rejected and have no score"
        + (f"; the first {MAX_FAILURES} are listed." if n_failures > MAX_FAILURES else "."),
        "run_facts": run_facts(run),
        "run_text": json.dumps(run, indent=2, ensure_ascii=False),
        "clips": [
            {"i": loop.i, "mime": loop.clip[1], "base64": base64.b64encode(loop.clip[0]).decode()}
            for loop in page.loops
            if loop.clip
        ],
    }


def _row(loop: PageLoop, bar: Any) -> dict[str, Any]:
    truth = {None: "", False: "normal", True: "anomaly"}
    return {
        "i": loop.i,
        "rank": loop.rank,
        "name": loop.name,
        "path": loop.path,
        "group": loop.group,
        "is_anomaly": loop.is_anomaly,
        "flags": loop.flags,
        "audio": loop.audio,
        "wave": loop.wave,
        "mel": loop.mel,
        "score_text": number(loop.score),
        "bar": bar(loop.score),
        "percentile_text": "" if loop.percentile is None else f"{loop.percentile:.1f}",
        "p_text": number(loop.p_value, 2) or "",
        "label_text": truth[loop.label],
    }


def _bar_scale(scores: np.ndarray) -> Any:
    """Function from score to bar length in percent, on a log axis where scores allow it."""
    low, high = float(scores.min()), float(scores.max())
    place = np.log if low > 0 and high / low > 5 else np.asarray
    start, end = float(place(low)), float(place(high))

    def length(score: float) -> float:
        if end == start or (place is np.log and score <= 0):
            return 0.0
        return round(float(np.clip((place(score) - start) / (end - start), 0, 1)) * 96 + 4, 1)

    return length


def _headline(n: int, n_odd: int) -> str:
    if n_odd == 0:
        return f"None of {n} loops stands out"
    return f"{n_odd} of {n} loops sound{'s' if n_odd == 1 else ''} out of place"


def _lede(run: dict[str, Any], scores: RankedScores, n_listed: int) -> str:
    config = run.get("config") or {}
    detector = scores.metadata.get("detector") or lookup(run, "primary", "config.primary")
    encoder = lookup(run, "encoder") or lookup(config, "embed.encoder")
    parts = []
    if detector:
        parts.append(f"Ranked by {detector}" + (f" on {encoder} embeddings." if encoder else "."))
    if scores.threshold is not None and scores.is_anomaly.any():
        parts.append(f"A loop is flagged from a score of {number(scores.threshold)}.")
    if n_listed < len(scores.ids):
        parts.append(f"The {n_listed} oddest are listed below.")
    parts.append("Play them, keep or reject them, and export the decisions.")
    return " ".join(parts)


def _tiles(n: int, n_odd: int, n_failures: int, evaluation: dict[str, Any]) -> list[dict[str, Any]]:
    tiles = [
        {"label": "Loops scored", "value": number(n), "is_odd": False},
        {"label": "Flagged", "value": f"{100 * n_odd / n:.1f} %", "is_odd": n_odd > 0},
    ]
    if n_failures:
        tiles.append({"label": "Rejected inputs", "value": number(n_failures), "is_odd": False})
    tiles += [
        {"label": label, "value": number(value), "is_odd": False}
        for label, value in (evaluation.get("headline") or {}).items()
    ]
    return tiles


def _failures(path: Path) -> tuple[dict[str, Any] | None, int]:
    if not path.is_file():
        return None, 0
    table = pq.read_table(path)
    if table.num_rows == 0:
        return None, 0
    keys = [k for k in ("path", "stage", "reason", "message") if k in table.column_names]
    rows = table.select(keys).slice(0, MAX_FAILURES).to_pylist()
    return prepare_table({"title": "Rejected inputs", "rows": rows}), table.num_rows


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise UserError(f"{path} is not readable JSON: {error}") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: expected an object")
    return value
