"""What the JSON files beside Hugging Face weights say: architecture flags and the front end."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

from loopjax.convert.files import read_json
from loopjax.errors import UserError
from loopjax.htsat.frontend import IMAGE_FRAMES, LogMelConfig

Word = TypeVar("Word", bound=str)
Filling = Literal["repeatpad", "repeat", "pad"]
_FILLINGS: tuple[Filling, ...] = ("repeatpad", "repeat", "pad")
_TRUNCATIONS = ("fusion", "rand_trunc")
_SETTINGS = frozenset(("sampling_rate", "max_length_s", "frequency_min", "truncation", "padding"))
# Settings that change numbers, which HTS-AT weights are never published with another value of.
_FIXED = {
    "spec_size": 256,
    "num_mel_bins": 64,
    "patch_size": 4,
    "patch_stride": 4,
    "hidden_act": "gelu",
    "projection_hidden_act": "relu",
    "layer_norm_eps": 1e-5,
    "enable_patch_layer_norm": True,
    "flatten_patch_embeds": True,
    "patch_embed_input_channels": 1,
    "qkv_bias": True,
    "aff_block_r": 4,
}


@dataclass(frozen=True)
class Extractor:
    """The settings of a `ClapFeatureExtractor`.

    Attributes:
        path: the file they come from.
        truncation: "fusion" or "rand_trunc": what happens to long clips, and the mel scale.
        front_end: everything else.
    """

    path: Path
    truncation: str
    front_end: LogMelConfig


@dataclass(frozen=True)
class TextSettings:
    """What the shapes of a text tower's tensors do not say; defaults of `ClapTextConfig`."""

    heads: int = 12
    norm_eps: float = 1e-12
    pad_id: int = 1


@dataclass(frozen=True)
class HubConfig:
    """What the JSON files of a Hugging Face folder say; None where they do not.

    Attributes:
        fusion: whether the configuration asks for feature fusion.
        extractor: the feature extractor's settings.
        text: the text tower's.
    """

    fusion: bool | None
    extractor: Extractor | None
    text: TextSettings | None

    def front_end(self, default: LogMelConfig, fusion: bool) -> tuple[LogMelConfig, list[str]]:
        """The log-mel front end `ClapFeatureExtractor` would compute, and what was assumed.

        Args:
            default: the published towers' front end, taken where there are no settings.
            fusion: whether the weights have feature fusion.
        """
        if self.extractor is None:
            return default, [
                "neither processor_config.json nor preprocessor_config.json says how the front end "
                "is set; that of the published towers is assumed"
            ]
        if (self.extractor.truncation == "fusion") == fusion:
            return self.extractor.front_end, []
        scale: Literal["htk", "slaney"] = "htk" if fusion else "slaney"
        return dataclasses.replace(self.extractor.front_end, mel_scale=scale), [
            f"{self.extractor.path.name} says truncation {self.extractor.truncation!r}; the "
            f"weights decide: {'with' if fusion else 'without'} fusion"
        ]


def read_hub_config(folder: Path) -> HubConfig:
    """Reads the JSON files of a Hugging Face folder, where they exist.

    The feature extractor's settings lie in `processor_config.json` since transformers 5, which
    takes them before those of `preprocessor_config.json`; its own defaults (`frequency_min` 0)
    apply to what the file leaves out.

    Raises:
        UserError: unreadable, or settings this port does not cover; names them.
    """
    config = folder / "config.json"
    return HubConfig(_fusion(config), _extractor(folder), _text(config))


def _fusion(path: Path) -> bool | None:
    if not path.is_file():
        return None
    config = read_json(path)
    audio = config.get("audio_config", config)
    if not isinstance(audio, dict):
        raise UserError(f"{path}: audio_config is no JSON object")
    other = {k: audio[k] for k, v in _FIXED.items() if k in audio and audio[k] not in (v, [v, v])}
    if other:
        wrong = ", ".join(f"{k}={v!r} (only {_FIXED[k]!r} is known)" for k, v in other.items())
        raise UserError(f"{path}: {wrong}")
    fusion = audio.get("enable_fusion")
    if fusion is not None and not isinstance(fusion, bool):
        raise UserError(f"{path}: enable_fusion={fusion!r} is neither true nor false")
    return fusion


def _text(path: Path) -> TextSettings | None:
    text = read_json(path).get("text_config") if path.is_file() else None
    if not isinstance(text, dict):
        return None
    for key, known in (("hidden_act", "gelu"), ("projection_hidden_act", "relu")):
        _choice(path, text, key, (known,))
    usual = TextSettings()
    return TextSettings(
        heads=_whole(path, text, "num_attention_heads", usual.heads, 1, 1024),
        norm_eps=_number(path, text, "layer_norm_eps", usual.norm_eps, 0, 1),
        pad_id=_whole(path, text, "pad_token_id", usual.pad_id, 0, 1 << 24),
    )


def _extractor(folder: Path) -> Extractor | None:
    path = folder / "processor_config.json"
    if path.is_file():
        processor = read_json(path)
        for key in ("feature_extractor", "audio_processor"):
            nested = processor.get(key)
            if isinstance(nested, dict):
                return _read_extractor(path, nested)
            if nested is not None and not isinstance(nested, str):
                raise UserError(f"{path}: {key} is no JSON object")
        if not _SETTINGS.isdisjoint(processor):  # not nested at all
            return _read_extractor(path, processor)
    path = folder / "preprocessor_config.json"
    return _read_extractor(path, read_json(path)) if path.is_file() else None


def _read_extractor(path: Path, given: Mapping[str, object]) -> Extractor:
    if given.get("feature_size", 64) != 64 or given.get("top_db") is not None:
        raise UserError(f"{path}: only 64 mel bins (feature_size) without top_db are known")
    truncation = _choice(path, given, "truncation", _TRUNCATIONS)
    rate_hz = _whole(path, given, "sampling_rate", 48000, 1000, 1_000_000)
    length_s = _number(path, given, "max_length_s", 10.0, 1e-3, 1e4)
    front_end = LogMelConfig(
        sample_rate_hz=rate_hz,
        n_fft=_whole(path, given, "fft_window_size", 1024, 64, 1 << 14),
        hop_samples=_whole(path, given, "hop_length", 480, 1, 1 << 16),
        fmin_hz=_number(path, given, "frequency_min", 0.0, 0.0, 1e6),
        fmax_hz=_number(path, given, "frequency_max", 14000.0, 0.0, 1e6),
        mel_scale="htk" if truncation == "fusion" else "slaney",
        clip_samples=int(length_s * rate_hz),
        filling=_choice(path, given, "padding", _FILLINGS),
        quantize_int16=False,
    )
    if front_end.n_fft % 2:
        raise UserError(f"{path}: fft_window_size={front_end.n_fft} is odd")
    if front_end.fmin_hz >= min(front_end.fmax_hz, rate_hz / 2):
        raise UserError(f"{path}: no frequency lies above frequency_min={front_end.fmin_hz:g}")
    if not front_end.n_fft < front_end.clip_samples or front_end.clip_frames > IMAGE_FRAMES:
        raise UserError(
            f"{path}: {length_s:g} s (max_length_s) are {front_end.clip_frames} frames; the "
            f"network takes one window to {IMAGE_FRAMES} frames"
        )
    return Extractor(path, truncation, front_end)


def _choice(path: Path, given: Mapping[str, object], key: str, known: tuple[Word, ...]) -> Word:
    value = given.get(key, known[0])
    for word in known:
        if value == word:
            return word
    raise UserError(f"{path}: {key}={value!r}; known: {', '.join(known)}")


def _number(
    path: Path, given: Mapping[str, object], key: str, default: float, low: float, high: float
) -> float:
    value = given.get(key, default)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise UserError(f"{path}: {key}={value!r} is no number")
    if not (math.isfinite(value) and low <= value <= high):
        raise UserError(f"{path}: {key}={value!r} lies outside {low:g} to {high:g}")
    return float(value)


def _whole(
    path: Path, given: Mapping[str, object], key: str, default: int, low: int, high: int
) -> int:
    value = _number(path, given, key, default, low, high)
    if not value.is_integer():
        raise UserError(f"{path}: {key}={value!r} is no whole number")
    return int(value)
