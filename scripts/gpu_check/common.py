"""What the sections share: one command line, steps timed in groups, seeded encoders."""

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from scripts.bench.measure import emit, rounded

HERE = Path(__file__).parent
REFERENCE = HERE / "reference.npz"
# Waiting for a device costs up to a millisecond, which a run over a corpus pays once.
GROUP_S, GROUPS = 0.05, 21
TINY_GFLOP = 11.9  # of the encoder, per clip, multiplications and additions


def arguments(doc: str | None) -> argparse.Namespace:
    """`rehearse`: small sizes, on a CPU; `rows`: the file that holds the earlier sections' rows."""
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rehearse", action="store_true", help="small sizes, on a CPU")
    parser.add_argument("--rows", type=Path, help="rows of earlier sections")
    return parser.parse_args()


def earlier(rows: Path | None) -> dict[str, float]:
    """Our figure by row, of the sections that ran before."""
    if rows is None or not rows.exists():
        return {}
    lines = (json.loads(line) for line in rows.read_text().splitlines())
    return {line["row"]: line["ours"] for line in lines}


def median_s(
    step: Callable[[], Any], rehearse: bool, wait: Callable[[Any], Any] | None = None
) -> tuple[float, dict[str, Any]]:
    """Median seconds of a step, compiled before, and what is behind the figure.

    Steps are started one behind the other and waited for in groups of 50 ms, as a run over a corpus
    does; `wait` blocks until a step's result is there, by default JAX's.
    """
    if wait is None:
        import jax

        wait = jax.block_until_ready

    def group(count: int) -> float:
        started = time.perf_counter()
        for _ in range(count - 1):
            step()
        wait(step())
        return (time.perf_counter() - started) / count

    first = group(1)
    count = 1 if rehearse else max(1, math.ceil(GROUP_S / min(group(1), group(1))))
    taken = [group(count) for _ in range(3 if rehearse else GROUPS)]
    median = statistics.median(taken)
    spread = (max(taken) - min(taken)) / median
    details = {"calls": count * len(taken), "spread": rounded(spread), "first_s": rounded(first)}
    return median, details


def check(row: str, value: float, unit: str, *, most: float) -> bool:
    """Prints one row of what must hold; whether it does."""
    holds = bool(value <= most)
    more = {"higher_is_better": False, "target": f"<= {most:g}", "holds": holds}
    emit("gpu_check", row, ours=value, unit=unit, **more)
    return holds


def configuration(size: str) -> Any:
    """The architecture of a size, without the heads behind its embedding."""
    from loopjax.htsat.model import HtsatConfig

    if size == "nano":
        return HtsatConfig.nano()
    return {"tiny": HtsatConfig.tiny, "base": HtsatConfig.base}[size](
        n_classes=None, projection_dim=None
    )


def front_end_configuration(size: str) -> Any:
    """The front end that goes with a size: with fusion HTK filters, without Slaney's."""
    from loopjax.htsat.frontend import LogMelConfig

    return LogMelConfig.clap_fused() if size == "nano" else LogMelConfig.clap_unfused()


@lru_cache
def seeded_weights(size: str) -> dict[str, np.ndarray]:
    """Weights that keep the variance from layer to layer; NumPy's, the same on every machine."""
    from flax import nnx

    from loopjax.encoders.encoder import abstract_model

    _, state = abstract_model(configuration(size))
    shapes = {".".join(map(str, path)): leaf for path, leaf in nnx.to_flat_state(state)}
    rng = np.random.default_rng(0)
    weights = {}
    for name, like in sorted(shapes.items()):
        noise = rng.normal(size=like.shape).astype(np.float32)
        kind = name.rpartition(".")[2]
        if kind == "kernel":
            noise *= like.shape[0] ** -0.5
        elif kind in ("scale", "var"):
            noise = 1.0 + 0.1 * np.tanh(noise)
        else:
            noise *= 0.1
        if name in ("bn0.mean", "bn0.var"):  # of decibels
            noise = noise * 10.0 - 40.0 if kind == "mean" else noise * 400.0
        weights[name] = noise.astype(np.float32)
    return weights


def encoder(size: str, precision: Any) -> Any:
    """An encoder with seeded weights."""
    from loopjax.encoders.encoder import HtsatEncoder

    return HtsatEncoder(
        configuration(size),
        front_end_configuration(size),
        seeded_weights(size),
        encoder_id=size,
        precision=precision,
    )


def loops(count: int, seconds: float, rate_hz: int) -> np.ndarray:
    """Decaying partials and noise, int16 [count, seconds * rate]."""
    rng = np.random.default_rng(1)
    t = np.arange(round(seconds * rate_hz)) / rate_hz
    rows = []
    for _ in range(count):
        root_hz, decay = rng.uniform(50.0, 400.0), rng.uniform(1.0, 12.0)
        wave = sum(np.sin(2 * np.pi * root_hz * k * t) / k for k in range(1, 8))
        wave = 0.3 * wave * np.exp(-decay * (t % 0.5)) + 0.02 * rng.normal(size=t.size)
        rows.append(np.round(np.clip(wave, -1, 1) * 32767).astype(np.int16))
    return np.stack(rows)


def mlp_half(width: int, dtype: Any, fused: bool) -> Callable[[Any], Any]:
    """The second half of a block, compiled: by its kernel, or plain with the same form of GELU."""
    import jax
    from flax import nnx

    from loopjax.encoders.encoder import GPU_COMPILER_OPTIONS
    from loopjax.htsat.swin import SwinBlock

    block = SwinBlock(width, width // 24, 8, False, 0.0, 8, 4, dtype, rngs=nnx.Rngs(0))
    block.mlp.tanh = True
    for layer in (block.mlp.fc1, block.mlp.fc2):
        layer.kernel[...] = (5.0 * layer.kernel[...]).astype(dtype)
    graph, state = nnx.split(block)

    def half(state: Any, x: Any) -> Any:
        whole = nnx.merge(graph, state)
        return whole._fused_half(x) if fused else x + whole.mlp(whole.norm2(x))

    return partial(jax.jit(half, compiler_options=GPU_COMPILER_OPTIONS), state)
