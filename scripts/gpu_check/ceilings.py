"""Section ceilings: what this device moves and multiplies at best, on random numbers.

Products of ones run 13 % faster than products of random numbers: they switch fewer transistors.
"""

import jax
import jax.numpy as jnp

from scripts.bench.measure import emit
from scripts.gpu_check.common import arguments, median_s


def main() -> None:
    """Prints bytes moved per second and operations per second of square products."""
    rehearse = arguments(__doc__).rehearse
    side = 1024 if rehearse else 8192
    words = jax.random.normal(jax.random.key(0), (side * side * (1 if rehearse else 4),))
    flip = jax.jit(jnp.negative)
    taken_s, details = median_s(lambda: flip(words), rehearse)
    moved = 2 * words.nbytes
    emit("gpu_check", "copy", ours=moved / taken_s / 1e12, unit="TB/s", **details)
    for name, dtype, precision in (
        ("bf16", jnp.bfloat16, "default"),
        ("tf32", jnp.float32, "tensorfloat32"),
    ):
        pair = jax.random.normal(jax.random.key(1), (2, side, side), dtype)
        product = jax.jit(lambda a, b, precision=precision: jnp.matmul(a, b, precision=precision))
        taken_s, details = median_s(lambda pair=pair, run=product: run(pair[0], pair[1]), rehearse)
        rate = 2 * side**3 / taken_s / 1e12
        emit("gpu_check", f"{name} product of {side}", ours=rate, unit="TFLOP/s", **details)


if __name__ == "__main__":
    main()
