"""Checkpoints of a run in progress: committed or absent, and tied to what was being computed."""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from loopjax.errors import UserError, WriteError
from loopjax.io import check_can_write, write_json
from loopjax.json_files import read_json


class Checkpoints:
    """Numbered states of one run in a folder; the two newest are kept.

    Args:
        folder: created when missing; left-overs of an interrupted save are removed.
        fingerprint: whatever identifies the run (settings, data); JSON-serializable.

    Raises:
        UserError: the folder holds checkpoints of another run.
        WriteError: the folder cannot be written.
    """

    def __init__(self, folder: str | Path, fingerprint: dict[str, Any]):
        self.folder = Path(folder).absolute()
        note = self.folder / "run.json"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if note.exists():
                _check_same_run(self.folder, read_json(note), fingerprint)
            else:
                write_json(note, fingerprint, sort_keys=True)
            self._manager = ocp.CheckpointManager(
                self.folder / "states",
                options=ocp.CheckpointManagerOptions(
                    max_to_keep=2,
                    enable_async_checkpointing=False,
                    cleanup_tmp_directories=True,
                ),
            )
        except ValueError as error:
            raise UserError(f"{note} is damaged: delete {self.folder} to start again") from error
        except OSError as error:
            raise WriteError(f"cannot write checkpoints to {self.folder}: {error}") from error

    def restore(self, like: Any) -> Any | None:
        """The newest state, with the structure, shapes and placement of `like`; None if none."""
        step = self._manager.latest_step()
        if step is None:
            return None
        target = jax.tree.map(_describe, like)
        try:
            return self._manager.restore(step, args=ocp.args.StandardRestore(target))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"checkpoint {step} in {self.folder} is damaged: delete the folder to start again"
            ) from error

    def save(self, step: int, state: Any) -> None:
        """Write a state under a number and return once it is committed and listed.

        Raises:
            WriteError: the disk is full or the folder not writable; earlier states stay valid.
        """
        n_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(state) if hasattr(leaf, "nbytes"))
        check_can_write(self.folder / str(step), n_bytes)
        try:
            self._manager.save(step, args=ocp.args.StandardSave(state), force=True)
            self._manager.wait_until_finished()
        except (OSError, ValueError) as error:
            raise WriteError(f"cannot save checkpoint {step} to {self.folder}: {error}") from error
        self._manager.reload()
        if self._manager.latest_step() != step:
            raise WriteError(f"checkpoint {step} did not reach {self.folder}")

    def write_note(self, name: str, facts: dict[str, Any]) -> None:
        """Keeps JSON-serializable facts beside the states, under a name.

        Raises:
            WriteError: the folder cannot be written.
        """
        write_json(self.folder / f"{name}.json", facts)

    def read_notes(self, pattern: str) -> list[dict[str, Any]]:
        """The facts under all names that match a shell pattern.

        Raises:
            UserError: damaged.
        """
        files = sorted(self.folder.glob(f"{pattern}.json"))
        try:
            return [read_json(file) for file in files]
        except (OSError, ValueError) as error:
            raise UserError(
                f"{self.folder} is damaged ({error}): delete it to start again"
            ) from None

    def close(self) -> None:
        """Release the folder."""
        self._manager.close()


def _describe(leaf: Any) -> jax.ShapeDtypeStruct:
    on_device = isinstance(leaf, jax.Array)
    sharding = leaf.sharding if on_device else jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.ShapeDtypeStruct(np.shape(leaf), np.asarray(leaf).dtype, sharding=sharding)


def _check_same_run(folder: Path, known: dict[str, Any], wanted: dict[str, Any]) -> None:
    wanted = json.loads(json.dumps(wanted))
    differing = sorted(k for k in known.keys() | wanted.keys() if known.get(k) != wanted.get(k))
    if differing:
        raise UserError(
            f"{folder} holds checkpoints of another run (different: {', '.join(differing)}): "
            "delete it or name another folder"
        )
