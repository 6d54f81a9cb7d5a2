"""Named arrays on disk: flat Orbax trees, written and read by one process alone."""

import contextlib
import hashlib
import json
import logging
import os
import re
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from loopjax.errors import UserError
from loopjax.json_files import read_json

SUMS_NAME = "checksums.json"
STRAGGLERS_S = 0.2  # within which all of an array's files fail once one has


def write_arrays(folder: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes arrays as an Orbax tree, one per name, in this thread.

    Orbax's own asynchronous writer leaves threads that wait for minutes when a disk is full or
    cannot be written.

    Raises:
        OSError: the disk is full and the like.
    """
    try:
        with (
            _quiet(),
            _deaf_to_stragglers(),
            _checkpointer() as checkpointer,
        ):
            checkpointer.save(folder, args=ocp.args.StandardSave(dict(arrays)))
        (folder / SUMS_NAME).write_text(json.dumps(_sums(folder), indent=1) + "\n", "utf-8")
    except ValueError as error:  # TensorStore's way to hand on the system's error
        found = re.search(r"os_error_code='(\d+)'", str(error))
        if found is None:
            raise
        raise OSError(int(found[1]), os.strerror(int(found[1])), str(folder)) from None


def read_arrays(
    folder: Path, shapes: Mapping[str, jax.ShapeDtypeStruct] | None = None
) -> dict[str, np.ndarray]:
    """Reads arrays that `write_arrays` wrote.

    Args:
        folder: the Orbax tree.
        shapes: shape and type of each array to read; default: whatever is there.

    Raises:
        UserError: missing, damaged, or of other shapes; names the folder.
    """
    _compare_sums(folder)
    try:
        with _quiet(), _checkpointer() as checkpointer:
            there = checkpointer.metadata(folder).item_metadata.tree
            wanted = there if shapes is None else shapes
            _require_shapes(there, wanted)
            # Targets of NumPy: as jax arrays, doubles would be cut to single precision.
            target = {name: np.empty(like.shape, like.dtype) for name, like in wanted.items()}
            tree = checkpointer.restore(folder, args=ocp.args.StandardRestore(target))
            return {name: np.asarray(tree[name]) for name in target}
    except Exception as error:  # noqa: BLE001 - Orbax raises this very class
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise UserError(f"{folder}: damaged ({reason})") from None


def _checkpointer() -> ocp.Checkpointer:
    """One for this process by itself: by default Orbax makes those of a run wait for each other."""
    me = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(
        primary_host=me, active_processes={me}, barrier_sync_key_prefix=f"process_{me}"
    )
    handler = ocp.StandardCheckpointHandler(multiprocessing_options=alone)
    return ocp.Checkpointer(handler, multiprocessing_options=alone)


def _require_shapes(there: Mapping[str, Any], wanted: Mapping[str, jax.ShapeDtypeStruct]) -> None:
    """Refuses an array that is missing or of another shape or type than is wanted.

    Raises:
        ValueError: names the array.
    """
    for name, like in wanted.items():
        if name not in there:
            raise ValueError(f"no array {name}")
        found = there[name]
        if tuple(found.shape) != tuple(like.shape) or found.dtype != like.dtype:
            raise ValueError(
                f"array {name} is {found.dtype}{list(found.shape)}, "
                f"not {like.dtype}{list(like.shape)}"
            )


def _sums(folder: Path) -> dict[str, str]:
    """SHA-256 of every file of a tree, by its path in it."""
    return {
        file.relative_to(folder).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.rglob("*"))
        if file.is_file() and file.name != SUMS_NAME
    }


def _compare_sums(folder: Path) -> None:
    """Refuses a damaged tree before Orbax opens it, which prints what it cannot read.

    Raises:
        UserError: a file is not as it was written; trees without checksums pass.
    """
    try:
        expected = read_json(folder / SUMS_NAME)
        found = _sums(folder)
    except FileNotFoundError:
        return
    except (OSError, ValueError) as error:
        raise UserError(f"{folder}: damaged ({error})") from None
    if found != expected:
        names = sorted({*found, *expected})
        wrong = next(name for name in names if found.get(name) != expected.get(name))
        raise UserError(f"{folder}: damaged ({wrong} does not match its checksum)")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps Orbax from printing the traceback of an error that it raises as well."""
    log = logging.getLogger("absl")
    before = log.disabled
    log.disabled = True
    try:
        yield
    finally:
        log.disabled = before


@contextlib.contextmanager
def _deaf_to_stragglers() -> Iterator[None]:
    """After an error, waits for TensorStore's other writes to fail, and does not print that.

    Orbax raises the first error and closes its event loop; what fails next in TensorStore's threads
    finds the loop closed, which Python would print as tracebacks.
    """
    before = sys.unraisablehook

    def ignore_closed_loops(unraisable: "sys.UnraisableHookArgs") -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            before(unraisable)

    sys.unraisablehook = ignore_closed_loops
    try:
        yield
    except BaseException:
        time.sleep(STRAGGLERS_S)
        raise
    finally:
        sys.unraisablehook = before
