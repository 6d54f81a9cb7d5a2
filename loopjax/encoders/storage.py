"""Encoder folders: an Orbax tree of weights beside a `config.json` that says what they are.

The record also holds a probe: the embeddings of two synthetic clips when the folder was written,
so that a copy, another machine or another version can be checked at any time.
"""

import base64
import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from loopjax.encoders.encoder import HtsatEncoder, weights_digest
from loopjax.encoders.protocol import Encoder
from loopjax.encoders.space import Precision, checked, read_front_end
from loopjax.encoders.text import TextTower, write_text_tower
from loopjax.errors import ModelCheckError, UserError
from loopjax.htsat.frontend import LogMelConfig
from loopjax.htsat.model import HtsatConfig
from loopjax.io import check_can_write, write_folder, write_json
from loopjax.json_files import read_json

FORMAT = "loopjax-encoder-1"
PROBE_SECONDS = (2.3, 11.7)  # a repeated clip; a clip that is fused or cropped
PROBE_TOLERANCE = 1e-4  # max |difference| over the norm, across machines
_LARGEST = {  # what a record may ask for: beyond, building the network alone takes minutes
    "width": 8192,
    "depths": 128,
    "heads": 1024,
    "patch": 64,
    "window": 64,
    "mlp_ratio": 64,
    "image_side": 4096,
    "mel_bins": 1024,
}
_MAX_STAGES = 8


@dataclass(frozen=True)
class _Identity:
    """What goes on from a record into stores."""

    id: str
    assumptions: tuple[str, ...]


def save_encoder(
    folder: Path,
    config: HtsatConfig,
    mel_config: LogMelConfig,
    weights: dict[str, np.ndarray],
    *,
    encoder_id: str,
    about: dict[str, Any],
    text: TextTower | None = None,
    probe: bool = True,
) -> None:
    """Writes weights and `config.json`, complete or not at all; replaces an older encoder.

    Args:
        folder: where; any other existing folder is refused.
        config: architecture.
        mel_config: front end.
        weights: float32 arrays by flat name.
        encoder_id: the name that stores of embeddings record.
        about: source, license and the like, JSON-serializable; `assumptions`, a list of what had
            to be assumed about the front end, goes on into the stores of its embeddings.
        text: the tower of the checkpoint's texts.
        probe: whether to compute and keep the probe embeddings (a few seconds of compilation).

    Raises:
        UserError: `folder` exists and is no encoder.
        ModelCheckError: the probe embeddings are not finite.
        WriteError: it cannot be written.
    """
    from loopjax.arrays import write_arrays

    folder = Path(folder).absolute()
    arrays = [*weights.values(), *(text.weights.values() if text else ())]
    check_can_write(folder, sum(array.nbytes for array in arrays))
    if folder.exists() and not _is_replaceable(folder):
        raise UserError(f"{folder} exists and is no encoder folder; choose another")
    encoder = HtsatEncoder(config, mel_config, weights, encoder_id=encoder_id)
    found = probe_embeddings(encoder) if probe else None
    if found is not None and not np.isfinite(found).all():
        raise ModelCheckError(f"{encoder_id} gives embeddings that are no numbers; not written")
    record = {
        "format": FORMAT,
        "id": encoder_id,
        "weights_sha256": encoder.weights_sha256,
        "architecture": dataclasses.asdict(config),
        "front_end": dataclasses.asdict(mel_config),
        "probe": None if found is None else _pack(found),
        "about": about,
    }

    def write(temporary: Path) -> None:
        write_arrays(temporary / "weights", weights)
        if text is not None:
            write_text_tower(temporary, text)
        write_json(temporary / "config.json", record)

    write_folder(folder, write)


def read_encoder(
    folder: Path, precision: Precision = "fp32", location: str | None = None
) -> HtsatEncoder:
    """Reads a folder written by `save_encoder` onto this process's first device.

    Args:
        folder: the encoder.
        precision: number format of the network.
        location: a name that `load_encoder` finds this folder by; default its absolute path.

    Raises:
        UserError: not such a folder, or damaged.
    """
    from loopjax.arrays import read_arrays

    folder = Path(folder).absolute()
    record = read_record(folder)
    try:
        identity = checked(
            _Identity,
            {"id": record["id"], "assumptions": record["about"].get("assumptions", [])},
        )
        if not identity.id.strip():
            raise ValueError("id: names nothing")
        config = _architecture(record["architecture"])
        mel_config = read_front_end(record["front_end"])
        stored = read_arrays(folder / "weights")
        weights = {name: np.asarray(array, np.float32) for name, array in stored.items()}
        if weights_digest(weights) != record["weights_sha256"]:
            raise ValueError("the weights do not match their recorded hash")
        return HtsatEncoder(
            config,
            mel_config,
            weights,
            encoder_id=identity.id,
            precision=precision,
            weights_sha256=record["weights_sha256"],
            location=location or str(folder),
            assumptions=identity.assumptions,
        )
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        reason = str(error).strip().split("\n")[0]
        raise UserError(f"{folder} is damaged ({reason}); convert or fetch it again") from None


def read_record(folder: Path) -> dict[str, Any]:
    """The `config.json` of an encoder folder.

    Raises:
        UserError: there is none, or of another format.
    """
    path = Path(folder) / "config.json"
    try:
        record = read_json(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{folder} is no encoder folder: {path.name} ({error})") from None
    if record.get("format") != FORMAT:
        raise UserError(
            f"{folder} is no encoder folder: format {record.get('format')!r}, not {FORMAT!r}"
        )
    return record


def verify_encoder(folder: Path) -> str:
    """Recomputes the probe embeddings of an encoder folder; returns a line that says how close.

    Raises:
        UserError: no encoder folder, damaged, or written without a probe.
        ModelCheckError: the embeddings differ from the stored ones.
    """
    record = read_record(folder)
    if record.get("probe") is None:
        raise UserError(f"{folder} was written without a probe embedding; nothing to compare")
    encoder = read_encoder(folder)
    stored = _unpack(record["probe"], encoder.embedding_dim)
    now = probe_embeddings(encoder)
    difference = float(np.max(np.abs(now - stored).max(axis=1) / np.linalg.norm(stored, axis=1)))
    if not difference <= PROBE_TOLERANCE:
        raise ModelCheckError(
            f"{folder} gives other embeddings than when it was written: the probe clips differ by "
            f"{difference:.1e} of their norm, {PROBE_TOLERANCE:.0e} is allowed"
        )
    return (
        f"{encoder.id}: weights {encoder.weights_sha256[:16]} as recorded; probe embeddings differ "
        f"by {difference:.1e} of their norm (allowed {PROBE_TOLERANCE:.0e})"
    )


def probe_embeddings(encoder: Encoder) -> np.ndarray:
    """Embeddings of the two probe clips, float32 [2, C]."""
    rate = encoder.sample_rate_hz
    lengths = np.array([int(s * rate) for s in PROBE_SECONDS])
    t = np.arange(lengths.max()) / rate
    beat, sweep = t % 0.4, np.sin(2 * np.pi * (90 * t + 35 * t**2))
    wave = 0.5 * np.sin(2 * np.pi * 60 * beat) * np.exp(-12 * beat) + 0.2 * sweep
    wave += 0.1 * np.sin(2 * np.pi * 1234 * t) * (beat < 0.1)
    samples = np.round(wave * 32767).astype(np.int16)
    batch = np.where(np.arange(len(t)) < lengths[:, None], samples, 0).astype(np.int16)
    mel, longer = encoder.front_end(batch, lengths, rate)
    return np.asarray(encoder.encode(mel, longer))


def _pack(embeddings: np.ndarray) -> str:
    return base64.b64encode(embeddings.astype("<f4").tobytes()).decode("ascii")


def _unpack(text: str, width: int) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), "<f4").reshape(-1, width)


def _is_replaceable(folder: Path) -> bool:
    if not folder.is_dir():
        return False
    return (folder / "config.json").is_file() or not any(folder.iterdir())


def _architecture(values: dict[str, Any]) -> HtsatConfig:
    """An architecture from a record, which must be no larger than networks are.

    Raises:
        TypeError, ValueError: it is not; names the key.
    """
    found = checked(HtsatConfig, values)
    for name, high in _LARGEST.items():
        value = getattr(found, name)
        for number in value if isinstance(value, tuple) else (value,):
            if not 1 <= number <= high:
                raise ValueError(f"{name} is {value!r}, not within 1 to {high}")
    if not 0 < len(found.depths) == len(found.heads) <= _MAX_STAGES:
        raise ValueError(f"depths {found.depths} and heads {found.heads} do not fit together")
    return found
