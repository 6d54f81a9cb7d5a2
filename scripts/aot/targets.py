"""Devices to compile for, without their drivers: one or eight H100, one chip of a v5e slice."""

import contextlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

# Before jax is imported. Autotuning needs the device; without it kernels are chosen by rule.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["TPU_SKIP_MDS_QUERY"] = "1"
# The TPU compiler writes how many instructions it made of each Pallas kernel.
os.environ["LIBTPU_INIT_ARGS"] = " ".join(
    (
        f"--xla_jf_dump_to={tempfile.gettempdir()}/loopjax-aot-{os.getpid()}",
        "--xla_jf_dump_llo_text=true",
        "--xla_jf_dump_llo_pass_label_regex=.*final_bundles.*",
    )
)
os.environ["XLA_FLAGS"] = " ".join(
    (
        os.environ.get("XLA_FLAGS", ""),
        "--xla_gpu_autotune_level=0",
        "--xla_gpu_enable_command_buffer=",
        "--xla_gpu_enable_triton_gemm=false",
    )
)

import jax
from jax.experimental import topologies

V5E_CLOCK_HZ = 1.5e9
_SCHEDULES = Path(tempfile.gettempdir()) / f"loopjax-aot-{os.getpid()}"
PLATFORMS = {"h100": "cuda", "h100x8": "cuda", "v5e": "tpu"}
# What XLA would ask the device: `hlo-opt --xla_gpu_target_config_filename` takes the same text.
H100 = """
gpu_device_info {
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: 233472
  threads_per_core_limit: 2048
  core_count: 132
  fpus_per_core: 128
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000
  l2_cache_size: 52428800
  clock_rate_ghz: 1.98
  device_memory_size: 84929347584
  shared_memory_per_block_optin: 232448
  cuda_compute_capability { major: 9 }
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}
runtime_version: { major: 13 minor: 0 patch: 0 }
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 10 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""


def devices(target: str) -> list[Any]:
    """Descriptions of the devices of a target, one of PLATFORMS.

    Raises:
        ValueError, RuntimeError: jax[cuda13] or jax[tpu] is not installed.
    """
    if target == "v5e":
        return list(topologies.get_topology_desc("v5e:2x2", platform="tpu").devices)[:1]
    count = 8 if target == "h100x8" else 1
    topology = f"1x1x{count}"
    described = topologies.get_topology_desc(target, "cuda", target_config=H100, topology=topology)
    return list(described.devices)


@contextlib.contextmanager
def as_if_on(target: str, device: Any) -> Iterator[None]:
    """Traces as on a machine with this device: programs choose by the backend's name."""
    real = jax.default_backend
    jax.default_backend = lambda: {"cuda": "gpu", "tpu": "tpu"}[PLATFORMS[target]]
    try:
        with jax.default_device(device):
            yield
    finally:
        jax.default_backend = real


def kernel_cycles(kernels: Iterable[tuple[str, str, int]]) -> int:
    """Cycles of Pallas kernels of the last compilation for v5e, as `Module.tpu_kernels` lists them.

    One for each instruction word of each program, none of which has a loop inside; waits for memory
    come on top. What the compiler wrote is deleted.
    """
    total, words = 0, {}
    for name, text, programs in kernels:
        schedule = next(_SCHEDULES.glob(f"*-{name}-*-schedule-analysis_final_bundles.txt"), None)
        if schedule:  # else as an equal one before: they are compiled once
            found = re.search(r"total scheduled bundles:\s+(\d+)", schedule.read_text())
            assert found is not None, schedule
            words[text] = int(found[1])
        total += programs * words[text]
    shutil.rmtree(_SCHEDULES, ignore_errors=True)
    return total
