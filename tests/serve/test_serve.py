import csv
import io
import shutil
import signal
import socket
import subprocess
import sys
import time

import pytest

pytest.importorskip("starlette", reason="the extra [serve] is not installed")
pytest.importorskip("uvicorn", reason="the extra [serve] is not installed")
pytest.importorskip("httpx", reason="the extra [test] is not installed")

import numpy as np
import soundfile
from starlette.testclient import TestClient

from loopjax import bundled
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
from loopjax.serve.marks import Decision, MarksFile
from loopjax.serve.server import listen
from loopjax.store.read import read_embeddings
from tests.library.test_text import by_hand, corpus  # noqa: F401
from tests.report.browser import Browser, find_chromium

PORT, TOKEN = 8765, "the token"
OWN = {"origin": f"http://127.0.0.1:{PORT}"}
LIMIT = 1 << 20


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with loops, their store and a model."""
    folder = tmp_path_factory.mktemp("serve")
    for kind in ("bass", "guitar"):
        (folder / "loops" / kind).mkdir(parents=True)
        for source in sorted(bundled.folder("demo").glob(f"{kind}_00*.ogg")):
            shutil.copy(source, folder / "loops" / kind)
    (folder / "loops" / "broken.wav").write_bytes(b"RIFF no audio")
    store, model = str(folder / "emb"), str(folder / "model")
    embed = ["embed", str(folder / "loops"), "-o", store, "--encoder", "log-mel-statistics"]
    assert main(embed) == 3
    assert main(["fit", store, "-o", model, "--detector", "knn"]) == 0
    return folder


@pytest.fixture(scope="module")
def live(home):
    model = load_model(home / "model")
    encoder = model.load_encoder()
    live = Live(home / "emb", model, encoder, curate(home / "emb"), reason_of)
    yield live
    live.close()


@pytest.fixture
def marks(tmp_path):
    return MarksFile(tmp_path / "marks.csv")


@pytest.fixture
def client(live, marks):
    app = Guard(make_app(live, marks, LIMIT), TOKEN, ["127.0.0.1", "localhost"], PORT)
    client = TestClient(app, base_url=f"http://127.0.0.1:{PORT}", follow_redirects=False)
    client.cookies.set(f"loopjax-{PORT}", TOKEN)
    return client


def post(client, path, **options):
    return client.post(path, headers=OWN, **options)


def tone(seconds=1.0, rate_hz=32_000):
    file = io.BytesIO()
    t = np.arange(int(seconds * rate_hz)) / rate_hz
    soundfile.write(file, 0.5 * np.sin(2 * np.pi * 3000 * t), rate_hz, "PCM_16", format="WAV")
    return file.getvalue()


def test_the_page_holds_the_ranking_and_allows_its_script_alone(client):
    answer = client.get("/")
    assert answer.status_code == 200
    assert "broken.wav" in answer.text  # rejected when it was embedded
    assert "default-src 'none'; script-src 'sha256-" in answer.text
    assert "connect-src 'self'" in answer.text
    assert answer.headers["x-frame-options"] == "DENY"
    assert answer.headers["cache-control"] == "no-store"


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


@pytest.mark.parametrize("path", ["sound", "audio", "near", "why"])
def test_loops_are_named_by_number_alone(client, path):
    assert client.get(f"/{path}/99999").status_code == 404
    for other in ("-1", "..%2f..%2fetc%2fpasswd", "../../etc/passwd", "a"):
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
        {"i": 1, "mark": "keep", "note": ""},
        {"i": 2, "mark": "", "note": "later"},
    ]
    assert post(client, "/marks", json={"decisions": decisions}).status_code == 200
    found = read_marks(marks.path)
    assert [(mark.id, mark.mark) for mark in found] == [
        (live.id_and_path(0)[0], "reject"),
        (live.id_and_path(1)[0], "keep"),
    ]
    assert found[0].note == '=HYPER("x"), thin'
    again = MarksFile(marks.path).by_key()
    assert again == client.get("/marks").json()
    assert [value["note"] for value in again.values()] == ['=HYPER("x"), thin', "", "later"]
    undo = [{"i": i, "mark": "", "note": ""} for i in range(3)]
    post(client, "/marks", json={"decisions": undo})
    assert MarksFile(marks.path).by_key() == {}


@pytest.mark.parametrize(
    "item",
    [
        *({}, 7, None, {"i": 0, "mark": "x", "note": ""}, {"i": 0, "mark": "keep", "note": 5}),
        *({"i": True, "mark": "keep", "note": ""}, {"i": "0", "mark": "keep", "note": ""}),
    ],
)  # fmt: skip
def test_other_marks_are_refused(client, marks, item):
    assert post(client, "/marks", json={"decisions": [item]}).status_code == 400
    assert not marks.path.exists()


def test_marks_of_other_loops_stay(tmp_path):
    path = tmp_path / "marks.csv"
    path.write_text("id,path,mark,note\nelse,else.wav,keep,mine\n")
    MarksFile(path).decide([Decision("0123456789abcdef-00000001", "a.wav", "reject", "")])
    rows = list(csv.DictReader(path.open()))
    assert [row["id"] for row in rows] == ["else", "0123456789abcdef-00000001"]
    path.write_text("id,mark\nx,perhaps\n")
    with pytest.raises(UserError, match=r"marks\.csv:2: mark is 'perhaps'"):
        MarksFile(path)
    path.write_text("a,b\n")
    with pytest.raises(UserError, match="no column 'id'"):
        MarksFile(path)


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


def test_a_taken_port_is_one_line(home, capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        command = ["serve", str(home / "emb"), "--model", str(home / "model"), "--port", port]
        assert main(command) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"cannot listen on 127.0.0.1:{port}" in line
    with pytest.raises(UserError, match=r"cannot listen on 127\.0\.0\.1:99999"):
        listen("127.0.0.1", 99999)


@pytest.mark.parametrize("package", ["starlette", "uvicorn"])
def test_a_missing_extra_is_named(home, package, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, package, None)
    assert main(["serve", str(home / "emb"), "--model", str(home / "model")]) == 2
    assert "pip install 'loopjax[serve]'" in capsys.readouterr().err


def _index(page, name):
    start = page.index('"name":[') + len('"name":[')
    return [part.strip('"') for part in page[start : page.index("]", start)].split(",")].index(name)


@pytest.mark.skipif(find_chromium() is None, reason="no Chromium on this machine")
def test_the_live_page_in_a_browser(home, tmp_path):
    marks = tmp_path / "marks.csv"
    command = [sys.executable, "-m", "loopjax", "serve", str(home / "emb")]
    command += ["--model", str(home / "model"), "--port", "0", "--marks", str(marks)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    browser = Browser()
    try:
        address = process.stdout.readline().strip()
        assert address.startswith("http://127.0.0.1:")
        browser.open(address)
        browser.wait("document.querySelector('.rows .thumbs:not([hidden]) img')?.complete")
        assert "token" not in browser.run("location.href")
        browser.press("n")
        browser.wait("loopjaxReport.state().playing")
        assert browser.run("loopjaxReport.state().gapless")
        browser.wait("document.querySelectorAll('#dock-near button').length === 4")
        browser.press("r")
        _wait(lambda: marks.exists() and "reject" in marks.read_text())
        browser.open(address.partition("?")[0])
        browser.wait("document.querySelector('.rows .rejected') !== null")
        (tmp_path / "odd <b>.wav").write_bytes(tone())
        browser.choose_file("#ask-files", tmp_path / "odd <b>.wav")
        browser.wait("document.querySelectorAll('#answers .near button').length === 10")
        told = browser.run("document.getElementById('answers').innerText")
        assert "odd <b>.wav" in told and "anomaly, percentile 100.0" in told
        browser.run("document.getElementById('ask-text').value = 'bass'")
        browser.click("#ask-text-form button")
        browser.wait("document.getElementById('ask-status').innerText.includes('no texts')")
        browser.screenshot(tmp_path / "live.png")
        assert [e for e in browser.errors if "409" not in str(e)] == []
    finally:
        browser.close()
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0


def _wait(condition, seconds=20):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_texts_find_loops_where_the_encoder_knows_them(corpus, tmp_path):  # noqa: F811
    embeddings = read_embeddings(corpus / "emb")
    space = Space.from_metadata(embeddings.metadata)
    model = Model(KNN().fit(embeddings.matrix), "knn", space)
    live = Live(corpus / "emb", model, load_encoder(corpus / "encoder"), Curated(), reason_of)
    app = Guard(make_app(live, MarksFile(tmp_path / "m.csv"), LIMIT), TOKEN, ["127.0.0.1"], PORT)
    client = TestClient(app, base_url=f"http://127.0.0.1:{PORT}")
    client.cookies.set(f"loopjax-{PORT}", TOKEN)
    found = post(client, "/text", json={"text": "dusty upright bass"}).json()
    cosines, paths = by_hand(corpus, ["dusty upright bass"])
    order = np.argsort(-cosines[0])
    assert [live.id_and_path(item["i"])[1] for item in found] == [paths[row] for row in order]
    assert [item["cosine"] for item in found] == pytest.approx(cosines[0][order], abs=1e-4)
    live.close()
