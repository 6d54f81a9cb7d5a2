"""A corpus of short tones and an encoder small enough to train in seconds."""

from pathlib import Path

import numpy as np
import soundfile

from loopjax.config import from_dict
from loopjax.config.finetuning import FinetuneConfig
from loopjax.encoders.encoder import HtsatEncoder, random_weights
from loopjax.encoders.storage import save_encoder
from loopjax.htsat.frontend import LogMelConfig
from loopjax.htsat.model import HtsatConfig

RATE_HZ = 48_000  # below 28 kHz, the upper mel bands would hold rounding errors alone
SHAPE = HtsatConfig(
    width=8, depths=(1, 2), heads=(2, 2), patch=16, window=4, fusion=True,
    n_classes=None, projection_dim=None,
)  # fmt: skip


def tiny_encoder(seed: int = 0, **changes) -> HtsatEncoder:
    """An encoder of 11 thousand random weights in memory."""
    config = HtsatConfig(**{**vars(SHAPE), **changes})
    weights = random_weights(config, seed)
    rng = np.random.default_rng(seed)
    for name, value in weights.items():  # kernels of 0.02 would make all embeddings alike
        if name.endswith(".kernel"):
            weights[name] = (rng.standard_normal(value.shape) / value.shape[0] ** 0.5).astype("f4")
    weights["bn0.mean"] = np.full_like(weights["bn0.mean"], -60.0)
    weights["bn0.var"] = np.full_like(weights["bn0.var"], 900.0)
    return HtsatEncoder(config, LogMelConfig.clap_fused(), weights, encoder_id="tiny-random")


def write_encoder(folder: Path) -> Path:
    """The same as a folder."""
    encoder = tiny_encoder()
    save_encoder(
        folder, encoder.config, encoder.mel_config, encoder.weights(),
        encoder_id="tiny-random", about={"license": "MIT", "source": "noise"}, probe=False,
    )  # fmt: skip
    return folder


def write_loops(folder: Path, n_loops: int = 24, *, long: bool = True) -> Path:
    """Tones of three groups and several lengths; one is longer than a clip, one is broken."""
    rng = np.random.default_rng(0)
    for number in range(n_loops):
        group = folder / ("low", "mid", "high")[number % 3]
        group.mkdir(parents=True, exist_ok=True)
        seconds = 11.0 if long and number == 4 else rng.uniform(0.2, 0.7)
        t = np.arange(int(seconds * RATE_HZ)) / RATE_HZ
        wave = 0.4 * np.sin(2 * np.pi * 110 * 4 ** (number % 3) * rng.uniform(0.9, 1.1) * t)
        wave += 0.01 * rng.standard_normal(t.size)
        soundfile.write(group / f"loop_{number:02d}.wav", wave, RATE_HZ)
    return folder


def tiny_config(loops: Path, encoder: Path, **changes) -> FinetuneConfig:
    """Six steps on these loops; `changes` by section."""
    values = {
        "name": "tuned",
        "data": {"sources": [str(loops)], "holdout": 0.2},
        "embed": {"encoder": str(encoder), "workers": 1},
        "optimizer": {"steps": 6, "batch_size": 8, "warmup_steps": 1, "learning_rate": 3e-3},
        "every_steps": 2,
        "detectors": [],
    }
    for section, given in changes.items():
        known = values.get(section)
        values[section] = {**known, **given} if isinstance(known, dict) else given
    return from_dict(FinetuneConfig, values)
