"""Files and folders that are there completely or not at all, with one writer at a time.

Everything is written under a temporary name beside its place, synced and renamed. A killed writer
leaves at most such a temporary name; the next writer of the same place removes it.
"""

import contextlib
import hashlib
import json
import logging
import os
import re
import shutil
import socket
import stat
import tempfile
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from filelock import Timeout

from loopjax.errors import HeldError, UserError, WriteError
from loopjax.io import remote
from loopjax.io.locks import locked_file

LOCK_NAME = ".loopjax.lock"
_FOLDER_LOCK = ".writing.lock"  # ends the name of the lock beside a folder that is written whole
_HOLDER = ".loopjax.held-by-"  # names of empty files: other tools read a folder of Parquet files
_TEMPORARY = re.compile(r"\.(?P<name>.+)\.(?P<pid>\d+)(-(?P<host>[0-9a-f]{8}))?\.(?P<kind>tmp|old)")

_SCHEME = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]+:")
SYNCED_AT_ONCE = 16  # files of a folder; one after the other, thousands take a minute
_NOTES_BYTES = 1 << 20  # what Orbax writes beside the arrays, and blocks that are not full

log = logging.getLogger(__name__)


def require_name(path: Path) -> None:
    """Refuses a place that the libraries which write arrays and tables cannot name.

    Raises:
        UserError: the path is no text, holds a NUL byte, is a device or pipe, in whose place a file
            would be put, or is the address of another file system, of which `Path` would make a
            local folder `s3:`.
    """
    try:
        text = os.fsencode(path.absolute()).decode("utf-8")
    except UnicodeDecodeError:
        raise UserError(
            f"{path} is not UTF-8, which tables and arrays need to be written; choose another "
            "output path"
        ) from None
    if "\0" in text:
        raise UserError(f"{path} holds a NUL byte, which no file's name can; choose another")
    if _is_special(path):
        raise UserError(f"{path} is a device or pipe; choose the path of a file")
    first = path.parts[0] if path.parts else ""
    if _SCHEME.fullmatch(first) and not Path(first).exists():
        address = str(path).replace(":/", "://", 1)
        raise UserError(
            f"{address} is no local folder, and only `loopjax embed` and `score` write elsewhere: "
            "mount it, or write to a local folder and copy that there"
        )


def _is_special(path: Path) -> bool:
    try:
        mode = path.stat().st_mode
    except OSError:
        mode = stat.S_IFREG
    in_dev = path.absolute().parent == Path("/dev")  # `stdout` there may be a link to a file
    return not stat.S_ISDIR(mode) and (in_dev or not stat.S_ISREG(mode))


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, hexadecimal.

    Raises:
        UserError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None


def require_apart(out: Path, sources: Iterable[str | os.PathLike[str]]) -> None:
    """Refuses to write among the files that are read.

    Raises:
        UserError: `out` is one of the source folders.
    """
    if remote.is_remote(out) or not out.is_dir():
        return
    for source in sources:
        if os.path.isdir(source) and os.path.samefile(source, out):  # noqa: PTH112, PTH121 - bytes
            raise UserError(
                f"{out} is read from; to write among its files is no good: choose another -o"
            )


def check_can_write(path: Path, n_bytes: int = 0) -> None:
    """Fails now where a file or folder could not be written later; leaves nothing behind.

    Libraries that write arrays in threads of their own meet a full disk with hours of work behind
    them, and fail in strange ways.

    Args:
        path: what is going to be written; it need not exist, nor its parents.
        n_bytes: how many bytes of arrays it will hold.

    Raises:
        WriteError: no permission, not enough room and the like.
    """
    require_name(path)
    place = next(parent for parent in path.absolute().parents if parent.exists())
    try:
        with tempfile.TemporaryFile(dir=place) as file:
            if n_bytes and hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, n_bytes + _NOTES_BYTES)
    except OSError as error:
        raise _write_error(path, error) from None


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Runs `write(temporary path)` beside `path`, then renames; file and name are synced to disk.

    Raises:
        UserError: see `require_name`.
        WriteError: disk full, no permission and the like; nothing is left behind.
    """
    if remote.is_remote(path):
        _upload_atomically(path, write)
        return
    require_name(path)
    path = path.absolute()  # Arrow takes a relative `a:b` for an address
    temporary = _beside(path, "tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _sweep_beside(path)
        write(temporary)
        _sync(temporary)
        temporary.replace(path)
        _sync(path.parent)
    except OSError as error:
        raise _write_error(path, error) from None
    finally:
        _remove(temporary)


def _upload_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Writes a local file and puts it at a remote place, where it appears as a whole."""
    try:
        with tempfile.TemporaryDirectory() as folder:
            local = Path(folder) / path.name
            write(local)
            remote.upload(local, path)
    except OSError as error:
        raise _write_error(path, error) from None


def write_text(path: Path, text: str) -> None:
    """Writes UTF-8 atomically.

    Raises:
        WriteError: see `write_atomically`.
    """
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_json(path: Path, value: Any, **options: Any) -> None:
    """Writes JSON atomically; `options` go to `json.dumps`.

    Raises:
        WriteError: see `write_atomically`.
    """
    write_text(path, json.dumps(value, indent=2, **options) + "\n")


def write_folder(folder: Path, write: Callable[[Path], object]) -> None:
    """Runs `write(temporary folder)` beside `folder`, then renames; an older folder is replaced.

    Whether an older folder may be replaced is the caller's decision, before calling.

    Raises:
        UserError: another process is writing the same folder.
        WriteError: disk full, no permission and the like; nothing is left behind, and the older
            folder stays.
    """
    require_name(folder)
    folder = folder.absolute()
    temporary, old = _beside(folder, "tmp"), _beside(folder, "old")
    lock = folder.with_name(f".{folder.name}{_FOLDER_LOCK}")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _held(lock, folder):
            try:
                _sweep_beside(folder)
                temporary.mkdir()
                write(temporary)
                with ThreadPoolExecutor(SYNCED_AT_ONCE) as pool:
                    list(pool.map(_sync, temporary.rglob("*")))
                if folder.exists():
                    folder.rename(old)
                temporary.rename(folder)
                _sync(folder.parent)
            finally:
                if old.exists() and not folder.exists():
                    old.rename(folder)
                _remove(temporary)
                _remove(old)
                lock.unlink(missing_ok=True)
    except WriteError as error:  # of a file in it, by the name that people know
        raise WriteError(str(error).replace(str(temporary), str(folder))) from None
    except OSError as error:
        raise _write_error(folder, error) from None


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds a folder that grows in place, such as a store or a run, for one writer.

    The folder is made where it is missing, and what killed writers left in it is removed. A lock
    frees itself when its holder dies, see `locks`.

    Raises:
        UserError: another run holds it; names the holder.
        WriteError: the folder cannot be written.
    """
    if remote.is_remote(folder):  # nothing is half-written there
        with _held(folder / LOCK_NAME, folder):
            yield
        return
    require_name(folder)
    with contextlib.ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(_held(folder / LOCK_NAME, folder))
            for holder in folder.glob(f"{_HOLDER}*"):
                log.warning("taking over %s from a run that died (%s)", folder, _describe(holder))
                holder.unlink(missing_ok=True)
            host = re.sub(r"[^\w.-]", "-", socket.gethostname())
            holder = folder / f"{_HOLDER}{os.getpid()}-on-{host}"
            holder.touch()
            stack.callback(holder.unlink, missing_ok=True)
            sweep(folder)
        except OSError as error:
            raise _write_error(folder, error) from None
        yield


def sweep(folder: Path, elsewhere: bool = True) -> None:
    """Removes the temporary files and folders that killed writers left anywhere in a folder.

    Those of processes that still run on this machine stay. A folder that was moved aside to be
    replaced, and was not, gets its name back.

    Args:
        folder: where to look, at any depth.
        elsewhere: also those of other machines, whose processes may still run.

    Raises:
        WriteError: something cannot be removed.
    """
    if remote.is_remote(folder):
        return
    try:
        for place, folders, files in os.walk(folder):
            for name in (*folders, *files):
                if _clear(Path(place) / name, elsewhere) and name in folders:
                    folders.remove(name)
    except OSError as error:
        raise _write_error(folder, error) from None


def is_empty(folder: Path) -> bool:
    """Whether a folder is missing or holds nothing but locks and temporary names."""
    if not folder.exists():
        return True
    names = [path.name for path in folder.iterdir()]
    return all(
        name == LOCK_NAME
        or name.startswith(_HOLDER)
        or name.endswith(_FOLDER_LOCK)
        or _TEMPORARY.fullmatch(name)
        for name in names
    )


@contextlib.contextmanager
def _held(lock_file: Path, folder: Path) -> Iterator[None]:
    """Holds a lock file, or says who does."""
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(locked_file(lock_file, waits=False))
        except Timeout:
            holder = next((_describe(path) for path in folder.glob(f"{_HOLDER}*")), "")
            raise HeldError(
                f"{folder} is being written by another run{holder and f' ({holder})'}; "
                "wait for it, stop it, or choose another output folder"
            ) from None
        yield


def _describe(holder: Path) -> str:
    """The holder that an empty file's name and time tell of."""
    pid, _, host = holder.name.removeprefix(_HOLDER).partition("-on-")
    try:
        since = time.ctime(holder.stat().st_mtime)
    except OSError:
        since = "just now"
    return f"process {pid} on {host}, since {since}"


def _beside(path: Path, kind: str) -> Path:
    """A hidden name that tells which process of which machine uses it."""
    return path.with_name(f".{path.name}.{os.getpid()}-{_this_host()}.{kind}")


def _this_host() -> str:
    return f"{zlib.crc32(socket.gethostname().encode()):08x}"


def _sweep_beside(path: Path) -> None:
    """Clears what killed writers of the same file or folder left."""
    for name in os.listdir(path.parent):  # noqa: PTH208 - a tenth of the time with many shards
        if name.startswith(f".{path.name}."):
            _clear(path.with_name(name))


def _clear(path: Path, elsewhere: bool = True) -> bool:
    """Removes a temporary name if its process is gone; whether there was one to remove."""
    if path.name.endswith(_FOLDER_LOCK):
        with contextlib.suppress(UserError), _held(path, path):  # its writer may still be there
            path.unlink(missing_ok=True)
        return False
    found = _TEMPORARY.fullmatch(path.name)
    if found is None:
        return False
    pid, host = int(found["pid"]), found["host"]
    if not elsewhere and host not in (None, _this_host()):
        return False
    if pid != os.getpid() and host in (None, _this_host()) and _is_running(pid):
        return False
    place = path.with_name(found["name"])
    if found["kind"] == "old" and not place.exists():
        path.rename(place)
    else:
        _remove(path)
    return True


def _is_running(pid: int) -> bool:
    if os.name == "nt":  # there, a signal 0 would end the process; the lock alone must do
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    try:  # one that has ended stays until its parent asks how
        state = Path(f"/proc/{pid}/stat").read_text(encoding="latin-1").rpartition(")")[2]
    except OSError:
        return True
    return not state.lstrip().startswith("Z")


def _remove(path: Path) -> None:
    """Removes what can be removed; whatever went wrong before is told instead."""
    with contextlib.suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    """Makes a file's content, or the renames in a folder, durable."""
    on_windows = os.name == "nt"
    if on_windows and path.is_dir():
        return  # it has no such call
    fd = os.open(path, os.O_RDWR if on_windows else os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _write_error(path: Path, error: OSError) -> WriteError:
    return WriteError(f"cannot write {path}: {error.strerror or error}")
