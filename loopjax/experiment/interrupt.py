"""A signal ends a run between two of its writes, so that what was finished is kept."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType

from loopjax.errors import InterruptedRunError

SIGNALS = (signal.SIGINT, signal.SIGTERM)
AGAIN_S = 0.05


class _Stopped(KeyboardInterrupt):
    """Raised where the signal found the program; no `except Exception` catches it."""

    def __init__(self, number: int):
        super().__init__()
        self.number = number


def ignore_signals() -> None:
    """From here on SIGINT and SIGTERM do nothing."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


@contextlib.contextmanager
def stoppable() -> Iterator[None]:
    """Turns the first SIGINT or SIGTERM into an error after files in the making are cleared away.

    Everything is written completely or not at all, so what was finished stays. Further signals are
    ignored, as they can only disturb that. Outside the main thread signals cannot be caught.

    A signal may find the program where Python drops every error, such as in a callback of its
    garbage collector; it is then sent again.

    Raises:
        InterruptedRunError: after a signal; its exit code is 130 or 143.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        ignore_signals()
        raise _Stopped(number)

    before, timers = sys.unraisablehook, []

    def send_again(dropped: "sys.UnraisableHookArgs") -> None:
        if not isinstance(dropped.exc_value, _Stopped):
            before(dropped)
            return
        for number in SIGNALS:
            signal.signal(number, stop)
        timer = threading.Timer(AGAIN_S, os.kill, (os.getpid(), dropped.exc_value.number))
        timers.append(timer)
        timer.start()

    old = {number: signal.signal(number, stop) for number in SIGNALS}
    sys.unraisablehook = send_again
    try:
        yield
    except _Stopped as stopped:
        name = signal.Signals(stopped.number).name
        message = f"stopped by {name}; what was finished is saved, run it again to continue"
        raise InterruptedRunError(message, stopped.number) from None
    finally:
        for timer in timers:
            timer.cancel()
        sys.unraisablehook = before
        for number, handler in old.items():
            signal.signal(number, handler)
