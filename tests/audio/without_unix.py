"""Takes away the modules and functions that Windows does not have."""

import os
import select
import signal
import sys

MODULES = ("fcntl", "resource", "pwd", "grp", "termios")
OS_NAMES = [
    "pread",
    "pwrite",
    "preadv",
    "pwritev",
    "memfd_create",
    "sched_getaffinity",
    "O_NONBLOCK",
    "O_CLOEXEC",
]


def take_away_unix() -> None:
    """Importing the modules fails from here on, and the functions are not there."""
    for name in MODULES:
        sys.modules[name] = None  # pyright: ignore
    for name in OS_NAMES:
        if hasattr(os, name):
            delattr(os, name)
    for module, name in ((signal, "alarm"), (signal, "SIGALRM"), (select, "poll")):
        if hasattr(module, name):
            delattr(module, name)
