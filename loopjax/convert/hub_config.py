"""What the JSON files beside Hugging Face weights say: architecture flags and the front end."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from loopjax.errors import UserError
from loopjax.htsat.frontend import LogMelConfig

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
class HubConfig:
    """The two JSON files of a Hugging Face folder, empty where a file is missing."""

    audio: dict[str, Any] = field(default_factory=dict)
    preprocessor: dict[str, Any] = field(default_factory=dict)

    @property
    def fusion(self) -> bool | None:
        """Whether the configuration asks for fusion; None = it does not say."""
        return self.audio.get("enable_fusion")

    def front_end(self, default: LogMelConfig, fusion: bool) -> tuple[LogMelConfig, list[str]]:
        """The log-mel front end `ClapFeatureExtractor` would compute, with remarks.

        Without `preprocessor_config.json` it is the published towers' one. The extractor's own
        defaults (`frequency_min` 0) apply to what the file leaves out.

        Raises:
            UserError: a setting this front end does not have.
        """
        given = self.preprocessor
        if not given:
            return default, ["no preprocessor_config.json: the published front end is assumed"]
        if given.get("feature_size", 64) != 64 or given.get("top_db") is not None:
            raise UserError("preprocessor_config.json: only 64 mel bins without top_db are known")
        notes = []
        truncation = given.get("truncation", "fusion")
        if (truncation == "fusion") != fusion:
            notes.append(
                f"preprocessor_config.json says truncation {truncation!r}; the weights decide: "
                f"{'with' if fusion else 'without'} fusion"
            )
        rate = given.get("sampling_rate", 48000)
        config = LogMelConfig(
            sample_rate_hz=rate,
            n_fft=given.get("fft_window_size", 1024),
            hop_samples=given.get("hop_length", 480),
            fmin_hz=float(given.get("frequency_min", 0)),
            fmax_hz=float(given.get("frequency_max", 14000)),
            mel_scale="htk" if fusion else "slaney",
            clip_samples=int(given.get("max_length_s", 10) * rate),
            filling=given.get("padding", "repeatpad"),
            quantize_int16=False,
        )
        return config, notes


def read_hub_config(folder: Path) -> HubConfig:
    """Reads `config.json` and `preprocessor_config.json` where they exist.

    Raises:
        UserError: unreadable, or an architecture this port does not cover; names the settings.
    """
    config = _read(folder / "config.json")
    audio = config.get("audio_config", config)
    other = {k: audio[k] for k, v in _FIXED.items() if k in audio and audio[k] not in (v, [v, v])}
    if other:
        wrong = ", ".join(f"{k}={v!r} (only {_FIXED[k]!r} is known)" for k, v in other.items())
        raise UserError(f"{folder / 'config.json'}: {wrong}")
    return HubConfig(audio, _read(folder / "preprocessor_config.json"))


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is unreadable: {error}") from None
    if not isinstance(values, dict):
        raise UserError(f"{path} holds no JSON object")
    return values
