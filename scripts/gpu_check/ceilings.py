"""Section ceilings: what this device moves and multiplies at best, on random numbers.

Products of ones run 13 % faster than products of random numbers: they switch fewer transistors.
"""

from functools import partial

import jax
import jax.numpy as jnp

from scripts.bench.measure import emit
from scripts.gpu_check.common import arguments, median_s

LOOPS = 10  # one behind the other in one program


def main() -> None:
    """Prints bytes moved per second and operations per second of square products."""
    rehearse = arguments(__doc__).rehearse
    side = 1024 if rehearse else 8192
    words = jax.random.normal(jax.random.key(0), (side * side * (1 if rehearse else 4),))
    flip = jax.jit(lambda x: jax.lax.fori_loop(0, LOOPS, lambda _, x: -x, x))
    taken_s, details = median_s(lambda: flip(words), rehearse)
    moved = 2 * words.nbytes * LOOPS
    emit("gpu_check", "copy", ours=moved / taken_s / 1e12, unit="TB/s", **details)
    for name, dtype, precision in (
        ("bf16", jnp.bfloat16, "default"),
        ("tf32", jnp.float32, "tensorfloat32"),
    ):
        factor = jax.random.normal(jax.random.key(1), (side, side), dtype) * side**-0.5
        x = jax.random.normal(jax.random.key(2), (side, side), dtype)

        @jax.jit
        def product(factor: jax.Array, x: jax.Array, precision=precision) -> jax.Array:
            times = partial(jnp.matmul, factor, precision=precision)
            return jax.lax.fori_loop(0, LOOPS, lambda _, x: times(x), x)

        taken_s, details = median_s(lambda pair=(factor, x), run=product: run(*pair), rehearse)
        rate = 2 * side**3 * LOOPS / taken_s / 1e12
        emit("gpu_check", f"{name} product of {side}", ours=rate, unit="TFLOP/s", **details)


if __name__ == "__main__":
    main()
