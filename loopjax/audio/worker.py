"""The decoder process: a request per line in, a reply per line out, samples through shared memory.

Started by `process.py` as `python -m loopjax.audio.worker`, never imported by it, so that a codec
that crashes, hangs or eats memory takes down this process and not the run. A plain subprocess is
used instead of multiprocessing because the latter re-imports the user's main script in the child.
"""

import contextlib
import json
import os
import resource
import signal
import sys
import threading
from collections.abc import Callable
from dataclasses import asdict
from queue import SimpleQueue

import numpy as np

from loopjax.audio.decode import Decoded, DecodeOptions, decode_file
from loopjax.audio.loop import DecodeError

GRACE_S = 5  # the parent's own timeout comes first; this one ends an orphan


def serve(decode: Callable[[bytes, int, int, DecodeOptions], Decoded] = decode_file) -> None:
    """Answers requests until the parent closes the pipe.

    The command line holds one JSON object: `samples_fd`, `reply_fd`, `memory_bytes`, `timeout_s`
    and `options` (fields of DecodeOptions).
    """
    setup = json.loads(sys.argv[1])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides when to stop
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if setup["memory_bytes"]:
        resource.setrlimit(resource.RLIMIT_AS, (setup["memory_bytes"], setup["memory_bytes"]))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    options = dict(setup["options"])
    options["device_rates_hz"] = tuple(options["device_rates_hz"])
    options = DecodeOptions(**options)
    requests: SimpleQueue[str] = SimpleQueue()
    threading.Thread(target=_read_requests, args=(requests,), daemon=True).start()
    replies = os.fdopen(setup["reply_fd"], "w", buffering=1)
    replies.write('{"ready": true}\n')
    while True:
        path, size_bytes, mtime_ns = json.loads(requests.get())
        signal.alarm(int(setup["timeout_s"]) + GRACE_S)
        reply = _answer(decode, path.encode("latin-1"), size_bytes, mtime_ns, options, setup)
        signal.alarm(0)
        replies.write(json.dumps(reply) + "\n")


def _read_requests(requests: SimpleQueue) -> None:
    for line in sys.stdin:
        requests.put(line)
    os._exit(0)  # the parent is gone: stop at once, even in the middle of a file


def _answer(decode, path: bytes, size_bytes: int, mtime_ns: int, options, setup: dict) -> dict:
    try:
        decoded = decode(path, size_bytes, mtime_ns, options)
        data = np.ascontiguousarray(decoded.samples)
        _write_all(setup["samples_fd"], data)
    except DecodeError as error:
        return {"reason": error.reason, "message": str(error)}
    except MemoryError:
        return {"reason": "out_of_memory", "message": "decoding needs more memory than allowed"}
    return {"dtype": data.dtype.name, "n_samples": data.size, "info": asdict(decoded.info)}


def _write_all(fd: int, data: np.ndarray) -> None:
    view = data.data.cast("B")
    offset = 0
    while offset < len(view):
        offset += os.pwrite(fd, view[offset:], offset)


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):
        serve()
