"""What the user sees while a run goes on."""

import pytest

from loopjax.embedding import progress
from loopjax.embedding.progress import Progress


class Clock:
    def __init__(self):
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


def test_plain_line_every_ten_seconds(clock, capsys):
    with Progress("embedding") as bar:
        bar.set_total(200)
        bar.update(1, lambda: "never shown")
        clock.now += 10
        bar.update(50, lambda: "5.0 files/s, 1 failed, device waits 3 %")
        clock.now += 3
        bar.update(60, lambda: "too early")
    captured = capsys.readouterr()
    line = "embedding: 50/200, 5.0 files/s, 1 failed, device waits 3 %, 0:30 left\n"
    assert captured.err == line
    assert captured.out == ""


def test_unknown_total_and_silence(clock, capsys):
    with Progress("embedding") as bar:
        clock.now += 10
        bar.update(5, lambda: "note")
    assert capsys.readouterr().err == "embedding: 5/?, note\n"
    with Progress("embedding", enabled=False) as bar:
        clock.now += 100
        bar.update(5, lambda: "note")
    assert capsys.readouterr().err == ""


def test_bar_on_a_terminal(monkeypatch, capsys):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    monkeypatch.setattr(progress, "BAR_EVERY_S", 0.0)
    with Progress("embedding") as bar:
        bar.set_total(10)
        bar.update(5, lambda: "2.0 files/s")
    captured = capsys.readouterr()
    assert "5/10" in captured.err
    assert captured.out == ""
