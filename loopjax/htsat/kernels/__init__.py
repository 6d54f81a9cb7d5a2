"""Hand-written accelerator kernels of the network."""


def kernels_available() -> bool:
    """Whether this jax can compile them: Pallas-Triton is deprecated since 0.11.2."""
    try:
        from jax.experimental.pallas import triton
    except ImportError:
        return False
    return triton is not None
