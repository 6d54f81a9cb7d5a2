"""Hand-written accelerator kernels of the network."""

from typing import Any

import jax


def kernels_available() -> bool:
    """Whether this jax can compile them: Pallas-Triton is deprecated since 0.11.2."""
    if jax.default_backend() == "tpu":
        return on_v5e()
    try:
        from jax.experimental.pallas import triton
    except ImportError:
        return False
    return triton is not None


def on_hopper() -> bool:
    """Whether programs are compiled for NVIDIA's Hopper GPUs, whose matrix unit the MLP needs."""
    return (
        jax.default_backend() == "gpu" and getattr(_device(), "compute_capability", None) == "9.0"
    )


def on_v5e() -> bool:
    """Whether programs are compiled for Google's TPU v5e, the one whose memory the block fits."""
    return jax.default_backend() == "tpu" and _device().device_kind == "TPU v5 lite"


def _device() -> Any:
    return jax.config.jax_default_device or jax.devices()[0]  # pyright: ignore[reportAttributeAccessIssue]
