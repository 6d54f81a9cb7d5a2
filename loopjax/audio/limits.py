"""Limits of the decoder process, as far as the operating system has them."""

import os
import signal
import threading

try:
    import resource
except ImportError:  # Windows
    resource = None


def limit_resources(memory_bytes: int) -> list[str]:
    """Limits this process's memory and turns core files off.

    A limit that is already smaller stays. macOS knows the names but refuses some of them, and
    Windows has none; what is left without a limit is told, not hidden.

    Args:
        memory_bytes: address space; 0 for no limit.

    Returns:
        Names of the limits that could not be set: `memory`, `core`.
    """
    missing = []
    if memory_bytes and not (
        _lower("RLIMIT_AS", memory_bytes) or _lower("RLIMIT_DATA", memory_bytes)
    ):
        missing.append("memory")
    if not _lower("RLIMIT_CORE", 0):
        missing.append("core")
    return missing


def _lower(name: str, value: int) -> bool:
    """Whether a limit is now at most `value`."""
    number = getattr(resource, name, None)
    if resource is None or number is None:
        return False
    try:
        soft, hard = resource.getrlimit(number)
        given = [limit for limit in (soft, hard) if limit != resource.RLIM_INFINITY]
        lowest = min([value, *given])
        resource.setrlimit(number, (lowest, lowest))
    except (OSError, ValueError):
        return False
    return True


class Watchdog:
    """Ends this process if one file takes too long, even if nobody is left to do it."""

    def __init__(self, seconds: int):
        """Sets the time that one file may take."""
        self._seconds = seconds
        self._timer: threading.Timer | None = None

    def start(self) -> None:
        """Begins to count."""
        if hasattr(signal, "alarm"):
            signal.alarm(self._seconds)
            return
        self._timer = threading.Timer(self._seconds, os._exit, [1])
        self._timer.daemon = True
        self._timer.start()

    def stop(self) -> None:
        """Stops counting."""
        if self._timer is not None:
            self._timer.cancel()
        elif hasattr(signal, "alarm"):
            signal.alarm(0)
