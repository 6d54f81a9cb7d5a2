"""The decoder process: files to decode in, a reply per file out, samples through shared memory.

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
import time
from collections.abc import Callable
from dataclasses import asdict
from io import FileIO
from queue import SimpleQueue
from typing import TextIO

import numpy as np

from loopjax.audio.decode import Decoded, DecodeOptions, decode_bytes, decode_file
from loopjax.audio.limits import Watchdog, limit_resources
from loopjax.audio.loop import DecodeError
from loopjax.audio.shared_samples import KEEP_BYTES, open_samples, read_into, write_at

SEND_S = 0.02  # replies wait at most so long for others, and for the file at hand
GRACE_S = 5  # the parent's own timeout comes first; this one ends an orphan


def serve(decode: Callable[[bytes, int, int, DecodeOptions], Decoded] = decode_file) -> None:
    """Answers requests until the parent closes the pipe.

    A line asks for several files. Their samples lie one behind the other; once they fill
    `KEEP_BYTES`, the rest is left for the parent to ask for again. Replies are sent a few at a
    time, unless decoding is slow.

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
    replies.flush()
    watchdog = Watchdog(int(setup["timeout_s"]) + GRACE_S)
    while True:
        offset, sent_s = 0, time.monotonic()
        asked = json.loads(requests.get())
        for left, (path, size_bytes, mtime_ns, n_bytes) in zip(
            range(len(asked) - 1, -1, -1), asked, strict=True
        ):
            watchdog.start()
            if n_bytes < 0:
                file = path.encode("latin-1"), size_bytes, mtime_ns
                reply = _answer(lambda file=file: decode(*file, options), samples, offset)
            else:
                content = bytearray(n_bytes)
                read_into(samples, memoryview(content), 0)
                reply = _answer(lambda c=bytes(content): decode_bytes(c, options), samples, offset)
            watchdog.stop()
            offset += reply.get("n_bytes", 0)
            is_last = left == 0 or offset > KEEP_BYTES
            _reply(replies, {**reply, "is_last": is_last})
            if is_last or time.monotonic() - sent_s > SEND_S:
                replies.flush()
                sent_s = time.monotonic()
            if is_last:
                break


def _reply(replies: TextIO, reply: dict) -> None:
    replies.write(json.dumps(reply) + "\n")


def _read_requests(requests: SimpleQueue) -> None:
    for line in sys.stdin:
        requests.put(line)
    os._exit(0)  # the parent is gone: stop at once, even in the middle of a file


def _answer(decode: Callable[[], Decoded], samples: FileIO, offset: int) -> dict:
    try:
        decoded = decode()
        data = np.ascontiguousarray(decoded.samples)
        write_at(samples, data.data.cast("B"), offset)
    except DecodeError as error:
        return {"reason": error.reason, "message": str(error)}
    except MemoryError:
        return {"reason": "out_of_memory", "message": "decoding needs more memory than allowed"}
    return {
        "dtype": data.dtype.name,
        "n_samples": data.size,
        "n_bytes": data.nbytes,
        "offset": offset,
        "info": asdict(decoded.info),
    }


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):
        serve()
