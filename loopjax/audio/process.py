"""A decoder in a child process.

libsndfile releases the GIL, so threads alone would be fast enough; processes are there because a
crashing or hanging codec must cost one row, not the run. Samples cross through one anonymous file
per process (one copy in, one copy into the batch), everything else as a line of JSON.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import BinaryIO

import numpy as np

from loopjax.audio.decode import DecodeOptions
from loopjax.audio.decoder import Reply
from loopjax.audio.loop import AudioInfo, DecodeError, Loop
from loopjax.audio.shared_samples import SharedSamples
from loopjax.errors import LoopjaxError

START_TIMEOUT_S = 120.0
DEATH_WAIT_S = 2.0
KEEP_BYTES = 16 << 20  # shared file kept between loops; larger ones give their pages back
MEMORY_BYTES = 4 << 30  # address space of one decoder


class DecoderProcess:
    """One child process; restarted whenever it crashes, hangs or is killed."""

    def __init__(
        self,
        options: DecodeOptions,
        timeout_s: float = 60.0,
        memory_bytes: int = MEMORY_BYTES,
        module: str = "loopjax.audio.worker",
    ):
        self._options = options
        self._timeout_s = timeout_s
        self._memory_bytes = memory_bytes
        self._module = module
        self._process: subprocess.Popen | None = None
        self._samples = SharedSamples()
        self._replies: SimpleQueue[bytes] = SimpleQueue()
        self._interrupted = False
        self.missing_limits: tuple[str, ...] = ()  # what the system could not limit, once started

    def decode(self, loop: Loop) -> Reply:
        """Decodes one loop in the child.

        Raises:
            DecodeError: the file was rejected, crashed the child twice (`worker_crash`) or took
                longer than the timeout (`timeout`).
            LoopjaxError: the child cannot be started at all.
        """
        content = None if loop.fetch is None else _fetched(loop.fetch)
        n_bytes = -1 if content is None else len(content)
        request = [loop.path_bytes.decode("latin-1"), loop.size_bytes, loop.mtime_ns, n_bytes]
        reply = self._ask(request, content)
        if reply is None:  # an earlier file may have left the process broken: once more, fresh
            reply = self._ask(request, content)
        if reply is None:
            raise DecodeError("worker_crash", f"the decoder died twice ({self._death})")
        if "reason" in reply:
            raise DecodeError(reply["reason"], reply["message"])
        info = AudioInfo(**reply["info"] | {"flags": tuple(reply["info"]["flags"])})
        loop = replace(loop, fetch=None)  # which may hold the bytes
        return Reply(loop, info, np.dtype(reply["dtype"]), reply["n_samples"], self)

    def copy_samples(self, out: np.ndarray) -> None:
        """Copies the samples of the latest reply into `out`, contiguous."""
        view = out.data.cast("B")
        if not self._samples.read_into(view):
            raise LoopjaxError("the decoder delivered fewer samples than it announced")
        if len(view) > KEEP_BYTES:
            self._samples.release()

    def interrupt(self) -> None:
        """Kills the child, from any thread; nothing is decoded any more."""
        self._interrupted = True
        process = self._process
        if process is not None:
            process.kill()

    def close(self) -> None:
        """Ends the child and releases the shared file."""
        self._stop()
        self._samples.close()

    def _ask(self, request: list, content: bytes | None) -> dict | None:
        """Sends one request, and the bytes of what is no file; None when the process died."""
        if self._interrupted:
            raise DecodeError("interrupted", "the run is being stopped")
        if self._process is None:
            self._start()
        assert self._process is not None and self._process.stdin is not None
        if content is not None:
            self._samples.write(content)
        try:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            self._stop(dying=True)
            return None
        line = self._read_line(self._timeout_s)
        if line is None:
            self._stop()
            raise DecodeError("timeout", f"decoding took longer than {self._timeout_s:g} s")
        if not line:
            self._stop(dying=True)
            return None
        return json.loads(line)

    def _start(self) -> None:
        setup = {
            "samples": self._samples.place,
            "memory_bytes": self._memory_bytes,
            "timeout_s": self._timeout_s,
            "options": asdict(self._options),
        }
        path = os.pathsep.join(p or str(Path.cwd()) for p in sys.path)
        # One BLAS thread: the child needs none, and each reserves address space against the limit.
        quiet = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
        with tempfile.TemporaryFile() as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-m", self._module, json.dumps(setup)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env={**os.environ, **quiet},
                pass_fds=self._samples.inherited,
            )
            self._replies = SimpleQueue()
            arguments = (self._process.stdout, self._replies)
            threading.Thread(target=_collect, args=arguments, daemon=True).start()
            line = self._read_line(START_TIMEOUT_S)
            if not line:
                self._stop(dying=True)
                errors.seek(0)
                last = errors.read()[-2000:].decode("utf-8", "replace").strip().splitlines()
                reason = last[-1] if last else f"it ended ({self._death})"
                raise LoopjaxError(f"the decoder process does not start: {reason}")
            self.missing_limits = tuple(json.loads(line)["missing_limits"])

    def _read_line(self, timeout_s: float) -> bytes | None:
        """One line; b"" when the process is gone, None on timeout."""
        try:
            return self._replies.get(timeout=timeout_s)
        except Empty:
            return None

    def _stop(self, dying: bool = False) -> None:
        if self._process is None:
            return
        process, self._process = self._process, None
        if dying:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(DEATH_WAIT_S)  # its own exit status says more than our SIGKILL
        process.kill()
        code = process.wait()
        assert process.stdin is not None
        with contextlib.suppress(OSError):
            process.stdin.close()
        self._death = signal.Signals(-code).name if code < 0 else f"exit code {code}"


def _fetched(fetch: Callable[[], bytes]) -> bytes:
    try:
        return fetch()
    except OSError as error:
        raise DecodeError("read_error", str(error)) from None


def _collect(lines: BinaryIO, replies: SimpleQueue[bytes]) -> None:
    """Hands on every line, and an empty one at the end: pipes can be waited for on few systems."""
    with lines:
        for line in lines:
            replies.put(line)
    replies.put(b"")
