"""run.json: what made a run folder, so that it can be repeated, continued and evaluated again."""

import dataclasses
import datetime
import hashlib
import importlib.metadata
import json
import platform
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from loopjax.config import ExperimentConfig, from_dict, to_dict
from loopjax.config.settings import Setting
from loopjax.errors import UserError
from loopjax.experiment.manifest import RECORD, discard, discard_results
from loopjax.io import is_empty, write_json
from loopjax.json_files import read_json

# Settings of `embed` by which no number changes.
FREE = {
    f"embed.{name}"
    for name in ("batch_size", "workers", "decode_timeout_s", "shard_rows", "max_failures")
} | {"embed.strict"}
PACKAGES = ("loopjax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


@dataclass(frozen=True)
class RunRecord:
    """What a run folder says about itself."""

    config: Annotated[ExperimentConfig, Setting("the resolved experiment")]
    config_sha256: Annotated[str, Setting("of the resolved experiment")]
    command: Annotated[tuple[str, ...], Setting("as typed")]
    started: Annotated[str, Setting("UTC, ISO 8601")]
    versions: Annotated[dict[str, str], Setting("of the packages that numbers depend on")]
    platform: Annotated[str, Setting("operating system and processor")]
    devices: Annotated[tuple[str, ...], Setting("what jax computed on")]
    missing_limits: Annotated[
        tuple[str, ...], Setting("limits that the system refused to the decoders: memory, core")
    ] = ()


def read_record(run: Path) -> RunRecord:
    """Reads a run folder's record.

    Raises:
        UserError: no run there, or its record is damaged.
    """
    file = run / RECORD
    try:
        values = read_json(file)
    except OSError as error:
        reason = "run.json is missing" if not file.exists() else error.strerror
        raise UserError(f"{run} is no run folder ({reason}); make one with `loopjax run`") from None
    except ValueError as error:
        raise _damaged(file, str(error)) from None
    try:
        return from_dict(RunRecord, values, str(file))
    except UserError as error:
        raise _damaged(file, str(error)) from None


def require_run_or_empty(out: Path) -> None:
    """Refuses a folder of other things, before anything is written into it.

    Raises:
        UserError: it is neither empty nor a run folder.
    """
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file; choose another -o")
    if not (out / RECORD).exists() and not is_empty(out):
        raise UserError(f"{out} exists and is no run folder; choose another -o")


def claim(out: Path, config: ExperimentConfig, restart: bool) -> None:
    """Writes run.json into a run folder, or checks that this experiment may go on there.

    Embeddings stay what they are for as long as loops, encoder and preprocessing do. Results of
    other settings go; models stay, and know themselves what they were fitted on.

    Raises:
        UserError: the folder holds embeddings of other loops or settings, a damaged run, or
            something else; with `restart`, files that loopjax has not written.
    """
    require_run_or_empty(out)
    if restart and (out / RECORD).exists():
        discard(out)
    if (out / RECORD).exists():
        earlier = read_record(out).config
        if to_dict(earlier) == to_dict(config):
            return
        before, now = _embedded(earlier), _embedded(config)
        changed = [key for key in before if before[key] != now[key]]
        if changed and earlier.data.sources:
            pairs = "; ".join(f"{key}: was {before[key]}, now {now[key]}" for key in changed)
            raise UserError(
                f"{out} holds embeddings of another run ({pairs}); choose another -o, or "
                "--restart, which embeds anew"
            )
        if to_dict(dataclasses.replace(earlier, report=config.report)) != to_dict(config):
            discard_results(out)
    write_json(out / RECORD, to_dict(_new_record(config)))


def _embedded(config: ExperimentConfig) -> dict[str, object]:
    """The settings by which a run's own embeddings came to be."""
    settings = {f"embed.{key}": value for key, value in to_dict(config.embed).items()}
    deciding = {key: value for key, value in settings.items() if key not in FREE}
    return {"data.sources": list(config.data.sources), **deciding}


def note_missing_limits(out: Path, missing: Sequence[str]) -> None:
    """Adds to run.json which limits the decoders ran without.

    Raises:
        UserError: run.json is damaged.
    """
    record = read_record(out)
    known = tuple(sorted({*record.missing_limits, *missing}))
    if known != record.missing_limits:
        write_json(out / RECORD, to_dict(dataclasses.replace(record, missing_limits=known)))


def _new_record(config: ExperimentConfig) -> RunRecord:
    import jax

    now = datetime.datetime.now(datetime.UTC)
    return RunRecord(
        config=config,
        config_sha256=hashlib.sha256(json.dumps(to_dict(config)).encode()).hexdigest(),
        command=tuple(sys.argv),
        started=now.isoformat(timespec="seconds"),
        versions={name: _version(name) for name in PACKAGES}
        | {"python": platform.python_version()},
        platform=platform.platform(),
        devices=tuple(device.device_kind for device in jax.devices()),
    )


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _damaged(file: Path, problem: str) -> UserError:
    return UserError(
        f"{file} is damaged, or of another version of loopjax ({problem}); "
        "`loopjax run ... --restart` begins anew"
    )
