"""Freezes outputs of the original HTS-AT implementations as small files for the tests.

Needs torch, torchaudio, torchlibrosa, einops and transformers, and checkouts of the originals:

    python -m scripts.goldens.encoders --laion CLAP --retrocirce HTS-AT --msclap msCLAP

Weights and clips are rebuilt by `synthetic.py` beside it, so a golden file holds outputs alone.
What is pinned: every stage of the originals' own front ends and networks, on the CPU in float32.
What is not: trained weights, and the draw of random crops (they are taken at given places).
"""

import argparse
import contextlib
import json
import platform
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
import torchaudio
import torchlibrosa
import transformers

from scripts.goldens import originals, synthetic

ROOT = Path(__file__).parents[2]


SIZES = {
    "mini": {"embed_dim": 16, "depths": [2, 2, 2, 2], "num_heads": [1, 2, 4, 8]},
    "tiny": {"embed_dim": 96, "depths": [2, 2, 6, 2], "num_heads": [4, 8, 16, 32]},
    "base": {"embed_dim": 128, "depths": [2, 2, 12, 2], "num_heads": [4, 8, 16, 32]},
}
MEL = {"window_size": 1024, "mel_bins": 64, "fmin": 50, "fmax": 14000}
AUDIO = MEL | {"sample_rate": 48000, "hop_size": 480}
STAGES = {"bn0": "bn0", "patch_embed": "patch_embed", "norm": "norm"}
STAGES |= {f"stage{i}": f"layers.{i}" for i in range(4)}
KEPT_WHOLE = 1100  # larger arrays are kept as a strided sample

Case = tuple[dict[str, np.ndarray], dict[str, list[int]]]


class Taps:
    """Collects what named submodules put out."""

    def __init__(self, network: torch.nn.Module, names: dict[str, str]):
        self.seen: dict[str, np.ndarray] = {}
        for tap, path in names.items():
            network.get_submodule(path).register_forward_hook(self._hook(tap))

    def _hook(self, tap: str):
        def keep(module, inputs, output):
            value = (output[0] if isinstance(output, tuple) else output).detach().numpy()
            self.seen[tap] = value.transpose(0, 3, 2, 1) if tap == "bn0" else value

        return keep


def fill(module: torch.nn.Module, prefix: str, seed: int) -> dict[str, list[int]]:
    """Loads synthetic weights into everything learned; returns all names with their shapes."""
    state = module.state_dict()
    learned = {prefix + k: v.shape for k, v in state.items() if synthetic.is_learned(k)}
    for key, value in synthetic.weights(learned, seed).items():
        state[key.removeprefix(prefix)] = torch.tensor(value)
    module.load_state_dict(state, strict=True)
    module.eval()
    return {prefix + k: list(v.shape) for k, v in state.items()}


def record(out: dict, clip: str, values: dict[str, np.ndarray]) -> None:
    """Adds the arrays of one clip to a golden file."""
    for name, value in values.items():
        value = np.asarray(value)
        out[f"{clip}/{name}"] = value if value.size <= KEPT_WHOLE else synthetic.sample(value)


def crop_starts(n_samples: int, fusion: bool) -> list[int]:
    """Fixed, uneven crop positions within the ranges the originals draw from."""
    if not fusion:
        return [max(n_samples - 480000, 0) // 3]
    n = max(n_samples // 480 + 1 - 1001 + 1, 1)
    spans = np.array_split(np.arange(n), 3)
    places = zip(spans, (0.9, 0.2, 0.6), strict=True)
    return [int(span[int(len(span) * place)]) if len(span) else 0 for span, place in places]


@contextlib.contextmanager
def given_crops(starts: list[int]) -> Iterator[None]:
    """NumPy's global draws give these positions, then 0 (a waveform crop fusion never looks at)."""
    queue = iter([*starts, 0])
    choice, randint = np.random.choice, np.random.randint
    np.random.choice = lambda span: next(queue)
    np.random.randint = lambda low, high: next(queue)
    try:
        yield
    finally:
        np.random.choice, np.random.randint = choice, randint


def network_config(**changes) -> SimpleNamespace:
    """What the originals read off their configuration object."""
    values = {"enable_tscam": True, "htsat_attn_heatmap": False, "loss_type": "clip_bce"}
    values |= {"class_num": 527, "clip_samples": 480000, "enable_repeat_mode": False}
    return SimpleNamespace(**(values | AUDIO | changes))


def laion_case(original: SimpleNamespace, size: str, fusion: bool, clips: list[str], seed: int):
    """One LAION-CLAP audio tower through LAION's own feature extraction."""
    network = original.network(
        config=network_config(),
        num_classes=11 if size == "mini" else 527,
        enable_fusion=fusion,
        fusion_type="aff_2d" if fusion else "None",
        **SIZES[size],
    )
    width = SIZES[size]["embed_dim"] * 8
    projection = torch.nn.Sequential(
        torch.nn.Linear(width, 512), torch.nn.ReLU(), torch.nn.Linear(512, 512)
    )
    shapes = fill(network, "audio_branch.", seed) | fill(projection, "audio_projection.", seed)
    taps = Taps(network, STAGES if fusion else STAGES | {"mel": "logmel_extractor"})
    out: dict[str, np.ndarray] = {}
    for clip in clips:
        wave = synthetic.clip(synthetic.CLIP_SAMPLES[clip])
        wave = original.int16_to_float32(original.float32_to_int16(wave))
        starts = crop_starts(wave.size, fusion)
        with given_crops(starts):
            sample = original.get_audio_features(
                {},
                torch.from_numpy(wave).float(),
                480000,
                data_truncating="fusion" if fusion else "rand_trunc",
                data_filling="repeatpad",
                audio_cfg=AUDIO,
            )
        batch = {k: v[None] for k, v in sample.items()}
        with torch.no_grad():
            result = network(batch, device="cpu")
            projected = torch.nn.functional.normalize(projection(result["embedding"]), dim=-1)
        values = {k: v.numpy() for k, v in result.items()} | taps.seen
        if fusion:
            values["mel"] = batch["mel_fusion"].numpy()
        values |= {"projection": projected.numpy(), "longer": batch["longer"].numpy()}
        record(out, clip, values | {"starts": np.array(starts)})
    return out, shapes


def hf_case(fusion: bool, clips: list[str], seed: int) -> Case:
    """A small transformers CLAP audio model behind its own feature extractor."""
    config = transformers.ClapAudioConfig(
        enable_fusion=fusion,
        patch_embeds_hidden_size=16,
        hidden_size=128,
        depths=[2, 2, 2, 2],
        num_attention_heads=[1, 2, 4, 8],
    )
    model = transformers.ClapAudioModelWithProjection(config)
    shapes = fill(model, "", seed)
    network = model.audio_model.audio_encoder
    taps = Taps(network, STAGES | {"bn0": "batch_norm"})
    truncation = "fusion" if fusion else "rand_trunc"
    extractor = transformers.ClapFeatureExtractor(frequency_min=50, truncation=truncation)
    out: dict[str, np.ndarray] = {}
    for clip in clips:
        wave = synthetic.clip(synthetic.CLIP_SAMPLES[clip])
        starts = crop_starts(wave.size, fusion)
        with given_crops(starts):
            mel, longer = extractor._get_input_mel(wave, 480000, truncation, "repeatpad")
        features = torch.tensor(np.asarray(mel), dtype=torch.float32)[None]
        with torch.no_grad():
            result = model(input_features=features, is_longer=torch.tensor([[longer]]))
            pooled = model.audio_model(features, is_longer=torch.tensor([[longer]])).pooler_output
        projected = torch.nn.functional.normalize(result.audio_embeds, dim=-1)
        values = taps.seen | {"mel": features.numpy(), "embedding": pooled.numpy()}
        values |= {"projection": projected.numpy(), "longer": np.array([longer])}
        record(out, clip, values | {"starts": np.array(starts)})
    return out, shapes


def retrocirce_case(network_class: type[torch.nn.Module], seed: int) -> Case:
    """The original HTS-AT at 32 kHz in its inference mode, clips of every length it accepts.

    It normalizes before it repeats and stretches the frames, we after; so `bn0` is left out.
    """
    config = network_config(sample_rate=32000, hop_size=320)
    network = network_class(config=config, num_classes=11, **SIZES["mini"])
    shapes = fill(network, "sed_model.", seed)
    names = {tap: path for tap, path in STAGES.items() if tap != "bn0"}
    taps = Taps(network, names | {"mel": "logmel_extractor"})
    out: dict[str, np.ndarray] = {}
    for seconds in (0.1, 2.3, 5, 7.77, 10, 10.2):
        wave = synthetic.clip(round(seconds * 32000), rate_hz=32000)
        with torch.no_grad():
            result = network(torch.tensor(wave)[None], infer_mode=True)
        values = {k: v.numpy() for k, v in result.items()} | taps.seen
        values["embedding"] = values.pop("latent_output")
        values |= {"longer": np.array([False]), "starts": np.array([0])}
        record(out, f"{seconds} s", values)
    return out, shapes


def msclap_case(original: SimpleNamespace, seed: int) -> Case:
    """Microsoft CLAP's tower and projection, seven seconds at 44.1 kHz in."""
    network = original.network(config=original.config, num_classes=11, **SIZES["mini"])
    projection = original.projection(128, 64)
    shapes = fill(network, "audio_encoder.base.htsat.", seed)
    shapes |= fill(projection, "audio_encoder.projection.", seed)
    taps = Taps(network, STAGES | {"mel": "logmel_extractor"})
    wave = synthetic.clip(308700, rate_hz=44100)
    out: dict[str, np.ndarray] = {}
    with torch.no_grad():
        result = network(torch.tensor(wave)[None])
        projected = projection(result["latent_output"])
    values = {k: v.numpy() for k, v in result.items()} | taps.seen
    values["embedding"] = values.pop("latent_output")
    values |= {"projection": projected.numpy(), "starts": np.array([0])}
    record(out, "7 s", values | {"longer": np.array([False])})
    return out, shapes


def filter_banks() -> dict[str, np.ndarray]:
    """The filters the originals store in their checkpoints, by the rate they are laid out for."""
    return {
        str(rate): torchlibrosa.stft.LogmelFilterBank(
            sr=rate, n_fft=1024, n_mels=64, fmin=50, fmax=14000
        ).melW.numpy()
        for rate in (48000, 32000, 44100, 16000)
    }


def main() -> None:
    """Writes one npz per case, the tensor shapes of each layout, and what made them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--laion", type=Path, required=True)
    parser.add_argument("--retrocirce", type=Path, required=True)
    parser.add_argument("--msclap", type=Path, required=True)
    parser.add_argument("-o", "--out", type=Path, default=ROOT / "tests/goldens")
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    laion = originals.laion(arguments.laion)
    retrocirce = originals.retrocirce(arguments.retrocirce)
    msclap = originals.msclap(arguments.msclap)
    every = list(synthetic.CLIP_SAMPLES)
    cases = {
        "laion_mini_fused": lambda seed: laion_case(laion, "mini", True, every, seed),
        "laion_mini_unfused": lambda seed: laion_case(laion, "mini", False, every, seed),
        "laion_tiny_fused": lambda seed: laion_case(laion, "tiny", True, ["2 s", "23 s"], seed),
        "laion_base_unfused": lambda seed: laion_case(laion, "base", False, ["2 s"], seed),
        "hf_mini_fused": lambda seed: hf_case(True, every, seed),
        "hf_mini_unfused": lambda seed: hf_case(False, every, seed),
        "retrocirce_mini": lambda seed: retrocirce_case(retrocirce, seed),
        "msclap_mini": lambda seed: msclap_case(msclap, seed),
    }
    shapes = {}
    for name, case in cases.items():
        arrays, shapes[name] = case(synthetic.SEEDS[name])
        np.savez_compressed(arguments.out / f"{name}.npz", **arrays)
    np.savez_compressed(arguments.out / "filter_banks.npz", **filter_banks())
    (arguments.out / "shapes.json").write_text(json.dumps(shapes, separators=(",", ":")) + "\n")
    versions = {m.__name__: m.__version__ for m in (torch, torchaudio, torchlibrosa, transformers)}
    meta = {
        "made_by": "scripts/goldens/encoders.py",
        "versions": versions | {"numpy": np.__version__, "python": platform.python_version()},
        "pinned": "outputs of the originals on CPU, float32, for synthetic weights and clips",
        "not_pinned": "trained weights; the random draw of crop positions",
    }
    (arguments.out / "meta.json").write_text(json.dumps(meta, indent=2) + "\n")


if __name__ == "__main__":
    main()
