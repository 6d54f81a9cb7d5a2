"""One writer at a time, on local disks and where there are no locks.

A local file is locked by the system, which frees it when its holder dies. Object stores, and file
systems without such locks, get a small file instead that is made exclusively and that its holder
rewrites every few seconds: whoever has watched it stay the same for `EXPIRE_S`, by its own clock,
takes it for the file of a dead holder and removes it.
"""

import contextlib
import errno
import logging
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from loopjax.errors import WriteError
from loopjax.io import remote

EXPIRE_S = 60.0
BEATS = 6  # in that time
WATCH_S = 0.2
_NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP}

log = logging.getLogger(__name__)


def create(path: Path, content: bytes) -> bool:
    """Makes a small file unless there is one; of several processes, on any host, one succeeds.

    Raises:
        WriteError: no permission and the like.
    """
    try:
        if remote.is_remote(path):
            return remote.create(path, content)
        with path.open("xb") as file:
            file.write(content)
    except FileExistsError:
        return False
    except OSError as error:
        raise WriteError(f"cannot write {path}: {error.strerror or error}") from None
    return True


@contextlib.contextmanager
def locked_file(path: Path, waits: bool = True, takes_over: bool = True) -> Iterator[None]:
    """Holds a lock that a path stands for.

    Args:
        path: of the lock, local or remote.
        waits: for another holder to let go.
        takes_over: where a file stands in, watch whether its holder is dead, which takes a while.

    Raises:
        Timeout: somebody holds it, and nobody waits.
        WriteError: it cannot be made.
    """
    with contextlib.ExitStack() as stack:
        held = path.with_name(f"{path.name}.held")
        if remote.is_remote(path) or not _lock_by_system(path, waits, stack):
            stack.enter_context(_beating(held, waits, takes_over))
        yield


def _lock_by_system(path: Path, waits: bool, stack: contextlib.ExitStack) -> bool:
    """Holds the file while the stack lasts; False where the file system cannot."""
    try:
        stack.enter_context(FileLock(path, blocking=waits))
    except (NotImplementedError, OSError) as error:
        if isinstance(error, Timeout):
            raise
        if isinstance(error, OSError) and error.errno not in _NO_LOCKS:
            raise WriteError(f"cannot lock {path}: {error.strerror or error}") from None
        log.warning(
            "%s is on a file system without file locks (flock), as Lustre is when mounted without "
            "them; a file that is rewritten every %g s stands in, and a killed run is noticed "
            "after %g s",
            path.parent,
            EXPIRE_S / BEATS,
            EXPIRE_S,
        )
        return False
    return True


@contextlib.contextmanager
def _beating(path: Path, waits: bool, takes_over: bool) -> Iterator[None]:
    """Holds a file by rewriting it."""
    own, seen, since_s = uuid.uuid4().hex, None, time.monotonic()
    while not create(path, f"{own} 0".encode()):
        if not (waits or takes_over):
            raise Timeout(str(path))
        content = _read(path)
        if content != seen:
            if seen is not None and content is not None and not waits:
                raise Timeout(str(path))
            seen, since_s = content, time.monotonic()
        elif content is not None and time.monotonic() - since_s > EXPIRE_S:
            with contextlib.suppress(OSError):
                path.unlink()
        time.sleep(WATCH_S)
    done = threading.Event()

    def beat() -> None:
        n_beats = 0
        while not done.wait(EXPIRE_S / BEATS):
            n_beats += 1
            with contextlib.suppress(OSError):
                path.write_bytes(f"{own} {n_beats}".encode())

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        if (_read(path) or b"").startswith(own.encode()):
            with contextlib.suppress(OSError):
                path.unlink()


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except OSError:
        return None
