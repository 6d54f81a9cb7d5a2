"""How long a report of many loops takes to make, to open, to filter, and how smoothly it scrolls.

    python scripts/bench/report.py --rows 5000 -o out/large-report

Copies the bundled loops under as many names, gives them scores and embeddings, writes the report
with a waveform, a spectrum and a playable copy of every loop, and opens it from the disk in
Chromium. Prints one JSON line: seconds to write the page; seconds until it lists its loops;
milliseconds of the slowest filter; frames per second while the list scrolls by three rows a frame,
and the fraction of frames that took longer than 20 ms.
"""

import argparse
import json
import shutil
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the checkout is measured

from loopjax import bundled
from loopjax.config import ReportConfig
from loopjax.experiment.curation import curate
from loopjax.report.page import write_report
from loopjax.store.scores import Scores, write_scores
from tests.report.browser import Browser

WIDTH = 512
FILTERS = ("", "bass 01", "copy 007", "nothing is called so", "e")
MEASURE = """
(async () => {
  const frame = () => new Promise(requestAnimationFrame);
  const search = document.getElementById("search");
  const filters = [];
  for (const text of FILTERS) {
    search.value = text;
    const start = performance.now();
    search.dispatchEvent(new Event("input"));
    document.body.offsetHeight;
    filters.push(performance.now() - start);
    await frame();
  }
  search.value = "";
  search.dispatchEvent(new Event("input"));
  const table = document.getElementById("table");
  const times = [];
  await frame();
  for (let k = 0; k < 300; k += 1) {
    const start = performance.now();
    table.scrollTop += 210;
    await frame();
    times.push(performance.now() - start);
  }
  const sum = times.reduce((a, b) => a + b, 0);
  const slow = times.filter((t) => t > 20).length / times.length;
  const fps = (1000 * times.length) / sum;
  return { filter_ms: Math.max(...filters), fps, slow, rows: loopjaxReport.names().length };
})()
"""


def make_corpus(folder: Path, n_rows: int) -> tuple[Path, Path]:
    """Copies loops; returns their scores and their embeddings."""
    rng = np.random.default_rng(0)
    loops = sorted(bundled.folder("demo").glob("*.ogg"))
    centers = rng.normal(size=(len(loops), WIDTH))
    paths = []
    for k in range(n_rows):
        source = loops[k % len(loops)]
        path = folder / "loops" / source.stem.split("_")[0] / f"{source.stem} copy {k:05d}.ogg"
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, path)
        paths.append(path)
    ids = [f"{rng.integers(1 << 62):016x}-{k:08x}" for k in range(n_rows)]
    shown = [str(path.relative_to(folder / "loops")) for path in paths]
    rows = {
        "id": ids,
        "path": shown,
        "path_bytes": [str(path).encode() for path in paths],
        "group": [path.parent.name for path in paths],
    }
    scores = np.sort(rng.lognormal(size=n_rows))[::-1]
    table = pa.table(
        rows
        | {
            "score": scores,
            "percentile": 100 * (1 - np.arange(n_rows) / n_rows),
            "p_value": (np.arange(n_rows) + 1) / (n_rows + 1),
            "is_anomaly": np.arange(n_rows) < n_rows // 50,
            "rank": np.arange(n_rows) + 1,
        }
    )
    write_scores(Scores(table, {"threshold": str(scores[n_rows // 50])}), folder / "scores.parquet")
    matrix = centers[np.arange(n_rows) % len(loops)] + rng.normal(size=(n_rows, WIDTH))
    column = pa.array(list(matrix.astype(np.float32)), pa.list_(pa.float32(), WIDTH))
    pq.write_table(pa.table(rows | {"embedding": column}), folder / "emb.parquet")
    return folder / "scores.parquet", folder / "emb.parquet"


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=5000)
    parser.add_argument("-o", "--out", type=Path, required=True, help="new folder")
    args = parser.parse_args()
    args.out.mkdir(parents=True)
    scores, store = make_corpus(args.out.absolute(), args.rows)
    start_s = time.monotonic()
    page = write_report(
        scores, store=store, config=ReportConfig(top=args.rows), curated=curate(store)
    )
    write_s = time.monotonic() - start_s
    browser = Browser()
    try:
        start_s = time.monotonic()
        browser.open(page.absolute())
        load_s = time.monotonic() - start_s
        found = browser.run(MEASURE.replace("FILTERS", json.dumps(FILTERS)))
        errors = browser.errors
    finally:
        browser.close()
    assert not errors, errors
    size = page.stat().st_size / 1e6
    print(
        json.dumps({"write_s": round(write_s, 1), "load_s": round(load_s, 2), "page_mb": size}),
        json.dumps(found),
    )


if __name__ == "__main__":
    main()
