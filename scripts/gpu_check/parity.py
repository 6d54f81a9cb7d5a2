"""Section parity: the same numbers as on a CPU, from decibels to embeddings; fails where not.

Log-mel and embeddings of random weights in every precision against `reference.npz`, blocks with
the attention kernel against the plain path at every stage, and the same bits on a second run.
"""

import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from loopjax.htsat.kernels import on_hopper
from loopjax.htsat.kernels.mlp import serves
from loopjax.htsat.swin import SwinBlock
from scripts.gpu_check.common import (
    REFERENCE,
    arguments,
    check,
    configuration,
    encoder,
    mlp_half,
)
from scripts.gpu_check.reference import FRAMES, KINDS, SIZES, views

MEL_DB_MAX, MEL_DB_MEAN = 0.05, 5e-4  # bands near -100 dB carry a float32 STFT's rounding
FP32_OVER_NORM = 2e-5
# 1 - cosine to float32, because a cosine rounded to three digits says nothing.
ANGLE = {"tf32": 1e-4, "bf16": 1e-3, "bf16-fused": 1e-3}
BLOCK_ANGLE = 5e-4
COMPILERS = 8  # programs compiled at a time


class Figure(NamedTuple):
    """What must not be above `most`."""

    row: str
    value: float
    unit: str
    most: float


def log_mel(size: str, reference: dict[str, np.ndarray]) -> Iterator[Figure]:
    """Log-mel views in decibels."""
    for kind in KINDS:
        mel, _ = views(encoder(size, "fp32"), kind)
        apart = np.abs(np.asarray(mel)[:, :, FRAMES] - reference[f"{size}/{kind}/mel_db"])
        row = f"{size}, log-mel of {kind}"
        yield Figure(f"{row}, largest difference", apart.max(), "dB", MEL_DB_MAX)
        yield Figure(f"{row}, mean difference", apart.mean(), "dB", MEL_DB_MEAN)


def embeddings(size: str, precision: str, reference: dict[str, np.ndarray]) -> Iterator[Figure]:
    """Embeddings in one precision, and of a second run."""
    model = encoder(size, precision)
    if model.weights_sha256 != str(reference[f"{size}/weights"]):
        raise SystemExit("these are not the weights of reference.npz: make it anew")
    for kind in KINDS:
        mel = views(model, kind)
        ours, again = (np.asarray(model.encode(*mel)) for _ in range(2))
        theirs = reference[f"{size}/{kind}/embedding"]
        row = f"{size} {precision}, embeddings of {kind}"
        if precision == "fp32":
            apart = np.abs(ours - theirs).max() / np.linalg.norm(theirs, axis=1).min()
            yield Figure(f"{row}, over norm", apart, "", FP32_OVER_NORM)
        else:
            yield Figure(row, angle(ours, theirs), "1 - cosine", ANGLE[precision])
        yield Figure(f"{row}, a second run", np.abs(again - ours).max(), "", 0.0)


def kernel(size: str, stage: int) -> Iterator[Figure]:
    """Whether a stage's block with the kernel agrees with the plain path in float32."""
    config = configuration(size)
    heads = config.heads[stage]
    side, width = config.grid // 2**stage, config.width * 2**stage
    x = 3.0 * np.random.default_rng(stage).normal(size=(2, side**2, width))

    def run(dtype: Any, fused: bool) -> np.ndarray:
        block = SwinBlock(width, heads, side, True, 0.0, 8, 4, dtype, rngs=nnx.Rngs(0))
        # Biases large enough that a wrong mask or order shows.
        block.attn.rel_bias[...] = 40.0 * block.attn.rel_bias[...]
        block.fused = fused
        graph, state = nnx.split(block)
        with jax.default_matmul_precision("highest"):
            tokens = jnp.asarray(x, dtype)
            return np.asarray(jax.jit(nnx.merge(graph, state)._attend)(tokens), np.float32)

    plain = run(jnp.float32, False)
    for dtype, fused in ((jnp.bfloat16, False), (jnp.bfloat16, True)):
        name = "kernel" if fused else "plain"
        row = f"{size}, attention of stage {stage}, {name} in bfloat16"
        yield Figure(row, angle(run(dtype, fused), plain), "1 - cosine", BLOCK_ANGLE)


def fused_half(size: str, stage: int) -> Iterator[Figure]:
    """Whether a stage's MLP kernel, where it has one here, agrees with the plain path."""
    config = configuration(size)
    side, width = config.grid // 2**stage, config.width * 2**stage
    if not (on_hopper() and serves(2 * side**2, width)):
        return
    # Small, so that the sum of tokens and branch is the branch's.
    x = 0.05 * np.random.default_rng(stage).normal(size=(2, side**2, width))

    def run(dtype: Any, fused: bool) -> np.ndarray:
        with jax.default_matmul_precision("highest"):
            return np.asarray(mlp_half(width, dtype, fused)(jnp.asarray(x, dtype)), np.float32)

    apart = angle(run(jnp.bfloat16, True), run(jnp.float32, False))
    yield Figure(f"{size}, MLP of stage {stage}, kernel", apart, "1 - cosine", BLOCK_ANGLE)


def angle(ours: np.ndarray, theirs: np.ndarray) -> float:
    """1 - cosine, the largest over rows."""
    a, b = (x.reshape(len(x), -1).astype(np.float64) for x in (ours, theirs))
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return float((1.0 - (a * b).sum(axis=1) / norms).max())


def compare(rehearse: bool) -> bool:
    """Prints every row; whether all hold."""
    with np.load(REFERENCE) as arrays:
        reference = dict(arrays)
    tasks: list[Callable[[], Iterator[Figure]]] = []
    for size in SIZES[:1] if rehearse else ("tiny", "base", "nano"):
        tasks.append(partial(log_mel, size, reference))
        tasks += [partial(embeddings, size, each, reference) for each in ("fp32", *ANGLE)]
        for stage in range(len(configuration(size).depths)):
            tasks += [partial(kernel, size, stage), partial(fused_half, size, stage)]
    if rehearse:
        tasks.append(partial(embeddings, "tiny", "fp32", reference))
    holds = []
    # Nearly all of the time is the compiler's, which works beside itself.
    with ThreadPoolExecutor(COMPILERS) as pool:
        for figures in pool.map(lambda task: list(task()), tasks):
            holds += [check(row, value, unit, most=most) for row, value, unit, most in figures]
    return all(holds)


if __name__ == "__main__":
    sys.exit(0 if compare(arguments(__doc__).rehearse) else 1)
