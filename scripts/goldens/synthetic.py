"""Clips and checkpoints that the tests and the goldens of encoders build alike, without torch.

Nothing is left at an identity default: norm affines, running statistics, biases and bias tables are
all random, so that no mistake hides behind a one or a zero.
"""

import zlib
from collections.abc import Mapping

import numpy as np

CLIP_SAMPLES = {
    "2 s": 96000,
    "10 s": 480000,
    "10.005 s": 480240,  # longer than a clip by less than one hop
    "11 s": 528000,
    "23 s": 1104000,
}
SEEDS = {  # of the golden cases' weights
    "laion_mini_fused": 1,
    "laion_mini_unfused": 2,
    "laion_tiny_fused": 3,
    "laion_base_unfused": 4,
    "hf_mini_fused": 5,
    "hf_mini_unfused": 6,
    "retrocirce_mini": 7,
    "msclap_mini": 8,
}
_CONSTANTS = (
    "relative_position_index",
    "attn_mask",
    "conv_real.weight",
    "conv_imag.weight",
    "melW",
    "num_batches_tracked",
)


def is_learned(name: str) -> bool:
    """Whether a tensor of a checkpoint is learned, not a constant of the architecture."""
    return not name.endswith(_CONSTANTS)


def clip(n_samples: int, seed: int = 0, rate_hz: int = 48000) -> np.ndarray:
    """A loop-like mono clip, float32 [n_samples] on the int16 grid: drums, a bass, a quiet pad."""
    rng = np.random.default_rng([seed, n_samples])
    t = np.arange(n_samples) / rate_hz
    beat = t % 0.5
    note = 55.0 * 2 ** (np.floor(t / 0.5) % 12 / 12)
    kick = np.sin(2 * np.pi * 50 * beat) * np.exp(-9 * beat)
    hat = rng.uniform(-1, 1, n_samples) * np.exp(-40 * (t % 0.25)) * 0.2
    bass = 0.3 * np.sin(2 * np.pi * note * t) + 0.1 * np.sin(2 * np.pi * 3 * note * t)
    pad = 0.01 * np.sin(2 * np.pi * (880 + 20 * seed) * t) * np.sin(2 * np.pi * 0.1 * t)
    wave = 0.5 * kick + hat + bass + pad
    return (np.round(wave * 20000) / 32768).astype(np.float32)


def weights(shapes: Mapping[str, tuple[int, ...]], seed: int = 0) -> dict[str, np.ndarray]:
    """Random float32 tensors by PyTorch name; each depends on its own name and the seed alone."""
    return {name: _tensor(name, tuple(shape), seed) for name, shape in shapes.items()}


def _tensor(name: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    random = rng.standard_normal(shape, dtype=np.float32)
    # The first BatchNorm sees decibels: it needs plausible statistics to leave plausible values.
    decibels = name.rsplit(".", 2)[-2] in ("bn0", "batch_norm")
    if name.endswith("running_var"):
        return np.float32(400 if decibels else 1) * (0.5 + np.square(random))
    if name.endswith("running_mean"):
        return 4 * random - 30 if decibels else 0.3 * random
    if "relative_position_bias_table" in name:
        return 0.5 * random
    if len(shape) == 1:
        return 1 + 0.3 * random if name.endswith("weight") else 0.2 * random
    return random * np.float32(1.2 / np.sqrt(np.prod(shape[1:])))


def sample(array: np.ndarray, size: int = 240) -> np.ndarray:
    """About `size` evenly strided values of an array: what a golden file keeps of a large one."""
    flat = np.asarray(array, np.float32).ravel()
    return flat[:: max(1, flat.size // size) | 1]
