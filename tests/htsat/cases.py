"""Golden cases: the originals' outputs and the checkpoints behind them, rebuilt without torch."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from loopjax.convert.layouts import LazyTensor, Source
from loopjax.convert.mapping import map_checkpoint
from loopjax.encoders.encoder import HtsatEncoder, random_weights
from loopjax.htsat.frontend import LogMelConfig
from loopjax.htsat.model import HtsatConfig
from scripts.goldens import synthetic

GOLDENS = Path(__file__).parent.parent / "goldens"
STORED_BANK_HZ = {"laion": "48000", "retrocirce": "32000", "msclap": "32000"}


@cache
def golden(name: str) -> dict[str, np.ndarray]:
    """The arrays of one golden file, `clip/tap` by name."""
    with np.load(GOLDENS / f"{name}.npz") as arrays:
        return dict(arrays)


@cache
def shapes(name: str) -> dict[str, tuple[int, ...]]:
    """Every tensor name of the original module's state dict, with its shape."""
    stored = json.loads((GOLDENS / "shapes.json").read_text())[name]
    return {key: tuple(shape) for key, shape in stored.items()}


def checkpoint(name: str) -> dict[str, np.ndarray]:
    """The full state dict of a golden case: synthetic weights and the architecture's constants."""
    learned = {key: shape for key, shape in shapes(name).items() if synthetic.is_learned(key)}
    bank = STORED_BANK_HZ.get(name.split("_")[0])
    tensors: dict[str, np.ndarray] = dict(synthetic.weights(learned, synthetic.SEEDS[name]))
    for key, shape in shapes(name).items():
        if key not in tensors:
            tensors[key] = constant(key, shape, bank)
    return tensors


def constant(key: str, shape: tuple[int, ...], bank_hz: str | None) -> np.ndarray:
    """A stored constant, computed the plain way."""
    if key.endswith("relative_position_index"):
        cells = [(row, column) for row in range(8) for column in range(8)]
        return np.array([[(a - c + 7) * 15 + b - d + 7 for c, d in cells] for a, b in cells])
    if key.endswith("attn_mask"):
        return shift_mask(round(shape[0] ** 0.5) * 8)
    if key.endswith("melW"):
        with np.load(GOLDENS / "filter_banks.npz") as banks:
            return banks[bank_hz]
    if key.endswith("conv_real.weight") or key.endswith("conv_imag.weight"):
        window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(1024) / 1024)
        turn = np.exp(-2j * np.pi * (np.outer(np.arange(513), np.arange(1024)) % 1024) / 1024)
        part = turn.real if "real" in key else turn.imag
        return (part * window)[:, None].astype(np.float32)
    return np.zeros(shape, np.int64)


def shift_mask(side: int) -> np.ndarray:
    """Which positions of a rolled grid may see one another, window by window."""
    region = np.zeros((side, side))
    parts = (slice(0, -8), slice(-8, -4), slice(-4, None))
    for i, rows in enumerate(parts):
        for j, columns in enumerate(parts):
            region[rows, columns] = 3 * i + j
    windows = [
        region[r : r + 8, c : c + 8].ravel() for r in range(0, side, 8) for c in range(0, side, 8)
    ]
    return np.stack([np.where(w[:, None] == w, 0.0, -100.0) for w in windows])


def lazy(tensors: dict[str, np.ndarray]) -> Source:
    """Arrays as a checkpoint's lazy tensors."""
    return {key: LazyTensor(array.shape, lambda a=array: a) for key, array in tensors.items()}


@cache
def encoder(name: str, precision="fp32") -> HtsatEncoder:
    """The encoder of a golden case."""
    mapped = map_checkpoint(lazy(checkpoint(name)))
    weights = mapped.weights
    return HtsatEncoder(
        mapped.config, mapped.front_end, weights, encoder_id=name, precision=precision
    )


@cache
def micro(precision="fp32") -> HtsatEncoder:
    """The smallest fused encoder with shifted windows: quick to compile, for what is not parity."""
    config = HtsatConfig.nano(width=16, depths=(2, 1), heads=(1, 2))
    rng = np.random.default_rng(0)
    weights = {
        name: array + rng.normal(scale=0.1, size=array.shape).astype(np.float32) * (array.ndim == 1)
        for name, array in random_weights(config, seed=1).items()
    }
    front_end = LogMelConfig.clap_fused()
    weights |= {
        "bn0.mean": np.full(64, -30.0, np.float32),
        "bn0.var": np.full(64, 400.0, np.float32),
    }
    return HtsatEncoder(config, front_end, weights, encoder_id="micro", precision=precision)


@cache
def _program(name: str):
    graphdef = encoder(name)._graphdef

    def run(params, mel, longer):
        model, taps = nnx.merge(graphdef, params), {}
        with jax.default_matmul_precision("highest"):
            model.latent(mel, longer, taps=taps)
            return taps | model.outputs(mel, longer)

    return jax.jit(run)


def everything(name: str, mel, longer) -> dict[str, np.ndarray]:
    """All stages and outputs of a golden case's encoder for given mel views."""
    out = _program(name)(encoder(name).params, mel, longer)
    return {key: np.asarray(value) for key, value in out.items()}


def disturb(modules: Any) -> None:
    """Adds noise to every parameter, so that each of them matters."""
    key = jax.random.key(1)
    for parameter in jax.tree.leaves(modules, is_leaf=lambda leaf: isinstance(leaf, nnx.Param)):
        key, own = jax.random.split(key)
        parameter[...] += 0.1 * jax.random.normal(own, parameter.shape)
