"""Section parity: the same numbers as on a CPU, from decibels to embeddings; fails where not.

Log-mel and embeddings of random weights in every precision against `reference.npz`, blocks with
the attention kernel against the plain path at every stage, and the same bits on a second run.
"""

import sys
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from loopjax.htsat.swin import SwinBlock
from scripts.gpu_check.common import REFERENCE, arguments, check, configuration, encoder
from scripts.gpu_check.reference import FRAMES, KINDS, SIZES, views

MEL_DB_MAX, MEL_DB_MEAN = 0.05, 5e-4  # bands near -100 dB carry a float32 STFT's rounding
FP32_OVER_NORM = 2e-5
# 1 - cosine to float32, because a cosine rounded to three digits says nothing.
ANGLE = {"tf32": 1e-4, "bf16": 1e-3, "bf16-fused": 1e-3}
BLOCK_ANGLE = 5e-4


def log_mel_and_embeddings(
    size: str, precisions: tuple[str, ...], reference: dict[str, np.ndarray]
) -> Iterator[bool]:
    """Whether each figure of one size holds."""
    exact = encoder(size, "fp32")
    if exact.weights_sha256 != str(reference[f"{size}/weights"]):
        raise SystemExit("these are not the weights of reference.npz: make it anew")
    prepared = {kind: views(exact, kind) for kind in KINDS}
    for kind, (mel, _) in prepared.items():
        apart = np.abs(np.asarray(mel)[:, :, FRAMES] - reference[f"{size}/{kind}/mel_db"])
        row = f"{size}, log-mel of {kind}"
        yield check(f"{row}, largest difference", apart.max(), "dB", most=MEL_DB_MAX)
        yield check(f"{row}, mean difference", apart.mean(), "dB", most=MEL_DB_MEAN)
    for precision in ("fp32", *precisions):
        model = exact if precision == "fp32" else encoder(size, precision)
        for kind, mel in prepared.items():
            ours, theirs = np.asarray(model.encode(*mel)), reference[f"{size}/{kind}/embedding"]
            row = f"{size} {precision}, embeddings of {kind}"
            if precision == "fp32":
                apart = np.abs(ours - theirs).max() / np.linalg.norm(theirs, axis=1).min()
                yield check(f"{row}, over norm", apart, "", most=FP32_OVER_NORM)
            else:
                yield check(row, angle(ours, theirs), "1 - cosine", most=ANGLE[precision])
        again = [np.asarray(model.encode(*prepared[next(iter(KINDS))])) for _ in range(2)]
        yield check(f"{size} {precision}, a second run", np.ptp(again, axis=0).max(), "", most=0)


def kernel_at_every_stage(size: str) -> Iterator[bool]:
    """Whether blocks with the kernel agree with the plain path in float32."""
    config = configuration(size)
    for stage, heads in zip(range(len(config.depths)), config.heads, strict=False):
        side, width = config.grid // 2**stage, config.width * 2**stage
        x = 3.0 * np.random.default_rng(stage).normal(size=(2, side**2, width))

        def run(dtype: Any, fused: bool, here=(width, heads, side), x=x) -> np.ndarray:
            block = SwinBlock(*here, True, 0.0, 8, 4, dtype, rngs=nnx.Rngs(0))
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
            yield check(row, angle(run(dtype, fused), plain), "1 - cosine", most=BLOCK_ANGLE)


def angle(ours: np.ndarray, theirs: np.ndarray) -> float:
    """1 - cosine, the largest over rows."""
    a, b = (x.reshape(len(x), -1).astype(np.float64) for x in (ours, theirs))
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return float((1.0 - (a * b).sum(axis=1) / norms).max())


def compare(rehearse: bool) -> bool:
    """Prints every row; whether all hold."""
    with np.load(REFERENCE) as arrays:
        reference = dict(arrays)
    rows = []
    for size in SIZES[:1] if rehearse else ("tiny", "base", "nano"):
        rows += log_mel_and_embeddings(size, tuple(ANGLE), reference)
        rows += kernel_at_every_stage(size)
    if rehearse:
        rows += log_mel_and_embeddings("tiny", (), reference)
    return all(rows)


if __name__ == "__main__":
    sys.exit(0 if compare(arguments(__doc__).rehearse) else 1)
