import csv
import html.parser
import io
import json
import os
import re
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile

from loopjax.cli import main
from loopjax.config import ReportConfig
from loopjax.errors import UserError
from loopjax.evaluation.tables import Estimate, Table
from loopjax.experiment.curation import curate
from loopjax.report import page as report
from loopjax.report.histogram import histogram
from loopjax.report.inline_svg import read_figures
from loopjax.report.lists import Reason, reason_text, write_reasons
from loopjax.report.tables import number, shown_table, with_units
from loopjax.store.read import FAILURE_SCHEMA, Embeddings
from tests.report.browser import Browser, find_chromium, violations

RATE = 32_000
HOSTILE = (
    "<script>window.pwned=1<.wav",
    "</script><img src=x onerror=pwned=1>.wav".replace("/", "\u2215"),
    "quote\"s & 'more'.wav",
    "line\nbreak.wav",
    "drum 🥁.wav",
)


def make_run(folder, n=14, seconds=0.6, parts=True, hostile=True):
    """A run folder of short tones; the last loops are the most anomalous."""
    rng = np.random.default_rng(0)
    names = [*(HOSTILE if hostile else ())]
    names += [f"tone {k:03d}.wav" for k in range(n - len(names))]
    audio = folder / "audio"
    rows = []
    for k, name in enumerate(names):
        group = "bass <low>" if k % 2 else "drums"
        path = audio / group / name
        path.parent.mkdir(parents=True, exist_ok=True)
        t = np.arange(int(seconds * RATE)) / RATE
        soundfile.write(path, 0.4 * np.sin(2 * np.pi * (150 + 20 * k) * t), RATE, "PCM_16")
        rows.append((f"{k:016x}-{k:08x}", str(path), os.fsencode(path), group))
    ids, paths, raw, groups = zip(*rows, strict=True)
    scores = np.geomspace(1e-3, 5e-2, len(names))
    order = np.argsort(np.argsort(-scores)) + 1
    run = folder / "run"
    run.mkdir()
    table = pa.table(
        {
            "id": ids, "path": paths, "path_bytes": raw, "score": scores,
            "percentile": 100 * (1 - order / len(order)), "p_value": order / (len(order) + 1),
            "is_anomaly": scores > 0.02, "rank": order, "group": groups,
            "is_labeled": [k == len(names) - 1 if k else None for k in range(len(names))],
            "flags": [["dc"] if k == 3 else [] for k in range(len(names))],
        }
    )  # fmt: skip
    pq.write_table(
        table.replace_schema_metadata({"loopjax.threshold": "0.02"}), run / "scores.parquet"
    )
    if parts:
        (run / "run.json").write_text(
            json.dumps({"config": {"name": "a <b>run</b>"}, "seeds": [0]})
        )
        rows = [{"detector": "AE <1>", "auroc": 0.9, "auroc_low": 0.85, "auroc_high": 0.94}]
        tables = [{"title": "Detectors", "rows": rows}]
        (run / "evaluation.json").write_text(
            json.dumps({"tables": tables, "headline": {"AUROC": 0.9}})
        )
        (run / "figures").mkdir()
        (run / "figures" / "one.svg").write_text(
            '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 9 9" onload="pwned=1">'
            "<title>One figure</title><script>pwned=1</script><style>*{display:none}</style>"
            '<a href="https://example.org"><rect width="1" height="1"/></a>'
            '<image href="https://example.org/x.png"/><rect id="shape" width="9" height="9"/></svg>'
        )
    failure = {"path": "x<y>.wav", "reason": "truncated", "message": "1 of 2 frames"}
    failures = pa.Table.from_pylist([failure], schema=FAILURE_SCHEMA)
    matrix = rng.normal(size=(len(names), 8)).astype(np.float32)
    return run, Embeddings(matrix, pa.table({"id": ids}), {}, failures)


class Reader(html.parser.HTMLParser):
    """Tags with attributes, and the texts of elements by class."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.texts, self._open = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._open.append((tag, dict(attrs).get("class", "")))

    def handle_data(self, data):
        if self._open:
            self.texts.append((*self._open[-1], data))

    def data(self):
        return json.loads(
            next(t for (tag, _, t) in self.texts if tag == "script" and t.startswith('{"total"'))
        )

    def audio(self):
        """How each loop can be heard."""
        data = self.data()
        found = []
        for i in range(len(data["id"])):
            sound = data["sound"].get(str(i), {})
            linked = str(i) in data["files"]["others"] or data["files"]["of"][i] >= 0
            link = "link" if linked and data["files"]["link"] else ""
            found.append("inside" if "inside" in sound else "beside" if "href" in sound else link)
        return found


def read(path):
    return Reader(path.read_text(encoding="utf-8"))


def test_hostile_names_are_shown_and_cannot_act(tmp_path):
    run, embeddings = make_run(tmp_path)
    page = read(report.write_report(run, embeddings=embeddings))
    assert set(page.data()["name"]) >= set(HOSTILE)
    scripts = [attrs for tag, attrs in page.tags if tag == "script"]
    assert sum("type" not in attrs for attrs in scripts) == 1  # the page's own
    assert not [attrs for tag, attrs in page.tags if tag == "img" and attrs.get("src") == "x"]
    assert not [a for _, a in page.tags if any(name.startswith("on") for name in a)]


def test_page_is_self_contained(tmp_path):
    run, embeddings = make_run(tmp_path)
    page = read(report.write_report(run, embeddings=embeddings))
    for tag, attrs in page.tags:
        for name in ("src", "href"):
            if name in attrs:
                assert attrs[name].startswith(("data:", "#")), (tag, attrs)


@pytest.mark.parametrize("policy", ["embed", "auto", "files", "link", "none"])
def test_audio_policies(tmp_path, policy):
    run, _ = make_run(tmp_path)
    out = report.write_report(run, config=ReportConfig(audio=policy))
    page = read(out)
    clips = [attrs for tag, attrs in page.tags if tag == "script" and "data-mime" in attrs]
    kind = {"embed": "inside", "auto": "inside", "files": "beside", "none": ""}.get(policy, policy)
    assert set(page.audio()) == {kind}
    assert len(clips) == 14 * (kind == "inside")
    assert (out.parent / "index_files").is_dir() == (policy == "files")
    if policy == "files":
        for sound in page.data()["sound"].values():
            assert soundfile.info(out.parent / sound["href"]).duration == pytest.approx(0.6)
            assert (out.parent / sound["picture"]).read_bytes().startswith(b"\x89PNG")


def test_auto_puts_much_audio_beside_the_page(tmp_path, monkeypatch):
    run, _ = make_run(tmp_path)
    monkeypatch.setattr("loopjax.report.loops.MAX_EMBEDDED", 5)
    out = report.write_report(run, config=ReportConfig(top=7))
    assert read(out).audio() == ["beside"] * 7 + ["link"] * 7
    monkeypatch.undo()
    monkeypatch.setattr("loopjax.report.loops.MAX_EMBEDDED_BYTES", 20_000)
    assert set(read(report.write_report(run)).audio()) == {"beside"}
    assert len(list((out.parent / "index_files").iterdir())) == 28
    monkeypatch.undo()
    report.write_report(run)
    assert not (out.parent / "index_files").exists()


def test_a_folder_that_no_report_wrote_is_not_replaced(tmp_path):
    run, _ = make_run(tmp_path)
    mine = run / "report" / "index_files" / "mine.txt"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    with pytest.raises(UserError, match=r"mine\.txt, which no report wrote"):
        report.write_report(run, config=ReportConfig(audio="files"))
    assert mine.read_text() == "mine"


def test_bare_scores_are_enough_and_gaps_are_named(tmp_path):
    run, _ = make_run(tmp_path, parts=False)
    for path in (tmp_path / "audio").rglob("*.wav"):
        path.unlink()
    page = read(report.write_report(run))
    text = " ".join(data for _, _, data in page.texts)
    assert "No embeddings beside these scores" in text
    assert "audio of 14\u00a0loops was not found" in text
    assert "no run.json" in text
    assert not [attrs for _, attrs in page.tags if attrs.get("id") in ("map", "figures")]


def test_top_limits_what_is_heard_and_nearest_loops_are_normal(tmp_path):
    run, embeddings = make_run(tmp_path)
    data = read(report.write_report(run, config=ReportConfig(top=3), embeddings=embeddings)).data()
    assert data["rank"] == list(range(1, 15))  # all are listed
    assert set(data["near"]) == {"0", "1", "2"}
    for near in data["near"].values():
        assert len(near) == 3
        assert not any(data["anomaly"][j] for j in near)
    assert {"0", "1", "2", *map(str, data["near"]["0"])} <= set(data["sound"])
    matrix = embeddings.matrix / np.linalg.norm(embeddings.matrix, axis=1, keepdims=True)
    row = int(data["id"][0][:16], 16)
    cosine = matrix @ matrix[row]
    normal = [
        int(key[:16], 16) for key, odd in zip(data["id"], data["anomaly"], strict=True) if not odd
    ]
    best = max(normal, key=lambda k: cosine[k])
    assert int(data["id"][data["near"]["0"][0]][:16], 16) == best


def test_flags_and_labels_are_told(tmp_path):
    run, embeddings = make_run(tmp_path)
    data = read(report.write_report(run, embeddings=embeddings)).data()
    assert list(data["flags"].values()) == [["dc"]]
    assert data["label"] == [1, *[0] * 12, None]


def test_the_headline_speaks_in_percentiles(tmp_path):
    run, _ = make_run(tmp_path)
    text = " ".join(data for tag, _, data in read(report.write_report(run)).texts if tag == "h1")
    assert re.search(r"of place, above \d+(\.\d)?\u00a0% of the training loops\s*$", text)
    assert re.search(r"of \d+\u00a0loops", text)


def test_copies_and_mislabelled_loops_have_lists(tmp_path):
    run, embeddings = make_run(tmp_path, n=60, parts=False, hostile=False)
    matrix = np.random.default_rng(1).normal(size=(60, 8)).astype(np.float32) / 8
    matrix[:30, 0] += 1
    matrix[30:, 1] += 1
    matrix[7] = matrix[8]
    groups = np.array(["bass"] * 30 + ["drums"] * 30)
    groups[3] = "drums"  # planted
    table = embeddings.table.append_column("group", pa.array(groups))
    table = table.append_column("embedding", pa.array(list(matrix), pa.list_(pa.float32(), 8)))
    store = tmp_path / "emb.parquet"
    pq.write_table(table, store)
    data = read(report.write_report(run, store=store, curated=curate(store))).data()
    told = [(data["id"][item["i"]], item["mark"]) for item in data["duplicates"]]
    ids = embeddings.table["id"].to_pylist()
    assert told == [(ids[7], "keep"), (ids[8], "reject")]
    first = data["mislabelled"][0]
    assert data["id"][first["i"]] == ids[3]
    assert first["text"].startswith("in drums, sounds like bass (p\u00a00.0")


def test_reasons_are_words():
    reason = Reason(1.2, 1.62, 4000.0, 8000.0)
    assert reason_text(reason, "Bass/Sub") == "high band, 1.2 to 1.6\u00a0s; sounds like Bass/Sub"
    assert reason_text(Reason(None, None, 0.0, 150.0), "") == "low band"
    assert reason_text(Reason(0.051, 0.068, None, None), "") == "0.05 to 0.07\u00a0s"
    assert reason_text(None, "Keys") == "sounds like Keys"
    assert reason_text(Reason(None, None, None, None), "") == ""


def test_reasons_of_a_run_are_shown(tmp_path):
    run, embeddings = make_run(tmp_path)
    write_reasons({embeddings.table["id"][13].as_py(): Reason(0.1, 0.2, 500.0, 900.0)}, run)
    data = read(report.write_report(run, embeddings=embeddings)).data()
    assert data["why"]["0"].startswith("middle band, 0.1 to 0.2\u00a0s")
    (run / "reasons.json").write_text("[1]")
    with pytest.raises(UserError, match="delete it"):
        report.write_report(run)


def test_embeddings_are_found_where_run_json_names_them(tmp_path):
    run, embeddings = make_run(tmp_path)
    store = tmp_path / "elsewhere.parquet"
    width = pa.list_(pa.float32(), 8)
    column = pa.array(list(embeddings.matrix), width)
    pq.write_table(embeddings.table.append_column("embedding", column), store)
    (run / "run.json").write_text(json.dumps({"config": {"data": {"embeddings": str(store)}}}))
    page = read(report.write_report(run))
    assert len(page.data()["place"]) == 14


def test_any_scores_and_any_store_make_a_page(tmp_path):
    run, embeddings = make_run(tmp_path, parts=False)
    store = tmp_path / "store"
    store.mkdir()
    column = pa.array(list(embeddings.matrix), pa.list_(pa.float32(), 8))
    table = embeddings.table.append_column("embedding", column)
    pq.write_table(table, store / "part-00000.parquet")
    pq.write_table(embeddings.failures, store / "failures.parquet")
    scores = (run / "scores.parquet").rename(tmp_path / "mine.parquet")
    out = report.write_report(scores, store=store)
    assert out == tmp_path / "mine.html"
    page = read(out)
    assert len(page.data()["place"]) == 14
    assert "1\u00a0input was rejected" in " ".join(data for _, _, data in page.texts)
    other = tmp_path / "other.html"
    assert main(["report", str(scores), "--store", str(store), "-o", str(other), "--top", "3"]) == 0
    assert len(read(other).data()["id"]) == 14
    with pytest.raises(UserError, match="nowhere: no such store"):
        report.write_report(scores, store=tmp_path / "nowhere")


def test_rows_without_a_score_are_left_out(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    table = pa.table({"id": ["a", "b"], "path": ["a.wav", "b.wav"], "score": [None, 0.5]})
    pq.write_table(table, run / "scores.parquet")
    page = read(report.write_report(run))
    assert page.data()["name"] == ["b.wav"]


def test_a_folder_without_scores_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match=r"scores\.parquet"):
        report.write_report(tmp_path)
    pq.write_table(pa.table({"id": ["a"], "path": ["a"]}), tmp_path / "scores.parquet")
    with pytest.raises(UserError, match="'score'"):
        report.write_report(tmp_path)
    (tmp_path / "scores.parquet").write_bytes(b"no parquet")
    with pytest.raises(UserError, match="is damaged"):
        report.write_report(tmp_path)


def test_figures_lose_everything_that_could_act(tmp_path):
    run, _ = make_run(tmp_path)
    (figure,) = read_figures(run / "figures")
    assert figure.title == "One figure"
    for gone in ("script", "onload", "example.org", "style", "<a", 'id="shape"'):
        assert gone not in figure.svg
    assert "<rect" in figure.svg
    page = read(report.write_report(run))
    assert ("rect", {"width": "9", "height": "9"}) in page.tags  # drawn, not printed
    (run / "figures" / "two.svg").write_text("<html/>")
    with pytest.raises(UserError, match="not an SVG"):
        read_figures(run / "figures")


def test_rejected_inputs_are_listed(tmp_path):
    run, embeddings = make_run(tmp_path)
    page = read(report.write_report(run, embeddings=embeddings))
    assert "x<y>.wav" in [text for tag, _, text in page.texts if tag == "th"]
    store = run / "embeddings"
    store.mkdir()
    pq.write_table(embeddings.failures, store / "failures.parquet")
    column = pa.array(list(embeddings.matrix), pa.list_(pa.float32(), 8))
    table = embeddings.table.append_column("embedding", column)
    pq.write_table(table, store / "part-00000.parquet")
    text = " ".join(data for _, _, data in read(report.write_report(run)).texts)
    assert "1\u00a0input was rejected" in text and "1 of 2 frames" in text


def test_estimates_are_shown_with_their_interval():
    rows = ({"name": "a", "x": Estimate(0.912, 0.88, 0.93), "ok": True}, {"name": "b"})
    table = shown_table(Table("t", "", rows))
    assert [(c.label, c.is_numeric) for c in table.columns] == [
        ("name", False), ("x", True), ("ok", False),
    ]  # fmt: skip
    assert table.rows == (("a", "0.912 (0.880 to 0.930)", True), ("b", None, None))


def test_numbers_stay_with_their_units():
    told = with_units("above 98 % of 30 loops, 2 to 4 s, -6 dB at 1 kHz; 5 smooth ones of 7 inputs")
    assert told.split(" ") == [
        "above", "98\u00a0%", "of", "30\u00a0loops,", "2", "to", "4\u00a0s,", "-6\u00a0dB", "at",
        "1\u00a0kHz;", "5", "smooth", "ones", "of", "7\u00a0inputs",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.012345, "0.0123"), (123456, "123\u2009456"), (1.5e-7, "1.50e\u22127"), (0.0, "0.00"),
        (-2.5, "\u22122.50"), (None, None), (float("nan"), None), (95.96, "96.0"), (7, "7"),
    ],
)  # fmt: skip
def test_number(value, text):
    assert number(value) == text


def test_histogram_counts_every_score_and_splits_at_the_threshold():
    scores = np.geomspace(1e-4, 1e-1, 500)
    picture = histogram(scores, 1e-2)
    assert picture.threshold_x == pytest.approx(picture.width * 2 / 3, abs=0.1)
    above = [bar.x for bar in picture.bars if bar.is_anomalous]
    below = [bar.x for bar in picture.bars if not bar.is_anomalous]
    assert max(below) < picture.threshold_x < max(above)
    assert histogram(np.ones(5), None) is None


# ---- in a real browser ------------------------------------------------------------------------

needs_browser = pytest.mark.skipif(find_chromium() is None, reason="no Chromium on this machine")


@pytest.fixture(scope="module")
def browser():
    browser = Browser()
    yield browser
    browser.close()


@pytest.fixture(scope="module")
def page_path(tmp_path_factory):
    run, embeddings = make_run(tmp_path_factory.mktemp("report"))
    return report.write_report(run, embeddings=embeddings)


def shown(browser):
    return browser.run("loopjaxReport.names()")


def set_search(browser, text):
    browser.run(
        f"(e => {{ e.value = {json.dumps(text)}; e.dispatchEvent(new Event('input')) }})"
        "(document.getElementById('search'))"
    )


def row_of(browser, i, within=""):
    """A selector of the row of a loop, once that is scrolled into view."""
    browser.run(f"loopjaxReport.list.reveal(loopjaxReport.list.items.findIndex(x => x.i === {i}))")
    return f".rows [data-i='{i}'] {within}"


@needs_browser
def test_browser_shows_hostile_names_and_no_errors(browser, page_path):
    browser.open(page_path)
    assert len(shown(browser)) == 14
    assert set(HOSTILE) <= set(shown(browser))
    texts = browser.run("[...document.querySelectorAll('.rows .name')].map(e => e.textContent)")
    assert set(HOSTILE) <= set(texts)
    assert browser.run("typeof window.pwned") == "undefined"
    assert browser.run("document.title") == "a <b>run</b> · loopjax"
    assert browser.errors == []


@needs_browser
def test_browser_click_plays_and_loops(browser, page_path):
    browser.open(page_path)
    browser.click(".rows .play")
    browser.wait("loopjaxReport.state().playing && loopjaxReport.state().position_s > 0.05")
    state = browser.run("loopjaxReport.state()")
    assert state["duration_s"] == pytest.approx(0.6, abs=1e-3)
    assert browser.run(
        "document.querySelector('.rows .play').getAttribute('aria-pressed')"
    ) == "true"  # fmt: skip
    time.sleep(0.7)  # longer than the loop: it must still sound
    assert browser.run("loopjaxReport.state().playing")
    browser.click(".rows .play")
    browser.wait("!loopjaxReport.state().playing")
    browser.click(row_of(browser, 1, ".play"))
    browser.wait("loopjaxReport.state().playing")
    browser.click("#dock-close")
    assert not browser.run("loopjaxReport.state().playing")
    assert browser.errors == []


@needs_browser
def test_browser_plays_linked_files_and_map_points(browser, tmp_path):
    run, embeddings = make_run(tmp_path)
    path = report.write_report(run, config=ReportConfig(audio="link"), embeddings=embeddings)
    browser.open(path)
    for i in range(14):  # hostile file names too
        browser.click(row_of(browser, i, ".play"))
        browser.wait(f"loopjaxReport.state().playing && loopjaxReport.state().heard === {i}")
    browser.run("document.querySelector('#plane circle.anomalous').dispatchEvent("
                "new MouseEvent('click', {bubbles: true}))")  # fmt: skip
    browser.wait("loopjaxReport.state().playing")
    assert browser.errors == []


@needs_browser
def test_browser_sorts_and_filters(browser, page_path):
    browser.open(page_path)
    by_rank = shown(browser)
    browser.click("[data-sort=score] button")
    assert shown(browser) == by_rank
    browser.click("[data-sort=score] button")
    assert shown(browser) == by_rank[::-1]
    assert (
        browser.run("document.querySelector('[data-sort=score]').getAttribute('aria-sort')")
        == "ascending"
    )
    browser.click("[data-sort=name] button")
    tones = [name for name in shown(browser) if name.startswith("tone")]
    assert tones == sorted(tones)
    assert browser.run("document.querySelectorAll('[aria-sort]').length") == 1
    set_search(browser, "TONE 00")
    assert shown(browser) == [f"tone {k:03d}.wav" for k in range(9)]
    assert browser.run("document.getElementById('count').textContent") == "9 of 14\u00a0loops"
    browser.run("(e => { e.value = 'drums'; e.dispatchEvent(new Event('input')) })"
                "(document.getElementById('group'))")  # fmt: skip
    drums = shown(browser)
    assert 0 < len(drums) < 9
    browser.click("#only")
    assert set(shown(browser)) < set(drums)


@needs_browser
def test_browser_marks_and_exports(browser, page_path):
    browser.open(page_path)
    browser.run("localStorage.clear()")
    browser.open(page_path)
    browser.press("n")
    browser.wait("loopjaxReport.state().playing")
    browser.press("k")  # keeps the first, moves to the second
    browser.wait("loopjaxReport.state().heard === 1")
    browser.press("r")
    browser.wait("loopjaxReport.state().heard === 2")
    hostile = browser.run("loopjaxReport.list.items.find("
                          "item => loopjaxReport.names()[item.i].includes('\\n')).i")  # fmt: skip
    browser.click(row_of(browser, hostile, ".mark.keep"))
    table = browser.run("loopjaxReport.csv()")
    rows = list(csv.DictReader(io.StringIO(table, newline="")))
    assert [row["mark"] for row in sorted(rows, key=lambda r: int(r["rank"]))][:2] == [
        "keep",
        "reject",
    ]
    assert any("line\nbreak" in row["path"] and row["mark"] == "keep" for row in rows)
    playlist = browser.run("loopjaxReport.m3u()").splitlines()
    assert playlist[0] == "#EXTM3U"
    assert len(playlist) == 1 + 2 * 2
    assert any("line%0Abreak" in line for line in playlist)
    browser.open(page_path)  # marks outlive a reload
    assert browser.run("document.querySelectorAll('.mark[aria-pressed=true]').length") == 3
    assert browser.errors == []


@needs_browser
def test_browser_marks_the_judged_loop_whichever_neighbor_is_heard(browser, page_path):
    browser.open(page_path)
    browser.run("localStorage.clear()")
    browser.open(page_path)
    browser.press("n")
    browser.wait("loopjaxReport.state().playing")
    judged, near = (
        0,
        browser.run("JSON.parse(document.getElementById('data').textContent).near[0]"),
    )
    for key in ("1", "2", "3"):
        browser.press(key)
        wanted = near[int(key) - 1]
        browser.wait(f"loopjaxReport.state().heard === {wanted} && loopjaxReport.state().playing")
        assert browser.run("loopjaxReport.state().judged") == judged
    browser.press("r")
    browser.wait("loopjaxReport.state().judged === 1")
    assert marks(browser) == {0: "reject"}
    browser.press("k")
    browser.wait("loopjaxReport.state().judged === 2")
    browser.press("z")
    assert marks(browser) == {0: "reject"}
    browser.press("z")
    assert marks(browser) == {}
    browser.press("z")  # nothing is left to undo
    assert browser.errors == []


@needs_browser
def test_browser_imports_marks_and_keeps_them_for_other_pages(browser, page_path, tmp_path):
    browser.open(page_path)
    browser.run("localStorage.clear()")
    browser.open(page_path)
    content = f"{3:016x}"
    lines = ["mark,id,note", f'reject,{content}-feedbeef,"too, ""thin"""', "keep,unknown,"]
    assert browser.run(f"loopjaxReport.importMarks({json.dumps(chr(10).join(lines))})") == 1
    run, _ = make_run(tmp_path, n=7)  # another page that holds the same loop
    browser.open(report.write_report(run))
    rows = csv.DictReader(io.StringIO(browser.run("loopjaxReport.csv()"), newline=""))
    (marked,) = [row for row in rows if row["mark"]]
    assert marked["id"].startswith(content)
    assert (marked["mark"], marked["note"]) == ("reject", 'too, "thin"')
    sheet = tmp_path / "sheet.csv"  # as a spreadsheet saves it
    sheet.write_text(f"ID;Mark;Note\n{content}-feedbeef;Kept;'=1+1\n", encoding="utf-16")
    browser.choose_file("#import-file", sheet)
    browser.wait("document.getElementById('import-result').textContent.startsWith('1 mark')")
    rows = csv.DictReader(io.StringIO(browser.run("loopjaxReport.csv()"), newline=""))
    (marked,) = [row for row in rows if row["mark"]]
    assert (marked["mark"], marked["note"]) == ("keep", "'=1+1")
    assert "no column 'mark'" in browser.run(
        "(() => { try { loopjaxReport.importMarks('a,b') } catch (e) { return e.message } })()"
    )
    browser.run("localStorage.clear()")
    assert browser.errors == []


def marks(browser):
    """Place in the ranked table -> mark."""
    table = browser.run("loopjaxReport.csv()")
    rows = list(csv.DictReader(io.StringIO(table, newline="")))
    return {i: row["mark"] for i, row in enumerate(rows) if row["mark"]}


@needs_browser
def test_browser_finds_every_loop_and_draws_few(browser, tmp_path):
    run, embeddings = make_run(tmp_path, n=320, seconds=0.05)
    browser.open(report.write_report(run, config=ReportConfig(top=5), embeddings=embeddings))
    browser.run("localStorage.clear()")
    assert len(shown(browser)) == 320
    assert browser.run("document.querySelectorAll('.rows > *').length") < 40
    set_search(browser, "tone 007")
    assert shown(browser) == ["tone 007.wav"]
    assert browser.run("document.getElementById('count').textContent") == "1 of 320\u00a0loops"
    browser.click(".rows .mark.reject")
    set_search(browser, "")
    kinds = browser.run("loopjaxReport.csv()").splitlines()
    assert len([line for line in kinds if '"reject"' in line and "tone 007" in line]) == 1
    browser.run("localStorage.clear()")
    assert browser.errors == []


@needs_browser
def test_browser_scrolls_through_all_rows(browser, tmp_path):
    run, _ = make_run(tmp_path, n=200, seconds=0.05)
    browser.open(report.write_report(run))
    browser.run("document.querySelector('.rows .play').focus()")
    focused = "document.activeElement.id || document.activeElement.className"
    assert browser.run(focused) == "play"
    seen = set()
    for top in range(0, 200 * 80, 400):
        browser.run(f"document.getElementById('table').scrollTop = {top}")
        browser.wait("new Promise(done => requestAnimationFrame(() => requestAnimationFrame("
                     "() => done(true))))")  # fmt: skip
        seen |= set(browser.run(
            "[...document.querySelectorAll('.rows > *')].filter(r => !r.hidden).filter(r => {"
            "const b = r.getBoundingClientRect(), t = document.getElementById('table')"
            ".getBoundingClientRect(); return b.top >= t.top - 70 && b.bottom <= t.bottom + 70 })"
            ".map(r => `${r.ariaRowIndex},${r.querySelector('.name').textContent}`)"
        ))  # fmt: skip
    names = shown(browser)
    assert seen >= {f"{k + 2},{name}" for k, name in enumerate(names[:190])}
    assert browser.run(focused) == "table"  # no button of a row that serves for another now
    assert browser.errors == []


@needs_browser
def test_browser_lists_copies_mislabelled_and_rejected(browser, tmp_path):
    run, embeddings = make_run(tmp_path, n=60, hostile=False)
    matrix = embeddings.matrix.copy()
    matrix[:30, 0] += 9
    matrix[30:, 1] += 9
    matrix[8] = matrix[7]
    groups = np.array(["bass"] * 30 + ["drums"] * 30)
    groups[3] = "drums"
    table = embeddings.table.append_column("group", pa.array(groups))
    table = table.append_column("embedding", pa.array(list(matrix), pa.list_(pa.float32(), 8)))
    store = run / "embeddings"
    store.mkdir()
    pq.write_table(table, store / "part-00000.parquet")
    pq.write_table(embeddings.failures, store / "failures.parquet")
    browser.open(report.write_report(run, curated=curate(store)))
    browser.run("localStorage.clear()")
    browser.click("#tab-duplicates")
    assert set(shown(browser)) == {"tone 007.wav", "tone 008.wav"}
    browser.click("#propose")
    assert sorted(marks(browser).values()) == ["keep", "reject"]
    browser.press("z")
    assert marks(browser) == {}
    browser.click("#tab-mislabelled")
    assert shown(browser)[0] == "tone 003.wav"
    assert "sounds like bass" in browser.run("document.querySelector('.rows .why').textContent")
    browser.click("#tab-rejected")
    assert "x<y>.wav" in browser.run("document.getElementById('rejected').innerText")
    assert browser.run("document.getElementById('list').checkVisibility()") is False
    browser.run("localStorage.clear()")
    assert browser.errors == []


@needs_browser
def test_browser_keeps_one_copy_and_rejects_the_other(browser, tmp_path):
    run, _ = make_run(tmp_path, n=6, hostile=False)
    table = pq.read_table(run / "scores.parquet")
    ids = table["id"].to_pylist()
    ids[4] = f"{5:016x}-{99:08x}"  # the bytes of 5 elsewhere
    at = table.column_names.index("id")
    pq.write_table(table.set_column(at, "id", pa.array(ids)), run / "scores.parquet")
    page = report.write_report(run)
    browser.open(page)
    browser.run("localStorage.clear()")
    browser.open(page)
    browser.press("n")
    browser.press("k")
    browser.wait("loopjaxReport.state().judged === 1")
    browser.press("r")
    browser.wait("loopjaxReport.state().judged === 2")
    assert marks(browser) == {0: "keep", 1: "reject"}
    browser.open(page)
    assert marks(browser) == {0: "keep", 1: "reject"}
    # Another page knew one of them only, under the hash of its content.
    known = json.dumps({f"{5:016x}": {"mark": "reject", "note": ""}})
    browser.run(f"localStorage.setItem('loopjax-marks', {json.dumps(known)})")
    browser.open(page)
    assert marks(browser) == {0: "reject", 1: "reject"}
    browser.press("n")
    browser.press("u")
    assert marks(browser) == {1: "reject"}
    browser.open(page)
    assert marks(browser) == {1: "reject"}
    browser.run("localStorage.clear()")
    assert browser.errors == []


@needs_browser
@pytest.mark.parametrize("width", [1280, 400])
def test_browser_shows_the_judged_loop_and_its_neighbors_beside_the_player(
    browser, page_path, width
):
    browser.open(page_path, width=width)
    inside = """(e => { const b = e.getBoundingClientRect(); return b.width > 9 && b.left >= 0
        && b.right <= innerWidth && b.top >= 0 && b.bottom <= %s })(document.querySelector('%s'))"""
    above = "document.getElementById('dock').getBoundingClientRect().top"
    for _ in range(5):
        browser.press("n")
        browser.wait("loopjaxReport.state().playing")
        assert browser.run(inside % (above, ".rows .current"))
    for k in range(1, 5):
        assert browser.run(inside % ("innerHeight", f"#dock-near button:nth-of-type({k})"))
    assert browser.run(inside % ("innerHeight", "#dock-info"))
    browser.press_named("Escape")
    browser.wait("getComputedStyle(document.body).paddingBottom === '0px'")


@needs_browser
def test_browser_compares_and_seeks(browser, page_path):
    browser.open(page_path)
    browser.press("n")
    browser.wait("loopjaxReport.state().playing")
    near = browser.run("JSON.parse(document.getElementById('data').textContent).near[0]")
    browser.press("2")
    browser.wait(f"loopjaxReport.state().playing && loopjaxReport.state().heard === {near[1]}")
    browser.press("a")
    browser.wait("loopjaxReport.state().playing && loopjaxReport.state().heard === 0")
    browser.press("b")
    browser.wait(f"loopjaxReport.state().playing && loopjaxReport.state().heard === {near[1]}")
    assert browser.run("loopjaxReport.state().judged") == 0
    browser.press(" ")
    browser.run("document.activeElement.blur()")
    box = "document.getElementById('dock-wave').getBoundingClientRect()"
    place = browser.run(f"(b => [b.left + 0.5 * b.width, b.top + 9])({box})")
    browser.click_at(*place)
    browser.wait("loopjaxReport.state().playing")
    assert 0.25 < browser.run("loopjaxReport.state().position_s") < 0.59
    assert browser.run("document.getElementById('hertz').innerText").split("\n") == [
        "100\u00a0Hz", "1\u00a0kHz", "10\u00a0kHz",
    ]  # fmt: skip
    browser.click("#dock-close")
    assert browser.errors == []


@needs_browser
def test_browser_map_has_a_lasso_and_keys(browser, page_path):
    browser.open(page_path)
    browser.run("document.getElementById('plane').scrollIntoView({block: 'center'})")
    box = browser.run("(b => [b.left, b.top, b.width, b.height])"
                      "(document.getElementById('plane').getBoundingClientRect())")  # fmt: skip
    left, top, width, height = box
    corners = ((0.01, 0.01), (0.5, 0.01), (0.5, 0.99), (0.01, 0.99))
    browser.drag([(left + x * width, top + y * height) for x, y in corners])
    places = browser.run("JSON.parse(document.getElementById('data').textContent).place")
    inside = [int(i) for i, (x, _) in places.items() if -12 + 344 * 0.01 < x < -12 + 344 * 0.5]
    assert len(shown(browser)) == len(inside) > 0
    browser.click("#selected")
    assert len(shown(browser)) == 14
    browser.run("document.querySelector('#plane circle[tabindex=\"0\"]').focus()")
    first = browser.run("document.activeElement.dataset.i")
    for key in ("ArrowLeft", "ArrowUp"):
        browser.press_named(key)
    assert browser.run("document.activeElement.matches('#plane circle')")
    assert browser.run("document.activeElement.dataset.i") != first
    browser.press_named("Enter")
    browser.wait("loopjaxReport.state().playing")
    assert browser.run("String(loopjaxReport.state().heard) === document.activeElement.dataset.i")
    browser.press_named("Escape")
    assert browser.run("document.querySelectorAll('#groups button').length") == 2
    browser.click("#groups button")
    assert 0 < len(shown(browser)) < 14
    assert browser.errors == []


@needs_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_browser_finds_no_fault_with_axe(browser, page_path, scheme):
    for width in (1280, 400):
        browser.open(page_path, width=width, scheme=scheme)
        browser.press("n")
        browser.wait("loopjaxReport.state().playing")
        assert violations(browser) == []


CONTRAST = """
(() => {
  const parse = (text) => {
    const c = document.createElement('canvas').getContext('2d');
    c.fillStyle = text; c.fillRect(0, 0, 1, 1);
    return [...c.getImageData(0, 0, 1, 1).data];
  };
  const light = (rgb) => rgb.slice(0, 3).map((v) => v / 255)
    .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
    .reduce((sum, v, k) => sum + v * [0.2126, 0.7152, 0.0722][k], 0);
  const backdrop = (e) => {
    for (; e; e = e.parentElement) {
      const rgb = parse(getComputedStyle(e).backgroundColor);
      if (rgb[3] > 250) return rgb;
    }
    return [255, 255, 255, 255];
  };
  const worst = [];
  for (const e of document.querySelectorAll('body *:not(script):not(style)')) {
    const own = [...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
    const style = getComputedStyle(e);
    if (!own || !e.checkVisibility() || e.closest('svg, :disabled, .vh')) continue;
    const [a, b] = [light(parse(style.color)), light(backdrop(e))].sort((x, y) => y - x);
    worst.push([(a + 0.05) / (b + 0.05), parseFloat(style.fontSize), e.className || e.tagName]);
  }
  return worst.sort((x, y) => x[0] - y[0]);
})()
"""


@needs_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 400])
def test_browser_page_is_readable(browser, page_path, tmp_path, width, scheme):
    browser.open(page_path, width=width, scheme=scheme)
    browser.click(".rows .play")
    browser.wait("loopjaxReport.state().playing")
    assert browser.run("document.documentElement.scrollWidth") <= width
    texts = browser.run(CONTRAST)
    assert len(texts) > 60
    assert texts[0][0] >= 4.5, texts[:3]  # WCAG AA
    assert min(size for _, size, _ in texts) >= 11
    dark = browser.run(CONTRAST.replace("const worst", "return light(backdrop(document.body))//"))
    assert (dark < 0.1) == (scheme == "dark")
    browser.screenshot(tmp_path / "page.png")
    assert (tmp_path / "page.png").stat().st_size > 20_000


@needs_browser
def test_browser_theme_button_overrides_the_system(browser, page_path):
    browser.open(page_path, scheme="light")
    seen = {browser.run("getComputedStyle(document.body).backgroundColor")}
    browser.click("#theme")
    browser.click("#theme")
    assert browser.run("document.documentElement.dataset.theme") == "dark"
    seen.add(browser.run("getComputedStyle(document.body).backgroundColor"))
    assert len(seen) == 2
    browser.click("#theme")


@pytest.mark.slow
@needs_browser
def test_browser_is_quick_with_500_rows(browser, tmp_path):
    run, embeddings = make_run(tmp_path, n=500, seconds=0.05)
    path = report.write_report(run, config=ReportConfig(top=500), embeddings=embeddings)
    browser.call("Performance.enable", timeDomain="threadTicks")  # processor time, not wall time
    browser.open(path)
    loaded_s = busy_s(browser)
    assert loaded_s < 4
    assert len(shown(browser)) == 500
    before_s = busy_s(browser)
    browser.click("[data-sort=name] button")
    browser.run("document.body.offsetHeight")
    assert busy_s(browser) - before_s < 2
    assert browser.errors == []


def busy_s(browser):
    metrics = browser.call("Performance.getMetrics")["metrics"]
    return next(m["value"] for m in metrics if m["name"] == "TaskDuration")
