"""`loopjax serve` as a process of its own, asked over its socket and in a real browser."""

import contextlib
import http.client
import io
import json
import signal
import socket
import subprocess
import sys
import time

import pytest

pytest.importorskip("starlette", reason="the extra [serve] is not installed")
pytest.importorskip("uvicorn", reason="the extra [serve] is not installed")

import numpy as np
import soundfile

from loopjax.cli import main
from loopjax.errors import UserError
from loopjax.library.marks import read_marks
from loopjax.serve.server import listen
from tests.report.browser import Browser, find_chromium, violations
from tests.serve.conftest import tone

END_S = 20  # on a busy machine; some 3 s otherwise
needs_browser = pytest.mark.skipif(find_chromium() is None, reason="no Chromium on this machine")


class Server:
    """A server of its own; the token is known."""

    def __init__(self, home, folder):
        self.marks, self._errors = folder / "marks.csv", folder / "stderr.txt"
        command = [sys.executable, "-m", "loopjax", "serve", str(home / "emb")]
        command += ["--model", str(home / "model"), "--port", "0", "--marks", str(self.marks)]
        with self._errors.open("wb") as errors:
            self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors)
        self.address = self.process.stdout.readline().decode().strip()
        assert self.address.startswith("http://127.0.0.1:"), self.errors()
        self.port = int(self.address.partition("1:")[2].partition("/")[0])
        self.page, _, token = self.address.partition("?")
        connection = http.client.HTTPConnection("127.0.0.1", self.port)
        connection.request("GET", f"/?{token}")
        self.cookie = connection.getresponse().getheader("set-cookie").partition(";")[0]
        connection.close()

    def head(self, line, host=None, **headers):
        """The first lines of a request, as bytes."""
        headers = {"Host": host or f"127.0.0.1:{self.port}", "Cookie": self.cookie, **headers}
        headers["Origin"] = f"http://127.0.0.1:{self.port}"
        lines = [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        return "\r\n".join([f"{line} HTTP/1.1", *lines, "", ""]).encode("latin-1")

    def begin(self, *parts):
        """A connection on which something was sent."""
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=60)
        for part in parts:
            connection.sendall(part)
        return connection

    def ask(self, line, content=b"", **headers):
        """The answer to a request that is sent as it is: status and body."""
        head = self.head(line, Content_Length=len(content), **headers)
        with self.begin(head, content) as connection:
            answer = http.client.HTTPResponse(connection)
            answer.begin()
            return answer.status, answer.read()

    def errors(self):
        return self._errors.read_text()

    def end(self, number):
        """Stops it; exit code and seconds."""
        start = time.monotonic()
        self.process.send_signal(number)
        return self.process.wait(60), time.monotonic() - start


@pytest.fixture(scope="module")
def server(home, tmp_path_factory):
    server = Server(home, tmp_path_factory.mktemp("server"))
    yield server
    assert server.end(signal.SIGINT)[0] == 0
    assert "Traceback" not in server.errors(), server.errors()


@pytest.mark.parametrize(
    "target",
    [
        *("/../../etc/passwd", "/sound/..%2f..%2fetc%2fpasswd", "//etc/passwd", "/%2e%2e/etc"),
        *("/sound/%00", "/sound/0%00.wav", "/audio/C:%5Cwindows%5Cwin.ini", "/sound/..\\..\\x"),
        *("/audio//etc/passwd", "/sound/" + "9" * 5000, "/near/-1", "/why/1e3", "/sound/%c2%b2"),
        *("/static/page.js", "/openapi.json", "http://evil.example/etc/passwd", "/sound/0/"),
    ],
)  # fmt: skip
def test_no_path_leads_to_a_file(server, target):
    status, body = server.ask(f"GET {target}")
    assert status in (307, 404) and b"root:" not in body  # 307: the same without its last slash


@pytest.mark.parametrize("method", ["PUT", "DELETE", "TRACE", "OPTIONS", "PATCH"])
def test_other_methods_are_refused(server, method):
    assert server.ask(f"{method} /marks")[0] == 405


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil:{}", "[::1", " ", "a@localhost:{}"]
)
def test_other_names_are_refused(server, host):
    assert server.ask("GET /", host=host.format(server.port))[0] in (400, 403)


@pytest.mark.parametrize("sent", [b"\0" * 200, b"GET / HTTP/9\r\n\r\n", b"GET " + b"a" * 200_000])
def test_what_is_no_request_ends_its_connection(server, sent):
    with contextlib.suppress(ConnectionError), server.begin(sent, b"\r\n\r\n") as connection:
        assert connection.recv(1 << 16)[:12] in (b"HTTP/1.1 400", b"")
    assert server.ask("GET /marks")[0] == 200


def test_halves_of_characters_are_refused(server):
    for content in (rb'{"decisions": [{"i": 0, "note": "\ud800"}]}', b"[" * 100_000, b"\xff"):
        assert server.ask("POST /marks", content)[0] == 400


def flac(seconds, fmt="FLAC"):
    file = io.BytesIO()
    with soundfile.SoundFile(file, "w", 8000, 1, format=fmt) as audio:
        for _ in range(seconds):
            audio.write(np.zeros(8000, np.float32))
    return file.getvalue()


def test_hours_in_few_bytes_are_refused_before_they_are_decoded(server):
    for fmt in ("FLAC", "OGG"):
        content = flac(3600, fmt)
        assert len(content) < 1 << 20
        status, body = server.ask("POST /ask?name=bomb", content)
        assert status == 422 and b"limit_duration" in body


def test_long_sounds_are_scored_and_not_explained(server):
    status, body = server.ask("POST /ask?name=long", flac(40))
    assert status == 200 and "longer than 30\u00a0s" in json.loads(body)["why"]


def test_cut_off_audio_has_a_reason(server):
    status, body = server.ask("POST /ask?name=cut.wav", tone()[:-9000])
    assert status == 422 and b"truncated" in body


def test_who_breaks_off_disturbs_nobody(server):
    for _ in range(5):  # more than are held at a time
        server.begin(server.head("POST /ask", Content_Length=1 << 20), bytes(1000)).close()
    assert server.ask("POST /ask?name=a.wav", tone())[0] == 200


def test_many_uploads_wait_for_each_other(server):
    stalled = [server.begin(server.head("POST /ask", Content_Length=9), b"1") for _ in range(5)]
    for connection in stalled:
        connection.sendall(b"23456789")
    for connection in stalled:
        answer = http.client.HTTPResponse(connection)
        answer.begin()
        assert answer.status == 422
        connection.close()


def test_two_servers_and_one_port(server, home, capsys):
    command = ["serve", str(home / "emb"), "--model", str(home / "model")]
    assert main([*command, "--port", str(server.port)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"cannot listen on 127.0.0.1:{server.port}: Address already in use; choose" in line
    with pytest.raises(UserError, match=r"cannot listen on 127\.0\.0\.1:99999"):
        listen("127.0.0.1", 99999)


@pytest.fixture
def own_server(home, tmp_path):
    server = Server(home, tmp_path)
    yield server
    server.process.kill()  # which a failed test left behind


def test_a_signal_ends_it_whatever_is_open(own_server):
    server = own_server
    head, long = server.head, flac(200)
    opened = [
        server.begin(head("GET /marks")),  # answered, and kept open
        server.begin(b"GET / HT"),
        server.begin(head("POST /ask", Content_Length=1 << 20), bytes(1000)),
        server.begin(head("POST /marks", Content_Length=100), b'{"decisions"'),
        server.begin(head("POST /ask", Content_Length=len(long)), long),
        server.begin(*[head("GET /")] * 200),  # and nobody reads
    ]
    for i in range(3):
        decision = json.dumps({"decisions": [{"i": i, "mark": "reject"}]}).encode()
        assert server.ask("POST /marks", decision)[0] == 200
    code, seconds = server.end(signal.SIGTERM)
    assert code == 0 and seconds < END_S
    assert len(server.errors().splitlines()) == 1, server.errors()  # where marks go
    assert len(read_marks(server.marks)) == 3
    for connection in opened:
        connection.close()


@pytest.fixture(scope="module")
def browser():
    browser = Browser()
    yield browser
    browser.close()


@pytest.fixture
def page(server, browser):
    """The address of the page; no loop is marked yet."""
    server.marks.unlink(missing_ok=True)
    browser.open(server.address)
    return server.page


def mark_of(browser, i):
    return browser.run(f"loopjaxReport.csv().split('\\n')[{i + 1}].split(',')[5]")


@needs_browser
def test_the_live_page_in_a_browser(page, server, browser, tmp_path):
    browser.wait("document.querySelector('.rows .thumbs:not([hidden]) img')?.complete")
    assert "token" not in browser.run("location.href")
    browser.press("n")
    browser.wait("loopjaxReport.state().playing")
    assert browser.run("loopjaxReport.state().gapless")
    browser.wait("document.querySelectorAll('#dock-near button').length === 4")
    browser.press("r")
    browser.wait("!loopjaxReport.state().unsaved")
    assert "reject" in server.marks.read_text()
    browser.open(page)
    browser.wait("document.querySelector('.rows .rejected') !== null")
    (tmp_path / "odd <b>.wav").write_bytes(tone())
    browser.choose_file("#ask-files", tmp_path / "odd <b>.wav")
    browser.wait("document.querySelectorAll('#answers .near button').length === 10")
    told = browser.run("document.getElementById('answers').innerText")
    assert "odd <b>.wav" in told and "anomaly, percentile 100.0" in told
    assert browser.run("document.getElementById('ask-text-form') === null")  # it knows no texts
    assert browser.errors == []


@needs_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_fault_with_the_live_page(page, browser, tmp_path, scheme):
    (tmp_path / "tone.wav").write_bytes(tone())
    for width in (1280, 400):
        browser.open(page, width=width, scheme=scheme)
        browser.choose_file("#ask-files", tmp_path / "tone.wav")
        browser.wait("document.querySelectorAll('#answers .near button').length === 10")
        browser.press("n")
        browser.wait("document.querySelectorAll('#dock-near button').length === 4")
        browser.wait("loopjaxReport.state().playing")
        assert violations(browser) == []
        assert browser.run("document.documentElement.scrollWidth") <= width


@needs_browser
def test_two_pages_and_a_person_write_the_same_marks(page, server, browser):
    own = json.dumps({"decisions": [{"i": 0, "note": "of another page"}, {"i": 5, "mark": "keep"}]})
    assert server.ask("POST /marks", own.encode())[0] == 200
    browser.press("n")
    browser.press("r")
    browser.wait("!loopjaxReport.state().unsaved")
    found = json.loads(server.ask("GET /marks")[1])
    assert found["0"] == {"mark": "reject", "note": "of another page"}
    browser.run("dispatchEvent(new Event('focus'))")
    browser.wait("loopjaxReport.csv().includes('of another page')")
    assert '"keep"' in mark_of(browser, 5)
    before = server.marks.read_text()
    server.marks.write_text("a person is writing")
    browser.press("k")
    browser.wait("document.getElementById('save-status').innerText.includes('not saved yet')")
    server.marks.write_text(before)
    browser.wait("!loopjaxReport.state().unsaved")  # it tries again
    assert [mark.mark for mark in read_marks(server.marks)].count("keep") == 2
    assert [e for e in browser.errors if "409" not in str(e)] == []
