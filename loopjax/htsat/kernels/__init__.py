"""Hand-written accelerator kernels of the network."""

import jax


def kernels_available() -> bool:
    """Whether this jax can compile them: Pallas-Triton is deprecated since 0.11.2."""
    try:
        from jax.experimental.pallas import triton
    except ImportError:
        return False
    return triton is not None


def on_hopper() -> bool:
    """Whether programs are compiled for NVIDIA's Hopper GPUs, whose matrix unit the MLP needs."""
    if jax.default_backend() != "gpu":
        return False
    device = jax.config.jax_default_device or jax.devices()[0]  # pyright: ignore[reportAttributeAccessIssue]
    return getattr(device, "compute_capability", None) == "9.0"
