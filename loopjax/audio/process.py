"""A decoder in a child process.

libsndfile releases the GIL, so threads alone would be fast enough; processes are there because a
crashing or hanging codec must cost one row, not the run. Samples cross through one anonymous file
per process (one copy in, one copy into the batch), everything else as lines of JSON: a message asks
for several files, whose answers come a few at a time.
"""

import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from io import BufferedReader
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import cast

import numpy as np

from loopjax.audio.decode import DecodeOptions
from loopjax.audio.decoder import Reply
from loopjax.audio.loop import AudioInfo, DecodeError, Loop
from loopjax.audio.shared_samples import KEEP_BYTES, SharedSamples
from loopjax.errors import LoopjaxError

START_TIMEOUT_S = 120.0
DEATH_WAIT_S = 2.0
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
        self._replies: SimpleQueue[list[bytes]] = SimpleQueue()
        self._lines: deque[bytes] = deque()  # that came together
        self._offset = 0  # of the latest reply's samples
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
        answers = list(self._ask([loop], content))
        if not answers:  # an earlier file may have left the process broken: once more, fresh
            answers = list(self._ask([loop], content))
        if not answers:
            raise DecodeError("worker_crash", f"the decoder died twice ({self._death})")
        return self._reply(loop, answers[0])

    def decode_each(self, loops: Sequence[Loop]) -> Iterator[Reply | DecodeError]:
        """Decodes loops in the child, in order, many with one message.

        The samples of a reply are there until the next one is asked for. Where the child dies or
        hangs amid several files, the first without an answer is tried alone.
        """
        done = 0
        while done < len(loops):
            group = list(itertools.takewhile(lambda loop: loop.fetch is None, loops[done:]))
            before = done
            with contextlib.suppress(DecodeError):  # no answer in time, to one of them
                for answer in self._ask(group) if len(group) > 1 else ():
                    done += 1
                    yield self._told(loops[done - 1], answer)
            if done > before and self._process is not None:
                continue  # all of them, or as many as the shared file holds
            if done == len(loops):
                return
            try:
                answer = self.decode(loops[done])
            except DecodeError as error:
                answer = error
            done += 1
            yield answer

    def _told(self, loop: Loop, answer: dict) -> Reply | DecodeError:
        try:
            return self._reply(loop, answer)
        except DecodeError as error:
            return error

    def _reply(self, loop: Loop, answer: dict) -> Reply:
        if "reason" in answer:
            raise DecodeError(answer["reason"], answer["message"])
        info = AudioInfo(**answer["info"] | {"flags": tuple(answer["info"]["flags"])})
        if loop.fetch is not None:
            loop = replace(loop, fetch=None)  # which may hold the bytes
        self._offset = answer["offset"]
        return Reply(loop, info, np.dtype(answer["dtype"]), answer["n_samples"], self)

    def copy_samples(self, out: np.ndarray) -> None:
        """Copies the samples of the latest reply into `out`, contiguous."""
        view = out.data.cast("B")
        if not self._samples.read_into(view, self._offset):
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

    def _ask(self, loops: Sequence[Loop], content: bytes | None = None) -> Iterator[dict]:
        """Asks for loops, of which one may come with its bytes; fewer answers if the child died.

        Raises:
            DecodeError: no answer in time, or the run is being stopped.
        """
        if self._interrupted:
            raise DecodeError("interrupted", "the run is being stopped")
        if self._process is None:
            self._start()
        assert self._process is not None and self._process.stdin is not None
        if content is not None:
            self._samples.write(content)
        n_bytes = -1 if content is None else len(content)
        requests = [
            (loop.path_bytes.decode("latin-1"), loop.size_bytes, loop.mtime_ns, n_bytes)
            for loop in loops
        ]
        try:
            self._process.stdin.write(json.dumps(requests).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            self._stop(dying=True)
            return
        for _ in loops:
            line = self._read_line(self._timeout_s)
            if line is None:
                self._stop()
                raise DecodeError("timeout", f"decoding took longer than {self._timeout_s:g} s")
            if not line:
                self._stop(dying=True)
                return
            answer = json.loads(line)
            yield answer
            if answer["is_last"]:
                return

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
            self._replies, self._lines = SimpleQueue(), deque()
            arguments = (cast(BufferedReader, self._process.stdout), self._replies)
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
        if not self._lines:
            try:
                self._lines.extend(self._replies.get(timeout=timeout_s))
            except Empty:
                return None
        return self._lines.popleft()

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


def _collect(stream: BufferedReader, replies: SimpleQueue[list[bytes]]) -> None:
    """Hands on lines, those that come together at once, and an empty one at the end.

    A thread does it because pipes can be waited for on few systems.
    """
    with stream:
        rest = b""
        while part := stream.read1(1 << 16):
            *lines, rest = (rest + part).split(b"\n")
            if lines:
                replies.put(lines)
    replies.put([b""])
