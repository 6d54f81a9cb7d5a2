"""Section encoder: clips per second by size, precision and batch, and of the front end."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from loopjax.htsat.kernels import on_hopper
from scripts.bench.measure import emit, rounded
from scripts.gpu_check.common import (
    TINY_GFLOP,
    arguments,
    configuration,
    encoder,
    loops,
    median_s,
    mlp_half,
)

# The most telling first: time may run out. Targets are for one H100.
STEPS: tuple[tuple[str, str, int, str | None], ...] = (
    ("tiny", "bf16-fused", 128, ">= 14,000"),
    ("tiny", "bf16", 128, ">= 7,000"),
    ("tiny", "bf16-fast", 128, ">= 9,000"),
    ("nano", "bf16-fused", 1024, None),
    ("base", "bf16-fused", 128, None),
    ("tiny", "bf16-fused", 512, None),
    ("tiny", "tf32", 128, None),
    ("tiny", "fp32", 128, None),
    ("tiny", "bf16", 512, None),
)
REHEARSAL = (("nano", "bf16", 4, None), ("tiny", "fp32", 1, None))
FRONT_ENDS = (("tiny", 4, 44_100, 128), ("nano", 20, 48_000, 64))
MLPS = ((96, 64), (192, 32), (128, 64))  # width of the tokens, tokens along each side


def main() -> None:
    """Prints a row per step."""
    rehearse = arguments(__doc__).rehearse
    for size, precision, batch, target in REHEARSAL if rehearse else STEPS[:3]:
        time_encoder(size, precision, batch, target, rehearse)
    for size, seconds, rate_hz, batch in FRONT_ENDS:
        time_front_end(size, seconds, rate_hz, 2 if rehearse else batch, rehearse)
    for width, side in MLPS if on_hopper() else ():
        time_mlp(width, side, 128)
    for size, precision, batch, target in () if rehearse else STEPS[3:]:
        time_encoder(size, precision, batch, target, rehearse)


def time_encoder(size: str, precision: str, batch: int, target: str | None, rehearse: bool) -> None:
    """One row: noise at a spectrogram's level, on the device already."""
    views = configuration(size).views
    noise = np.random.default_rng(0).normal(-40.0, 15.0, (batch, views, 1001, 64))
    mel = jax.device_put(noise.astype(np.float32))
    model = encoder(size, precision)
    taken_s, details = median_s(lambda: model.encode(mel, None), rehearse)
    more: dict[str, Any] = dict(details)
    if size == "tiny":
        more["tflop_per_s"] = rounded(batch / taken_s * TINY_GFLOP / 1000)
    name = f"{size} {precision}, batch {batch}"
    emit("gpu_check", name, ours=batch / taken_s, unit="clips/s", target=target, **more)


def time_front_end(size: str, seconds: int, rate_hz: int, batch: int, rehearse: bool) -> None:
    """One row: int16 samples on the device to mel views."""
    samples = jax.device_put(loops(batch, seconds, rate_hz))
    lengths = np.full(batch, samples.shape[1], np.int32)
    model = encoder(size, "bf16")
    taken_s, details = median_s(lambda: model.front_end(samples, lengths, rate_hz)[0], rehearse)
    name = f"front end, {seconds} s at {rate_hz} Hz, batch {batch}"
    target = "<= 12 % of tiny's time: 8 times its clips/s"
    emit("gpu_check", name, ours=batch / taken_s, unit="clips/s", target=target, **details)


def time_mlp(width: int, side: int, batch: int) -> None:
    """One row: the second half of a block by its kernel, beside the plain path."""
    x = jax.random.normal(jax.random.key(0), (batch, side**2, width), jnp.bfloat16)
    steps = {fused: mlp_half(width, jnp.bfloat16, fused) for fused in (True, False)}
    taken = {fused: median_s(lambda run=run: run(x), False) for fused, run in steps.items()}
    emit(
        "gpu_check",
        f"MLP kernel at width {width}, {side} x {side} tokens, batch {batch}",
        ours=taken[True][0] * 1e6,
        unit="us",
        peer=taken[False][0] * 1e6,
        peer_name="plain, GELU inside the product",
        higher_is_better=False,
        **taken[True][1],
    )


if __name__ == "__main__":
    main()
