"""One HTML page per run: listen to what is anomalous, see why, mark it, export it.

Reads a run folder, or any scores, and writes one file that needs no server and no network; audio
that is too much for one file lies in a folder beside it. What a run folder does not hold
(embeddings, audio, tables) is named on the page and left out. Every name on the page is escaped,
and a content security policy lets only the page's own script run.
"""

import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from loopjax.config import ReportConfig
from loopjax.errors import UserError
from loopjax.evaluation.tables import Evaluation
from loopjax.io import write_folder, write_text
from loopjax.io.remote import is_remote, place_of
from loopjax.report.content import page_content
from loopjax.report.data import page_data
from loopjax.report.extra import require_report_extra
from loopjax.report.facts import facts_of_scores, read_facts, read_object
from loopjax.report.inline_svg import read_figures
from loopjax.report.lists import Curated, Reason, make_lists, read_reasons
from loopjax.report.loops import EXTENSIONS, PageLoops
from loopjax.report.ranking import RankedRows, read_ranking
from loopjax.report.render import render
from loopjax.store.blocks import open_rows, rows_in_memory
from loopjax.store.failures import read_failures
from loopjax.store.read import Embeddings
from loopjax.store.schema import FAILURE_SCHEMA
from loopjax.store.scores import is_folder_of_scores, score_files

KINDS = "|".join(map(re.escape, (*EXTENSIONS.values(), ".png")))
OUR_FILE = re.compile(rf"[0-9a-f]{{16}}({KINDS})")  # beside a page


def write_report(
    run_dir: str | Path,
    out_html: str | Path | None = None,
    config: ReportConfig | None = None,
    *,
    store: str | Path | None = None,
    embeddings: Embeddings | None = None,
    audio_roots: Sequence[str | Path] = (),
    curated: Curated | None = None,
    reasons: Mapping[str, Reason] | None = None,
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
        curated: copies and mislabelled loops to list.
        reasons: where loops stand out, by their ids; default: those of the run.

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
    if not facts.text:
        encoder = "" if rows is None else rows.metadata.get("encoder", "")
        facts = facts_of_scores(ranking.detector, encoder, store if store.exists() else None)
    ranked = None if rows is None else RankedRows(ranking, rows)
    if ranked is not None and ranked.n_missing:
        notes.append("Some scored loops have no embedding here: no map and no nearest loops.")
    curated = curated or Curated()
    notes += curated.notes
    loops = PageLoops(ranking, ranked, [Path(root) for root in (*audio_roots, run_dir)])
    listed = range(min(config.top, len(ranking.ids)))
    near = loops.find_near(listed)
    loops.place()
    lists = make_lists(loops, curated, reasons or read_reasons(run_dir))
    told = [told.row for told in (*lists.duplicates, *lists.mislabelled)]
    wanted = [*listed, *lists.typical, *near, *told]
    if config.audio != "none":
        silent = sum(loops.file(row) is None for row in listed)
        if silent:
            notes.append(f"The audio of {silent} loops was not found; they cannot be played.")
    beside = out.with_name(f"{out.stem}_files")
    with tempfile.TemporaryDirectory(prefix="loopjax-") as folder:

        def save(name: str, content: bytes) -> None:
            (Path(folder) / name).write_bytes(content)

        loops.hear(wanted, config.audio, save)
        _put_beside(Path(folder), beside)
    data = page_data(loops, lists, out.parent, config.audio, beside.name)
    page = page_content(
        loops,
        lists,
        facts,
        evaluation,
        failures,
        read_figures(run_dir / "figures") if (run_dir / "figures").is_dir() else [],
        config.title or facts.name or name,
        [*notes, *loops.notes],
    )
    write_text(out, render(page, data))
    return out


def _put_beside(made: Path, beside: Path) -> None:
    """Replaces the folder beside a page by what was made; without that, removes an older one."""
    files = list(made.iterdir())
    if beside.is_dir():
        strange = [file for file in beside.iterdir() if not OUR_FILE.fullmatch(file.name)]
        if strange:
            raise UserError(f"{beside} holds {strange[0].name}, which no report wrote: move it")
        if not files:
            shutil.rmtree(beside)
    if files:
        write_folder(beside, lambda new: [shutil.move(file, new) for file in files])
