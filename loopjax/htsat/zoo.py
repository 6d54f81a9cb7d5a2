"""Named encoders and where their weights live."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np

from loopjax.errors import UserError
from loopjax.htsat.encoder import Encoder, Precision, weights_digest
from loopjax.htsat.frontend import LogMelConfig
from loopjax.htsat.model import HtsatConfig

FORMAT = "loopjax-encoder-1"
BUNDLED = "loopjax-nano"
PACKAGE_WEIGHTS = Path(__file__).parent.parent / "data" / "weights"  # in an installed wheel
CHECKOUT_WEIGHTS = Path(__file__).parent.parent.parent / "weights"  # in a source checkout


def load_encoder(name: str | Path, precision: Precision = "fp32") -> Encoder:
    """Loads an encoder by name or from a folder written by `loopjax convert`.

    Raises:
        UserError: no such encoder, or its folder is damaged; says what to do.
    """
    return read_encoder(_locate(name), precision)


def save_encoder(
    folder: Path,
    config: HtsatConfig,
    mel_config: LogMelConfig,
    weights: dict[str, np.ndarray],
    *,
    encoder_id: str,
    about: dict[str, Any],
) -> None:
    """Writes weights (Orbax) and `config.json`; `about` holds source, licence and the like."""
    import orbax.checkpoint as ocp

    folder = Path(folder).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder / "weights", weights, force=True)
    record = {
        "format": FORMAT,
        "id": encoder_id,
        "weights_sha256": weights_digest(weights),
        "architecture": dataclasses.asdict(config),
        "front_end": dataclasses.asdict(mel_config),
        "about": about,
    }
    (folder / "config.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def read_encoder(folder: Path, precision: Precision = "fp32") -> Encoder:
    """Reads a folder written by `save_encoder` onto this process's first device."""
    import jax
    import orbax.checkpoint as ocp

    folder = Path(folder).absolute()
    try:
        record = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        config = HtsatConfig(**_tuples(record["architecture"]))
        mel_config = LogMelConfig(**record["front_end"])
        with ocp.StandardCheckpointer() as checkpointer:
            shapes = checkpointer.metadata(folder / "weights").item_metadata.tree
            here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
            target = {
                name: jax.ShapeDtypeStruct(m.shape, m.dtype, sharding=here)
                for name, m in shapes.items()
            }
            restored = checkpointer.restore(folder / "weights", target)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder} is no readable encoder folder: {error}") from None
    weights = {name: np.asarray(array, np.float32) for name, array in restored.items()}
    if weights_digest(weights) != record["weights_sha256"]:
        raise UserError(f"{folder}: the weights do not match their recorded hash; fetch them again")
    return Encoder(
        config,
        mel_config,
        weights,
        encoder_id=record["id"],
        precision=precision,
        weights_sha256=record["weights_sha256"],
    )


def _locate(name: str | Path) -> Path:
    folders = [Path(name), PACKAGE_WEIGHTS / str(name), CHECKOUT_WEIGHTS / str(name)]
    for folder in folders:
        if (folder / "config.json").is_file():
            return folder
    raise UserError(
        f"no encoder {str(name)!r}: give {BUNDLED!r} (bundled), a name from `loopjax encoders`, or "
        "a folder written by `loopjax convert`"
    )


def _tuples(values: dict[str, Any]) -> dict[str, Any]:
    return {key: tuple(v) if isinstance(v, list) else v for key, v in values.items()}
