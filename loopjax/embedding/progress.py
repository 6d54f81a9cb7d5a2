"""Progress on stderr: a bar on a terminal, one plain line every ten seconds elsewhere."""

import sys
import time
from collections.abc import Callable
from types import TracebackType

LINE_EVERY_S = 10.0
BAR_EVERY_S = 0.2


class Progress:
    """Shows done, rate, time left, failures and the share of time the device waited."""

    def __init__(self, label: str, enabled: bool = True):
        self._label, self._enabled = label, enabled
        self._start = self._shown = time.monotonic()
        self._total: int | None = None
        self._bar = None
        self._task = None

    def __enter__(self) -> "Progress":
        if self._enabled and sys.stderr.isatty():
            from rich import progress
            from rich.console import Console

            self._bar = progress.Progress(
                progress.TextColumn("{task.description}"),
                progress.BarColumn(),
                progress.MofNCompleteColumn(),
                progress.TextColumn("{task.fields[note]}"),
                progress.TimeRemainingColumn(),
                console=Console(stderr=True),
                transient=False,
            )
            self._bar.start()
            self._task = self._bar.add_task(self._label, total=None, note="")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def set_total(self, total: int) -> None:
        """Tells how many inputs there are, once known."""
        self._total = total

    def update(self, done: int, note: Callable[[], str]) -> None:
        """Shows the state if the last showing is old enough; `note` is only then evaluated."""
        if not self._enabled:
            return
        now = time.monotonic()
        if now - self._shown < (BAR_EVERY_S if self._bar is not None else LINE_EVERY_S):
            return
        self._shown = now
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=done, total=self._total, note=note())
            return
        total = "?" if self._total is None else str(self._total)
        left = ""
        if self._total is not None and done:
            seconds = (now - self._start) / done * (self._total - done)
            left = f", {int(seconds // 60)}:{int(seconds % 60):02d} left"
        sys.stderr.write(f"{self._label}: {done}/{total}, {note()}{left}\n")
        sys.stderr.flush()
