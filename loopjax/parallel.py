"""Devices and processes: one "data" axis, and where compiled programs are kept.

Embedding needs no communication, so every process works on a mesh of its own devices and a slice of
the manifest; `jax.distributed` only tells the processes who they are and lets them meet.
"""

import contextlib
import hashlib
import logging
import os
import platform
import re
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np
import platformdirs
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from loopjax.errors import LoopjaxError, StoppedError, UserError

log = logging.getLogger(__name__)

AXIS = "data"
BARRIER_TIMEOUT_S = 24 * 3600
_TELL_TIMEOUT_S = 300  # as long as jax waits for the others at the exit
_STOPPED = "loopjax/stopped"


@contextlib.contextmanager
def joined(
    coordinator: str | None = None,
    process_count: int | None = None,
    process_index: int | None = None,
) -> Iterator[None]:
    """The processes of one run, which end together: an error of one stops the others, too.

    They learn of it where they meet, see `wait_for_all`, and what works for long on its own asks
    `is_stopping`. Enter it before anything else touches jax.

    Args:
        coordinator: `HOST:PORT` of process 0, or "auto" to take everything from Slurm, Open MPI or
            the TPU runtime.
        process_count: number of processes (with `HOST:PORT`).
        process_index: this process's number from 0 (with `HOST:PORT`).

    Raises:
        UserError: incomplete arguments, or the other processes cannot be reached.
        StoppedError: another process met an error; see there what to mend.
    """
    _initialize(coordinator, process_count, process_index)
    if coordinator is None:
        yield
        return
    try:
        yield
        wait_for_all()
    except StoppedError:
        raise
    except BaseException as error:
        _tell(error)
        raise


def _tell(error: BaseException) -> None:
    """Says what stops this process and meets the others once more, to end with them."""
    index, count = process_slot()
    if count == 1:
        return
    code = error.exit_code if isinstance(error, LoopjaxError) else LoopjaxError.exit_code
    _coordination().key_value_set(f"{_STOPPED}/{index}", f"{code} {error or type(error).__name__}")
    with contextlib.suppress(jax.errors.JaxRuntimeError):  # the others are gone, or too busy
        _meet(_TELL_TIMEOUT_S)
        _meet(_TELL_TIMEOUT_S)


def _initialize(
    coordinator: str | None, process_count: int | None, process_index: int | None
) -> None:
    """Joins them.

    Raises:
        UserError: incomplete arguments, or the other processes cannot be reached.
    """
    if coordinator is None:
        if process_count is not None or process_index is not None:
            raise UserError("several processes need --coordinator HOST:PORT (or auto)")
        return
    if coordinator != "auto" and (process_count is None or process_index is None):
        raise UserError(
            f"--coordinator {coordinator} needs --processes N and --process-index I as well; "
            "under Slurm or on a TPU pod use --coordinator auto"
        )
    address = None if coordinator == "auto" else coordinator
    if address is not None:
        _check_slot(address, process_count or 0, process_index or 0)
    try:
        jax.distributed.initialize(address, process_count, process_index)
    except (RuntimeError, ValueError) as error:
        raise UserError(f"cannot join the run at {coordinator}: {error}") from None


def _check_slot(address: str, count: int, index: int) -> None:
    """Refuses what jax would wait for, or crash over.

    Raises:
        UserError: no HOST:PORT, or no process of that number.
    """
    host, colon, port = address.rpartition(":")
    if not (host and colon and re.fullmatch("[0-9]{1,5}", port) and 0 < int(port) < 1 << 16):
        raise UserError(
            f"--coordinator {address!r}: write HOST:PORT with a port from 1 to 65535, or auto"
        )
    if not 0 <= index < count:
        raise UserError(
            f"--process-index {index} of --processes {count}: processes are numbered from 0"
        )


def process_slot() -> tuple[int, int]:
    """This process's index and the number of processes."""
    return jax.process_index(), jax.process_count()


def wait_for_all() -> None:
    """Returns once every process of the run has called it.

    Raises:
        StoppedError: another one met an error instead.
    """
    if process_slot()[1] == 1:
        return
    _meet()
    stopped = _coordination().key_value_dir_get(_STOPPED)
    _meet()  # all know of the same errors: one that comes later is told at the next meeting
    if stopped:
        key, told = min(stopped)
        code, _, message = told.partition(" ")
        index = key.rpartition("/")[2]
        raise StoppedError(f"process {index} stopped, and so does this one: {message}", int(code))


def is_stopping() -> bool:
    """Whether another process met an error and waits for this one to come to the next meeting."""
    return process_slot()[1] > 1 and bool(_coordination().key_value_dir_get(_STOPPED))


def first_process_does(action: Callable[[], None]) -> None:
    """Runs an action in process 0 while the others wait.

    Raises:
        LoopjaxError: in process 0, what the action raised.
        StoppedError: in the others, then; see `joined`.
    """
    if process_slot()[0] == 0:
        action()
    wait_for_all()


def gather(text: str) -> list[str]:
    """A short text of every process, in the order of their indices, once all have called it."""
    index, count = process_slot()
    if count == 1:
        return [text]
    client, key = _coordination(), "loopjax/gathered"
    client.key_value_set(f"{key}/{index}", text, allow_overwrite=True)
    wait_for_all()
    found = [
        client.blocking_key_value_get(f"{key}/{i}", BARRIER_TIMEOUT_S * 1000) for i in range(count)
    ]
    wait_for_all()  # all have read them before the next ones overwrite them
    return found


def _meet(timeout_s: float = BARRIER_TIMEOUT_S) -> None:
    _coordination().wait_at_barrier("loopjax", int(timeout_s * 1000))


def _coordination() -> Any:
    """The client of the coordination service; jax offers no public door to it."""
    from jax._src import distributed

    return distributed.global_state.client


def data_mesh() -> Mesh:
    """One-axis mesh of this process's devices.

    Axes are Auto: with the newer Explicit default, the window reshape of a batch-sharded array
    raises a sharding error.
    """
    devices = np.array(jax.local_devices())
    return Mesh(devices, (AXIS,), axis_types=(AxisType.Auto,))


def global_mesh() -> Mesh:
    """One-axis mesh of the devices of all processes, for work that they share step by step."""
    return Mesh(np.array(jax.devices()), (AXIS,), axis_types=(AxisType.Auto,))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Splits the leading axis over the mesh."""
    return NamedSharding(mesh, PartitionSpec(AXIS))


def enable_compilation_cache() -> Path | None:
    """Keeps compiled programs between runs, in a folder only this user can write.

    The command line calls this; importing the library never does.

    The default folder is `jax/<jaxlib>-<machine>` below the user's cache folder
    (`$XDG_CACHE_HOME/loopjax` on Linux): entries are executable code for one CPU type, so they are
    neither shared between users nor between machines. A folder already set in
    `JAX_COMPILATION_CACHE_DIR` wins.

    Returns:
        The folder; None where it cannot be made, which costs time only and is logged.

    Raises:
        UserError: others could write the folder.
    """
    given = os.environ.get("JAX_COMPILATION_CACHE_DIR")
    if given:
        return Path(given)
    cache = platformdirs.user_cache_path("loopjax", appauthor=False)
    folder = cache / "jax" / f"{version('jaxlib')}-{_machine()}"
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        log.warning("compiled programs are not kept: %s: %s", folder, error.strerror)
        return None
    if _is_open_to_others(folder):
        raise UserError(f"{folder} can be written by others; compiled code in it is not trusted")
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    return folder


def _is_open_to_others(folder: Path) -> bool:
    if not hasattr(os, "getuid"):  # Windows: a profile is its user's own
        return False
    status = folder.stat()
    return status.st_uid != os.getuid() or bool(status.st_mode & 0o022)


def _machine() -> str:
    """Short digest of what compiled CPU code depends on."""
    cpu = platform.processor()
    info = Path("/proc/cpuinfo")
    if info.exists():
        wanted = ("model name", "flags", "Features")
        lines = info.read_text(encoding="utf-8", errors="replace").splitlines()
        cpu = "\n".join(sorted({line for line in lines if line.startswith(wanted)}))
    return hashlib.sha256(f"{platform.machine()}\n{cpu}".encode()).hexdigest()[:12]
