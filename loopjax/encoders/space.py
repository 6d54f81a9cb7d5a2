"""What makes two embeddings comparable: the same encoder fed in the same way."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from pydantic import TypeAdapter, ValidationError

from loopjax.errors import UserError
from loopjax.htsat.frontend import DEVICE_RESAMPLER, IMAGE_FRAMES, LogMelConfig
from loopjax.json_files import parse_json

T = TypeVar("T")

# From exact to fast: full float32 products; TensorFloat-32 products where a GPU has them; bfloat16;
# bfloat16 with GELU by tanh; the same with window attention as one kernel, for GPUs.
Precision = Literal["fp32", "tf32", "bf16", "bf16-fast", "bf16-fused"]
Resample = Literal["auto", "host", "device"]
Mono = Literal["mean", "left", "mid"]

# Stores spell this key as their first version did: another spelling would change every hash.
_STORED_SPELLING = {"quantize_int16": "quantise_int16"}


@dataclass(frozen=True)
class Space:
    """An embedding space. Distances mean something only between embeddings of equal spaces.

    Attributes:
        encoder: the encoder's id.
        weights_sha256: digest of its weights.
        embedding_dim: width of an embedding.
        front_end: how a waveform becomes a log-mel spectrogram.
        fusion: whether long clips are fused from several views.
        precision: number format of the network.
        crops: where long clips are cut: "deterministic", or "seeded:K" for the mean of K draws.
        resample: where audio of other rates is resampled.
        device_resampler: the filter used on the device.
        mono: how channels are mixed down.
        sanitize: whether NaN and infinite samples are replaced by zeros (else rejected).
        accept_truncated: whether cut-off files are embedded (else rejected).
        location: what `load_encoder` finds the encoder by, a name or an absolute path; None where
            nobody knows. Not compared: the same encoder may lie elsewhere.
        assumptions: what about the front end had to be assumed, as nothing said it. Not compared.
    """

    encoder: str
    weights_sha256: str
    embedding_dim: int
    front_end: LogMelConfig
    fusion: bool
    precision: Precision = "fp32"
    crops: str = "deterministic"
    resample: Resample = "auto"
    device_resampler: str = DEVICE_RESAMPLER
    mono: Mono = "mean"
    sanitize: bool = False
    accept_truncated: bool = False
    location: str | None = field(default=None, compare=False)
    assumptions: tuple[str, ...] = field(default=(), compare=False)

    def __post_init__(self) -> None:
        """Checks what the types do not.

        Raises:
            UserError: `crops` is not understood.
        """
        _ = self.n_crops

    @property
    def n_crops(self) -> int:
        """Random crop draws to average; 0 for deterministic crops."""
        kind, _, number = self.crops.partition(":")
        if self.crops == "deterministic":
            return 0
        if kind == "seeded" and number.isdigit() and int(number) > 0:
            return int(number)
        raise UserError(
            f"crops {self.crops!r}: write deterministic, or seeded:K with K draws to average"
        )

    @property
    def settings(self) -> dict[str, Any]:
        """Everything but the encoder's identity, as stores spell it."""
        front_end = dataclasses.asdict(self.front_end) | {"fusion": self.fusion}
        return {
            **{f"front_end.{_STORED_SPELLING.get(k, k)}": value for k, value in front_end.items()},
            "precision": self.precision,
            "crops": self.crops,
            "resample": self.resample,
            "device_resampler": self.device_resampler,
            "mono": self.mono,
            "sanitize": self.sanitize,
            "accept_truncated": self.accept_truncated,
        }

    def to_metadata(self) -> dict[str, str]:
        """As text, for the key-value metadata of Parquet files; `from_metadata` reads it back."""
        text = json.dumps(self.settings, sort_keys=True)
        metadata = {
            "encoder": self.encoder,
            "weights_sha256": self.weights_sha256,
            "preprocessing_sha256": hashlib.sha256(text.encode()).hexdigest(),
            "preprocessing": text,
            "embedding_dim": str(self.embedding_dim),
        }
        if self.location is not None:
            metadata["encoder_path"] = self.location
        if self.assumptions:
            metadata["front_end_assumptions"] = json.dumps(self.assumptions)
        return metadata

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str]) -> "Space | None":
        """The space that a file's metadata describes; None for embeddings that others made.

        Raises:
            UserError: the metadata is damaged, or of a newer version.
        """
        if "preprocessing" not in metadata:
            return None
        try:
            settings: dict[str, Any] = parse_json(metadata["preprocessing"])
            front_end = {
                key.removeprefix("front_end."): settings.pop(key)
                for key in list(settings)
                if key.startswith("front_end.")
            }
            return cls(
                encoder=metadata["encoder"],
                weights_sha256=metadata["weights_sha256"],
                embedding_dim=int(metadata["embedding_dim"]),
                fusion=front_end.pop("fusion"),
                front_end=read_front_end(front_end),
                location=metadata.get("encoder_path"),
                assumptions=tuple(parse_json(metadata.get("front_end_assumptions", "[]"))),
                **settings,
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"the record of how these embeddings were made cannot be read ({error}): it is "
                "damaged or of another version of loopjax; embed again"
            ) from None

    def differences(self, other: "Space") -> list[str]:
        """What keeps two spaces apart, e.g. "mono: 'left' instead of 'mean'"; empty if equal."""
        mine, others = _comparable(self), _comparable(other)
        return [f"{k}: {mine[k]!r} instead of {others[k]!r}" for k in mine if mine[k] != others[k]]


def read_front_end(values: Mapping[str, Any]) -> LogMelConfig:
    """A front end from the values of a file, of any version.

    Raises:
        TypeError: a key that this version does not know.
        ValueError: a value of another type, or out of its range; names the key.
    """
    modern = {old: new for new, old in _STORED_SPELLING.items()}
    found = checked(LogMelConfig, {modern.get(key, key): value for key, value in values.items()})
    ranges = {
        "sample_rate_hz": (1, 1_000_000),
        "n_fft": (2, 1 << 16),
        "hop_samples": (1, 1 << 16),
        "mel_bins": (1, found.n_fft // 2 + 1),
        "fmax_hz": (1e-3, 1e6),
        "fmin_hz": (0, min(found.fmax_hz, found.sample_rate_hz / 2)),
        "clip_samples": (1, IMAGE_FRAMES * found.hop_samples - 1),
    }
    for name, (low, high) in ranges.items():
        value = getattr(found, name)
        if not low <= value <= high:  # so that NaN is refused
            raise ValueError(f"{name} is {value!r}, not within {low} to {high}")
    return found


def checked(cls: type[T], values: Mapping[str, Any]) -> T:
    """A dataclass from the values of a JSON file: lists become tuples, nothing else is converted.

    Raises:
        TypeError: an unknown key, or one is missing.
        ValueError: a value of another type; names its key.
    """
    cls(**values)  # pydantic passes over keys that it does not know
    try:
        return TypeAdapter(cls).validate_json(json.dumps(dict(values)), strict=True)
    except ValidationError as error:
        problem = error.errors()[0]
        raise ValueError(f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}") from None


def _comparable(space: Space) -> dict[str, Any]:
    plain = {f.name: getattr(space, f.name) for f in dataclasses.fields(space) if f.compare}
    front_end = dataclasses.asdict(plain.pop("front_end"))
    return plain | {f"front_end.{key}": value for key, value in front_end.items()}
