"""A decoder process that crashes, hangs or eats memory over files that ask for it."""

import os
import signal
import time

import numpy as np

from loopjax.audio.decode import decode_file
from loopjax.audio.worker import serve


def decode(path, size_bytes, mtime_ns, options):
    """Misbehaves according to the file's name."""
    name = path.rsplit(b"/", 1)[-1]
    if name.startswith(b"segfault"):
        os.kill(os.getpid(), signal.SIGSEGV)
    if name.startswith(b"exit"):
        os._exit(7)
    if name.startswith(b"sleep"):
        time.sleep(3600)
    if name.startswith(b"memory"):
        np.ones(1 << 31)  # 16 GiB
    if name.startswith(b"once") and not os.path.exists(path + b".died"):  # noqa: PTH110
        with open(path + b".died", "w"):  # noqa: PTH123
            os._exit(1)
    return decode_file(path, size_bytes, mtime_ns, options)


if __name__ == "__main__":
    serve(decode)
