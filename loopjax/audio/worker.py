"""The decoder process: a request per line in, a reply per line out, samples through shared memory.

Started by `process.py` as `python -m loopjax.audio.worker`, never imported by it, so that a codec
that crashes, hangs or eats memory takes down this process and not the run. A plain subprocess is
used instead of multiprocessing because the latter re-imports the user's main script in the child.
"""

import contextlib
import json
import os
import signal
import sys
import threading
from collections.abc import Callable
from dataclasses import asdict
from io import FileIO
from queue import SimpleQueue
from typing import TextIO

import numpy as np

from loopjax.audio.decode import Decoded, DecodeOptions, decode_bytes, decode_file
from loopjax.audio.limits import Watchdog, limit_resources
from loopjax.audio.loop import DecodeError
from loopjax.audio.shared_samples import open_samples

GRACE_S = 5  # the parent's own timeout comes first; this one ends an orphan


def serve(decode: Callable[[bytes, int, int, DecodeOptions], Decoded] = decode_file) -> None:
    """Answers requests until the parent closes the pipe.

    The command line holds one JSON object: `samples` (a descriptor or a path), `memory_bytes`,
    `timeout_s` and `options` (fields of DecodeOptions). Replies go to standard output as it was at
    the start; whatever a codec prints later goes nowhere.
    """
    setup = json.loads(sys.argv[1])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides when to stop
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    missing = limit_resources(setup["memory_bytes"])
    options = dict(setup["options"])
    options["device_rates_hz"] = tuple(options["device_rates_hz"])
    options = DecodeOptions(**options)
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    samples = open_samples(setup["samples"])
    requests: SimpleQueue[str] = SimpleQueue()
    threading.Thread(target=_read_requests, args=(requests,), daemon=True).start()
    _reply(replies, {"ready": True, "missing_limits": missing})
    watchdog = Watchdog(int(setup["timeout_s"]) + GRACE_S)
    while True:
        path, size_bytes, mtime_ns, n_bytes = json.loads(requests.get())
        watchdog.start()
        if n_bytes < 0:
            file = path.encode("latin-1"), size_bytes, mtime_ns
            reply = _answer(lambda file=file: decode(*file, options), samples)
        else:
            reply = _answer(lambda n=n_bytes: decode_bytes(_read(samples, n), options), samples)
        watchdog.stop()
        _reply(replies, reply)


def _reply(replies: TextIO, reply: dict) -> None:
    replies.write(json.dumps(reply) + "\n")
    replies.flush()


def _read_requests(requests: SimpleQueue) -> None:
    for line in sys.stdin:
        requests.put(line)
    os._exit(0)  # the parent is gone: stop at once, even in the middle of a file


def _read(samples: FileIO, n_bytes: int) -> bytes:
    """What the parent put at the beginning of the file."""
    samples.seek(0)
    content = bytearray()
    while len(content) < n_bytes and (part := samples.read(n_bytes - len(content))):
        content += part
    return bytes(content)


def _answer(decode: Callable[[], Decoded], samples: FileIO) -> dict:
    try:
        decoded = decode()
        data = np.ascontiguousarray(decoded.samples)
        view, done = data.data.cast("B"), 0
        samples.seek(0)
        while done < len(view):
            done += samples.write(view[done:]) or 0
    except DecodeError as error:
        return {"reason": error.reason, "message": str(error)}
    except MemoryError:
        return {"reason": "out_of_memory", "message": "decoding needs more memory than allowed"}
    return {"dtype": data.dtype.name, "n_samples": data.size, "info": asdict(decoded.info)}


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):
        serve()
