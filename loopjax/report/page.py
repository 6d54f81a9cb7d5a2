"""One self-contained HTML page per run: listen to what is anomalous, see why, mark it, export it.

Reads a run folder and writes one file that needs no server and no network. What a run folder does
not hold (embeddings, audio, tables) is named on the page and left out. Every name on the page is
escaped, and a content security policy lets only the page's own script run.
"""

import base64
import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from loopjax.config import ReportConfig
from loopjax.errors import UserError
from loopjax.evaluation.tables import Evaluation, Json
from loopjax.io import write_text
from loopjax.io.remote import is_remote, place_of
from loopjax.report.content import Page, page_content
from loopjax.report.extra import require_report_extra
from loopjax.report.facts import read_facts, read_object
from loopjax.report.inline_svg import read_figures
from loopjax.report.loops import PageLoops
from loopjax.report.ranking import RankedRows, read_ranking
from loopjax.store.blocks import open_rows, rows_in_memory
from loopjax.store.failures import read_failures
from loopjax.store.read import Embeddings
from loopjax.store.schema import FAILURE_SCHEMA
from loopjax.store.scores import is_folder_of_scores, score_files

ASSETS = Path(__file__).parent / "assets"
MAX_SEARCHED = 20_000  # loops that search and filters of a page know: some 6 MB


def write_report(
    run_dir: str | Path,
    out_html: str | Path | None = None,
    config: ReportConfig | None = None,
    *,
    store: str | Path | None = None,
    embeddings: Embeddings | None = None,
    audio_roots: Sequence[str | Path] = (),
) -> Path:
    """Writes the report of one run folder, or of a file of scores.

    Args:
        run_dir: a file or folder that `loopjax score` wrote, or a folder with `scores.parquet` (id,
            path, score; optional percentile, p_value, is_anomaly, rank, group, flags, path_bytes,
            is_labeled) and, each optional, `run.json`, `evaluation.json`, `figures/*.svg` and
            `embeddings/`.
        out_html: file to write; default `run_dir/report/index.html`, or beside a file of scores
            under its name.
        config: how many rows (`top`), audio policy and title.
        store: for the map, the nearest normal loops and the rejected inputs; default: what run.json
            names, or the store in `run_dir/embeddings`.
        embeddings: these instead of the store's.
        audio_roots: folders that relative paths of the scores table are looked up in.

    Returns:
        The written file.

    Raises:
        UserError: no scores in the folder, a broken part, or the extra [report] missing.
        WriteError: the page cannot be written.
    """
    require_report_extra()
    config, scores = config or ReportConfig(), place_of(run_dir)
    out, name = scores.with_suffix(".html"), scores.stem
    if scores.is_dir() and not is_folder_of_scores(scores):
        out, name = scores / "report" / "index.html", scores.resolve().name
        scores = scores / "scores.parquet"
    if out_html is None and is_remote(scores):
        raise UserError(f"{scores} lies elsewhere: name the page with -o")
    out = Path(out_html) if out_html else out
    run_dir = out.parent if is_remote(scores) else scores.parent
    if not score_files(scores):
        raise UserError(f"{run_dir} holds no {scores.name}; make one with `loopjax run` or `score`")
    facts = read_facts(run_dir / "run.json")
    evaluation_file = run_dir / "evaluation.json"
    evaluation = Evaluation.from_json(read_object(evaluation_file), str(evaluation_file))
    ranking = read_ranking(scores)
    if store is not None and not place_of(store).exists():
        raise UserError(f"{store}: no such store")
    store = place_of(store or facts.embeddings or run_dir / "embeddings")
    failures = read_failures(store) if store.is_dir() else FAILURE_SCHEMA.empty_table()
    notes: list[str] = []
    rows = None
    if embeddings is not None:
        rows, failures = rows_in_memory(embeddings), embeddings.failures
    elif store.exists():
        rows = open_rows(store)
    else:
        notes.append("No embeddings beside these scores: no map and no nearest loops.")
    ranked = None if rows is None else RankedRows(ranking, rows)
    if ranked is not None and ranked.n_missing:
        notes.append("Some scored loops have no embedding here: no map and no nearest loops.")
    roots = [Path(root) for root in (*audio_roots, run_dir)]
    loops = PageLoops(ranking, ranked, roots)
    listed = loops.add(range(min(config.top, len(ranking.ids))))
    typical = loops.add(loops.typical_rows())
    nearest = loops.add_neighbors(listed)
    loops.add_map_points()
    n_known = min(MAX_SEARCHED, len(ranking.ids))
    loops.add(range(n_known))
    if n_known < len(ranking.ids):
        notes.append(f"Search and filters know the {n_known} most anomalous loops.")
    loops.add_audio([*listed, *typical, *nearest], len(listed), config.audio, out.parent)
    page = page_content(
        loops,
        listed,
        typical,
        facts,
        evaluation,
        failures,
        read_figures(run_dir / "figures") if (run_dir / "figures").is_dir() else [],
        config.title or facts.name or name,
        [*notes, *loops.notes],
    )
    write_text(out, _render(page, _data(loops, listed)))
    return out


def _render(page: Page, data: Json) -> str:
    import jinja2
    import markupsafe

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(ASSETS),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=False,
    )
    trusted = markupsafe.Markup  # for our own assets, and SVG and JSON made harmless above
    js = (ASSETS / "report.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(js.encode()).digest()).decode()
    values = {field.name: getattr(page, field.name) for field in dataclasses.fields(page)}
    return environment.get_template("report.html.j2").render(
        **values,
        css=trusted((ASSETS / "report.css").read_text(encoding="utf-8")),
        js=trusted(js),
        script_hash=trusted(f"sha256-{digest}"),
        data=trusted(_json_for_script(data)),
    )


def _json_for_script(value: Json) -> str:
    """JSON that cannot end the script element it stands in."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _data(page: PageLoops, listed: Sequence[int]) -> Json:
    """What the page's script knows of the loops."""
    first = set(listed)
    loops: list[Json] = []
    for loop in page.loops:
        item: dict[str, Json] = {
            "id": loop.id,
            "name": loop.name,
            "path": loop.path,
            "group": loop.group,
            "rank": loop.rank,
            "score": loop.score,
            "percentile": loop.percentile,
            "p": loop.p_value,
            "label": loop.label,
            "is_anomaly": loop.is_anomaly,
            "flags": list(loop.flags),
            "audio": loop.audio,
        }
        if loop.file:
            item["file"] = loop.file.decode("utf-8", "replace")
        if loop.audio == "link":
            item["href"] = loop.href
        if loop.near:
            item["near"] = list(loop.near)
        if loop.sound is not None:
            sound = loop.sound
            item |= {"seconds": sound.seconds, "whole_s": sound.whole_s, "is_cut": sound.is_cut}
            if loop.i not in first:
                item["wave"] = sound.wave
        loops.append(item)
    ids = page.ranking.ids.sort().to_pylist()
    key = hashlib.sha256("\n".join(ids).encode()).hexdigest()[:16]
    return {"loops": loops, "total": len(page.ranking.ids), "key": f"loopjax-marks-{key}"}
