import csv
import io
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

pytest.importorskip("starlette", reason="the extra [serve] is not installed")
pytest.importorskip("uvicorn", reason="the extra [serve] is not installed")
pytest.importorskip("httpx", reason="the extra [test] is not installed")

import numpy as np
import soundfile
from starlette.testclient import TestClient

from loopjax.cli import main
from loopjax.detectors.knn import KNN
from loopjax.encoders.load import load_encoder
from loopjax.encoders.space import Space
from loopjax.errors import UserError
from loopjax.experiment.curation import curate, reason_of
from loopjax.library.marks import read_marks
from loopjax.model import Model, load_model
from loopjax.report.lists import Curated
from loopjax.serve.app import make_app
from loopjax.serve.guard import Guard
from loopjax.serve.live import Live
from loopjax.serve.marks import Change, MarksFile
from loopjax.store.read import read_embeddings
from tests.library.test_text import by_hand, corpus  # noqa: F401
from tests.serve.conftest import tone

PORT, TOKEN = 8765, "the token"
OWN = {"origin": f"http://127.0.0.1:{PORT}"}
LIMIT = 1 << 20


@pytest.fixture(scope="module")
def live(home):
    model = load_model(home / "model")
    encoder = model.load_encoder()
    live = Live(home / "emb", model, encoder, curate(home / "emb"), reason_of)
    yield live
    live.close()


@pytest.fixture
def marks(live, tmp_path):
    return MarksFile(tmp_path / "marks.csv", live.ids(), live.paths())


@pytest.fixture
def client(live, marks):
    app = Guard(make_app(live, marks, LIMIT), TOKEN, ["127.0.0.1", "localhost"], PORT)
    client = TestClient(app, base_url=f"http://127.0.0.1:{PORT}", follow_redirects=False)
    client.cookies.set(f"loopjax-{PORT}", TOKEN)
    return client


def post(client, path, **options):
    return client.post(path, headers=OWN, **options)


def test_the_page_holds_the_ranking_and_allows_its_script_alone(client):
    answer = client.get("/")
    assert answer.status_code == 200
    assert "broken.wav" in answer.text  # rejected when it was embedded
    assert "default-src 'none'; script-src 'sha256-" in answer.text
    assert "connect-src 'self'" in answer.text
    assert answer.headers["x-frame-options"] == "DENY"
    assert answer.headers["cache-control"] == "no-store"
    assert "Drop loops here" in answer.text
    assert "Describe a sound" not in answer.text  # the encoder knows sounds only


def test_loops_are_heard_compared_and_explained(client):
    sound = client.get("/sound/0").json()
    assert len(sound["wave"]) == 240 and sound["picture"].startswith("data:image/png")
    audio = client.get("/audio/0")
    assert audio.headers["content-type"] == "audio/flac"
    found = soundfile.info(io.BytesIO(audio.content))
    assert found.duration == pytest.approx(sound["seconds"], abs=1e-3)
    near = client.get("/near/0").json()["near"]
    assert len(set(near)) == 3 and 0 not in near
    assert "band" in client.get("/why/0").json()["why"]


def test_any_scores_are_explained_by_their_model(home, tmp_path):
    scores, page = str(tmp_path / "scores.parquet"), tmp_path / "page.html"
    store, model = str(home / "emb"), str(home / "model")
    assert main(["score", model, store, "-o", scores]) in (0, 3)
    command = ["report", scores, "--store", store, "-o", str(page)]
    assert main(command) == 0
    assert "log-mel-statistics embeddings" in page.read_text(encoding="utf-8")
    explained = re.compile(r'"why":\{"0":"(low|middle|high) band')
    assert not explained.search(page.read_text(encoding="utf-8"))
    assert main([*command, "--model", model]) == 0
    assert explained.search(page.read_text(encoding="utf-8"))
    assert main(["report", scores, "--model", model]) == 2


@pytest.mark.parametrize("path", ["sound", "audio", "near", "why"])
def test_loops_are_named_by_number_alone(client, path):
    assert client.get(f"/{path}/99999").status_code == 404
    for other in ("-1", "..%2f..%2fetc%2fpasswd", "../../etc/passwd", "a", "9" * 5000, "%00", "²"):
        assert client.get(f"/{path}/{other}").status_code == 404


def test_a_loop_of_the_store_finds_itself(client, home):
    content = (home / "loops" / "bass" / "bass_001.ogg").read_bytes()
    found = post(client, "/ask?name=x%3Cb%3E.ogg", content=content).json()
    assert found["name"] == "x<b>.ogg"
    assert found["near"][0]["cosine"] == pytest.approx(1, abs=1e-3)
    page = client.get("/").text
    assert found["near"][0]["i"] == _index(page, "bass_001.ogg")
    assert "sounds like bass" in found["why"] or "band" in found["why"]


def test_an_odd_sound_is_anomalous_and_says_where(client):
    found = post(client, "/ask?name=tone.wav", content=tone()).json()
    assert found["is_anomaly"] and found["percentile"] == 100
    assert "band" in found["why"]
    assert len(found["near"]) == 10


@pytest.mark.parametrize("content", [b"", b"RIFF", b"<script>", bytes(5000)])
def test_what_is_no_audio_gets_a_reason(client, content):
    answer = post(client, "/ask?name=a.wav", content=content)
    assert answer.status_code == 422
    assert ":" in answer.json()["error"]
    assert post(client, "/ask?name=a.wav", content=tone()).status_code == 200  # still there


def test_uploads_have_a_limit(client):
    assert post(client, "/ask", content=bytes(LIMIT + 1)).status_code == 413

    def chunks():
        for _ in range(20):
            yield bytes(100_000)

    answer = post(client, "/ask", content=chunks())  # without a length
    assert answer.status_code == 413 and "1 MiB" in answer.json()["error"]


def test_texts_are_refused_where_the_encoder_knows_none(client):
    answer = post(client, "/text", json={"text": "dusty upright bass"})
    assert answer.status_code == 409
    assert "log-mel-statistics" in answer.json()["error"]
    for bad in ({}, {"text": ""}, {"text": 7}, {"text": "x" * 201}):
        assert post(client, "/text", json=bad).status_code == 400


def test_marks_are_written_back_and_read_again(client, marks, live):
    decisions = [
        {"i": 0, "mark": "reject", "note": '=HYPER("x"), thin'},
        {"i": 1, "mark": "keep"},
        {"i": 2, "note": "later"},
    ]
    assert post(client, "/marks", json={"decisions": decisions}).status_code == 200
    found = read_marks(marks.path)
    assert [(mark.id, mark.mark) for mark in found] == [
        (live.ids()[0], "reject"),
        (live.ids()[1], "keep"),
    ]
    assert found[0].note == '=HYPER("x"), thin'
    again = MarksFile(marks.path, live.ids(), live.paths()).by_row()
    assert client.get("/marks").json() == {str(row): value for row, value in again.items()}
    assert [value["note"] for value in again.values()] == ['=HYPER("x"), thin', "", "later"]
    undo = [{"i": i, "mark": "", "note": ""} for i in range(3)]
    post(client, "/marks", json={"decisions": undo})
    assert client.get("/marks").json() == {}


@pytest.mark.parametrize(
    "item",
    [
        *({}, 7, None, {"i": 0, "mark": "x"}, {"i": 0, "mark": "keep", "note": 5}),
        *({"i": True, "mark": "keep"}, {"i": "0", "mark": "keep"}),
    ],
)  # fmt: skip
def test_other_marks_are_refused(client, marks, item):
    assert post(client, "/marks", json={"decisions": [item]}).status_code == 400
    assert not marks.path.exists()


IDS = [f"{0:016x}-{0:08x}", f"{7:016x}-{1:08x}", f"{7:016x}-{2:08x}", "kick-01", "kick-02"]


@pytest.fixture
def of_five(tmp_path):
    """Marks of five loops, of which two are copies and two have ids of another kind."""

    def read():
        return MarksFile(tmp_path / "marks.csv", IDS, [f"{row}.wav" for row in range(5)])

    return read


def test_marks_of_other_loops_stay(of_five):
    path = of_five().path
    path.write_text("id;path;mark;note\nelse;else.wav;Kept;mine\nx;;;a note alone\n")
    of_five().decide([Change(0, "reject", None)])
    rows = list(csv.DictReader(path.open()))
    assert [(row["id"], row["mark"], row["note"]) for row in rows] == [
        ("else", "keep", "mine"), ("x", "", "a note alone"), (IDS[0], "reject", ""),
    ]  # fmt: skip


def test_a_decision_changes_nothing_else(of_five):
    of_five().decide([Change(0, "reject", None), Change(0, None, "thin")])
    assert of_five().by_row() == {0: {"mark": "reject", "note": "thin"}}
    of_five().decide([Change(0, "", None)])
    assert of_five().by_row() == {0: {"mark": "", "note": "thin"}}
    of_five().decide([Change(3, "keep", None)])
    assert set(of_five().by_row()) == {0, 3}  # the ids of 3 and 4 begin alike


def test_of_copies_one_is_kept_and_one_rejected(of_five):
    of_five().decide([Change(1, "keep", None), Change(2, "reject", None)])
    assert {row: value["mark"] for row, value in of_five().by_row().items()} == {
        1: "keep",
        2: "reject",
    }
    assert {mark.id: mark.mark for mark in read_marks(of_five().path)} == {
        IDS[1]: "keep",
        IDS[2]: "reject",
    }


def test_marks_of_a_file_that_was_moved_are_those_of_its_content(of_five):
    moved = f"{7:016x}-{99:08x}"
    of_five().path.write_text(f"id,path,mark,note\n{moved},old.wav,reject,mine\n")
    assert of_five().by_row() == {row: {"mark": "reject", "note": "mine"} for row in (1, 2)}
    of_five().decide([Change(1, "", "")])
    assert of_five().by_row() == {2: {"mark": "reject", "note": "mine"}}
    assert [mark.id for mark in read_marks(of_five().path)] == [IDS[2]]


def test_a_file_that_changes_meanwhile_keeps_its_marks(of_five):
    one, other = of_five(), of_five()
    one.decide([Change(0, "keep", None)])
    other.decide([Change(1, "reject", None)])
    one.decide([Change(3, "keep", "mine")])
    assert set(other.by_row()) == {0, 1, 3}
    one.path.write_text("id,mark\nx,perhaps\n")
    with pytest.raises(UserError, match=r"marks\.csv:2: mark is 'perhaps'"):
        one.decide([Change(0, "", None)])
    assert one.path.read_text() == "id,mark\nx,perhaps\n"
    one.path.unlink()
    one.decide([Change(0, "keep", None)])
    assert set(other.by_row()) == {0}


def test_two_servers_of_one_file_lose_no_mark(tmp_path):
    path, ids = tmp_path / "new" / "marks.csv", [f"{i:016x}-{i:08x}" for i in range(100)]
    script = (
        "import sys; from pathlib import Path; from loopjax.serve.marks import Change, MarksFile\n"
        "ids = [f'{i:016x}-{i:08x}' for i in range(100)]\n"
        "marks = MarksFile(Path(sys.argv[1]), ids, ids)\n"
        "print(flush=True); sys.stdin.readline()\n"
        "for i in range(50): marks.decide([Change(int(sys.argv[2]) + 2 * i, 'keep', None)])\n"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    servers = [
        subprocess.Popen([sys.executable, "-c", script, path, str(first)], **pipes)
        for first in (0, 1)
    ]
    for server in servers:
        server.stdout.readline()  # it has read the file, which is not there yet
    for server in servers:
        print("go", file=server.stdin, flush=True)
    for server in servers:
        server.communicate(timeout=60)
        assert server.returncode == 0
    assert set(MarksFile(path, ids, ids).by_row()) == set(range(100))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n", "'mark'"), ("", "'mark'"), ("id,mark,rank\nx,keep,1\n", "'rank', which would"),
        ('id,mark\n"x', "table"), ("id,mark\nx,keep\nx,reject\n", "marked otherwise"),
    ],
)  # fmt: skip
def test_files_that_are_no_marks_are_refused(of_five, text, message):
    path = of_five().path
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        of_five()
    assert path.read_text() == text


def test_many_decide_at_once(client, marks, live):
    with ThreadPoolExecutor(8) as pool:
        for answer in pool.map(
            lambda i: post(client, "/marks", json={"decisions": [{"i": i % 8, "note": str(i)}]}),
            range(40),
        ):
            assert answer.status_code == 200
    found = MarksFile(marks.path, live.ids(), live.paths()).by_row()
    assert set(found) == set(range(8))


def test_without_the_token_nothing_is_told(client):
    client.cookies.clear()
    for path in ("/", "/marks", "/sound/0", "/nowhere"):
        assert client.get(path).status_code == 401
    assert client.get("/?token=guess").status_code == 401
    answer = client.get(f"/?token={TOKEN}".replace(" ", "%20"))
    assert answer.status_code == 303 and answer.headers["location"] == "/"
    cookie = answer.headers["set-cookie"].lower()
    assert "httponly" in cookie and "samesite=strict" in cookie


@pytest.mark.parametrize(
    "headers",
    [
        {"host": "evil.example:8765"},
        {"host": "127.0.0.1:1"},
        {"host": "127.0.0.1"},
        {"host": ""},
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"origin": "http://127.0.0.1:1"},
    ],
)
def test_other_names_and_origins_are_refused(client, headers):
    assert client.get("/", headers=headers).status_code == 403
    assert client.post("/marks", headers=OWN | headers, json={}).status_code == 403


def test_changes_need_an_origin(client):
    assert client.post("/marks", json={"decisions": []}).status_code == 403
    assert client.get("/").status_code == 200


@pytest.mark.parametrize("package", ["starlette", "uvicorn"])
def test_a_missing_extra_is_named(home, package, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, package, None)
    assert main(["serve", str(home / "emb"), "--model", str(home / "model")]) == 2
    assert "pip install 'loopjax[serve]'" in capsys.readouterr().err


def _index(page, name):
    start = page.index('"name":[') + len('"name":[')
    return [part.strip('"') for part in page[start : page.index("]", start)].split(",")].index(name)


def test_texts_find_loops_where_the_encoder_knows_them(corpus, tmp_path):  # noqa: F811
    embeddings = read_embeddings(corpus / "emb")
    space = Space.from_metadata(embeddings.metadata)
    model = Model(KNN().fit(embeddings.matrix), "knn", space)
    live = Live(corpus / "emb", model, load_encoder(corpus / "encoder"), Curated(), reason_of)
    marks = MarksFile(tmp_path / "m.csv", live.ids(), live.paths())
    app = Guard(make_app(live, marks, LIMIT), TOKEN, ["127.0.0.1"], PORT)
    client = TestClient(app, base_url=f"http://127.0.0.1:{PORT}")
    client.cookies.set(f"loopjax-{PORT}", TOKEN)
    assert "Describe a sound" in client.get("/").text
    found = post(client, "/text", json={"text": "dusty upright bass"}).json()
    cosines, paths = by_hand(corpus, ["dusty upright bass"])
    order = np.argsort(-cosines[0])
    assert [live.paths()[item["i"]] for item in found] == [paths[row] for row in order]
    assert [item["cosine"] for item in found] == pytest.approx(cosines[0][order], abs=1e-4)
    live.close()
