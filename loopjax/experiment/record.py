"""run.json: what made a run folder, so that it can be repeated, continued and judged again."""

import datetime
import hashlib
import importlib.metadata
import json
import platform
import shutil
import sys
from pathlib import Path
from typing import Any

from loopjax.config import ExperimentConfig, from_dict, to_dict
from loopjax.errors import UserError
from loopjax.io import write_json

RECORD = "run.json"


def recorded_config(run: Path) -> ExperimentConfig:
    """The config that made a run folder.

    Raises:
        UserError: no run there.
    """
    try:
        record = json.loads((run / RECORD).read_text(encoding="utf-8"))
        return from_dict(ExperimentConfig, record["config"], str(run / RECORD))
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{run} is no run folder ({error}); make one with `loopjax run`") from None


def claim(out: Path, config: ExperimentConfig, restart: bool) -> None:
    """Writes run.json into a run folder, or checks that the run found there is this one.

    Raises:
        UserError: the folder holds a run of another config, a damaged one, or something else.
    """
    resolved = to_dict(config)
    record_file = out / RECORD
    if restart and record_file.exists():
        shutil.rmtree(out)
    if record_file.exists():
        try:
            earlier = json.loads(record_file.read_text(encoding="utf-8"))["config"]
        except (ValueError, KeyError, OSError) as error:
            raise UserError(f"{record_file} is damaged ({error}); --restart begins anew") from None
        # The report may be drawn differently; everything else would mix two experiments.
        changed = [k for k in resolved if k != "report" and earlier.get(k) != resolved[k]]
        if changed:
            pairs = "; ".join(f"{k}: was {earlier.get(k)}, now {resolved[k]}" for k in changed)
            raise UserError(
                f"{out} holds a run of another config ({pairs}); choose another -o or --restart"
            )
        return
    elif out.exists() and any(out.iterdir()):
        raise UserError(f"{out} exists and is no run folder; choose another -o")
    record = {
        "command": sys.argv,
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "config": resolved,
        "config_sha256": hashlib.sha256(json.dumps(resolved).encode()).hexdigest(),
        "seeds": list(config.seeds),
        **_environment(),
    }
    write_json(record_file, record)


def _environment() -> dict[str, Any]:
    """Versions and devices."""
    import jax

    packages = ("loopjax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
    versions = {}
    for package in packages:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return {
        "versions": versions | {"python": platform.python_version()},
        "platform": platform.platform(),
        "devices": [device.device_kind for device in jax.devices()],
    }
