"""Encoder clips per second by batch size, against transformers' CLAP audio tower.

    python scripts/bench/encoder.py --batches 1 4 8 --rounds 5
    python scripts/bench/encoder.py --precisions bf16 bf16-fused --batches 32 128  # on a GPU

Both sides run one architecture with the same random weights on the same log-mel and in the same
type; their embeddings must agree before anything is timed. Each side is quoted at its best batch
size, and `torch.compile`, with its weights frozen into the program, at one, because it compiles for
minutes. "Arithmetic" sets the encoder's floating-point operations per second beside those of one
large matrix product on the same device: the fraction that is useful work.
"""

import argparse
import os
from collections.abc import Callable
from typing import Any

import numpy as np
from measure import Times, arguments, emit, peer, rounded, take_turns

NANO = {  # the bundled encoder's shape, in transformers' words
    "patch_size": 8,
    "patch_stride": [8, 8],
    "patch_embeds_hidden_size": 48,
    "hidden_size": 192,
    "depths": [1, 2, 3],
    "num_attention_heads": [2, 4, 8],
}
SIZES: dict[str, dict[str, Any]] = {
    "nano": NANO,
    "tiny": {},
    "base": {"patch_embeds_hidden_size": 128, "hidden_size": 1024, "depths": [2, 2, 12, 2]},
}
DEFAULTS: dict[str, dict[str, Any]] = {
    "cpu": {
        "batches": [1, 4, 8],
        "nano_batches": [4, 16],
        "precisions": ["fp32"],
        "compile_batch": 8,
        "base_batch": 4,
    },
    "accelerator": {
        "batches": [32, 128, 512],
        "nano_batches": [512, 2048],
        "precisions": ["fp32", "bf16", "bf16-fused"],
        "compile_batch": 128,
        "base_batch": 128,
    },
}
# Of the embedding's length: in float32 only the order of sums differs.
TOLERANCE = {"fp32": 1e-4, "bf16": 0.05, "bf16-fused": 0.05}


def log_mel(batch: int, views: int) -> np.ndarray:
    """Noise at a spectrogram's level, float32 [batch, views, 1001, 64]."""
    noise = np.random.default_rng(0).normal(-40.0, 15.0, (batch, views, 1001, 64))
    return noise.astype(np.float32)


def their_tower(size: str) -> Any:
    """The tower and projection of transformers on the CPU, without fusion, randomly initialized."""
    peer("torch").manual_seed(0)
    transformers = peer("transformers")
    config = transformers.ClapAudioConfig(enable_fusion=False, **SIZES[size])
    return transformers.ClapAudioModelWithProjection(config).eval()


def same_weights(model: Any, precision: Any = "fp32") -> Any:
    """Our encoder with the weights of a transformers model."""
    from loopjax.convert.layouts import LazyTensor
    from loopjax.convert.mapping import map_checkpoint
    from loopjax.encoders.encoder import HtsatEncoder

    arrays = {name: value.numpy() for name, value in model.state_dict().items()}
    mapped = map_checkpoint({k: LazyTensor(v.shape, lambda v=v: v) for k, v in arrays.items()})
    return HtsatEncoder(
        mapped.config, mapped.front_end, mapped.weights, encoder_id="random", precision=precision
    )


def untrained(size: str) -> Any:
    """Our encoder by size, randomly initialized."""
    from loopjax.encoders.encoder import HtsatEncoder, random_weights
    from loopjax.htsat.frontend import LogMelConfig
    from loopjax.htsat.model import HtsatConfig

    config = {"nano": HtsatConfig.nano, "tiny": HtsatConfig.tiny}[size]()
    return HtsatEncoder(config, LogMelConfig(), random_weights(config), encoder_id=size)


def our_step(encoder: Any, batch: int) -> Callable[[], Any]:
    """Encodes one batch that lies on the device."""
    import jax

    mel = jax.device_put(log_mel(batch, encoder.config.views))
    return lambda: encoder.encode(mel, None)


def their_step(tower: Any, batch: int) -> Callable[[], Any]:
    """The same by transformers, in the tower's type and on its device; NumPy's embeddings."""
    run = their_device_step(tower, batch)
    return lambda: run().float().cpu().numpy()


def their_device_step(tower: Any, batch: int) -> Callable[[], Any]:
    """`their_step`, whose embeddings stay on the device."""
    torch = peer("torch")
    like = next(tower.parameters())
    mel = torch.from_numpy(log_mel(batch, 1)).to(like)
    longer = torch.zeros(batch, 1, dtype=torch.bool, device=like.device)

    def run() -> Any:
        with torch.no_grad():
            return tower(mel, is_longer=longer).pooler_output

    return run


def check_same(encoder: Any, tower: Any) -> None:
    """Ends the program when the two towers disagree."""
    ours, theirs = np.asarray(our_step(encoder, 2)()), their_step(tower, 2)()
    difference = np.abs(ours - theirs).max() / np.linalg.norm(theirs, axis=1).min()
    if difference > TOLERANCE[encoder.precision]:
        raise SystemExit(f"the towers disagree by {difference:.1e}; nothing was timed")


def matrix_product(precision: str) -> tuple[Callable[[], Any], float]:
    """One large product in the encoder's type, and its floating-point operations."""
    import jax
    import jax.numpy as jnp

    side = 2048 if jax.default_backend() == "cpu" else 8192
    matrix = jnp.ones((side, side), jnp.float32 if precision == "fp32" else jnp.bfloat16)
    product = jax.jit(lambda a: jnp.matmul(a, a, precision="highest"))
    return lambda: product(matrix), 2.0 * side**3


def program_costs(encoder: Any, batch: int) -> dict[str, float]:
    """Floating-point operations per clip and temporary memory per clip of our program."""
    import jax

    mel, longer = log_mel(batch, encoder.config.views), np.zeros(batch, bool)
    lowered = jax.jit(encoder.encode).lower(mel, longer)
    memory = lowered.compile().memory_analysis()
    return {
        "gflop_per_clip": rounded(lowered.cost_analysis()["flops"] / batch / 1e9),
        "temporary_mib_per_clip": rounded(memory.temp_size_in_bytes / batch / 2**20),
    }


def best(times: dict[str, Times], who: str) -> tuple[float, dict[str, Any]]:
    """Clips/s of one contender at its best batch size, and what is behind that figure."""
    mine = {int(k.split()[-1]): t for k, t in times.items() if k.rpartition(" ")[0] == who}
    rates = {batch: batch / taken.median_s for batch, taken in mine.items()}
    batch = max(rates, key=lambda b: rates[b])
    return rates[batch], {
        "batch": batch,
        "by_batch": {b: rounded(rate) for b, rate in rates.items()},
        "spread": rounded(mine[batch].spread),
        "compile_s": rounded(mine[batch].compile_s),
    }


def compare(
    row: str, times: dict[str, Times], who: str, other: str, name: str, target: str | None = None
) -> None:
    """Prints one contender against another."""
    (mine, details), (theirs, their_details) = best(times, who), best(times, other)
    sides = {"ours_details": details, "peer_details": their_details}
    emit(
        "encoder",
        row,
        ours=mine,
        unit="clips/s",
        peer=theirs,
        peer_name=name,
        target=target,
        **sides,
    )


def time_tiny(precision: str, args: argparse.Namespace) -> None:
    """Tiny against transformers in one type; in float32 also nano against tiny."""
    torch = peer("torch")
    model = their_tower("tiny")
    tiny = same_weights(model, precision)
    dtype = torch.float32 if precision == "fp32" else torch.bfloat16
    tower = model.audio_model.to("cuda" if torch.cuda.is_available() else "cpu", dtype)
    check_same(tiny, tower)
    steps: dict[str, Callable[[], Any]] = {}
    for batch in args.batches:
        steps[f"tiny {batch}"] = our_step(tiny, batch)
        steps[f"eager {batch}"] = their_step(tower, batch)
    if precision == "fp32":
        nano = untrained("nano")
        steps |= {f"nano {batch}": our_step(nano, batch) for batch in args.nano_batches}
    if args.compile_batch:
        peer("torch._inductor.config").freezing = True
        steps[f"torch.compile {args.compile_batch}"] = their_step(
            torch.compile(tower), args.compile_batch
        )
    steps["product"], product_flop = matrix_product(precision)
    times = take_turns(steps, args.rounds)
    name = "tiny" if precision == "fp32" else f"tiny, {precision}"
    eager = "transformers, eager"
    compare(name, times, "tiny", "eager", eager, ">= 1.3x")
    if args.compile_batch:
        against = "transformers, torch.compile"
        compare(f"{name}, compiled", times, "tiny", "torch.compile", against, ">= 1.2x")
    rate, details = best(times, "tiny")
    # Counted in float32: the kernel of bf16-fused is opaque to the compiler's count.
    costs = program_costs(same_weights(their_tower("tiny")), details["batch"])
    emit(
        "encoder",
        f"{name}, arithmetic",
        ours=rate * costs["gflop_per_clip"],
        unit="GFLOP/s",
        peer=product_flop / times["product"].median_s / 1e9,
        peer_name="one large matrix product",
        **costs,
    )
    if precision == "fp32":
        compare("nano", times, "nano", "tiny", "loopjax, tiny", ">= 10x")


def time_base(args: argparse.Namespace) -> None:
    """Base against transformers in float32."""
    model, batch = their_tower("base"), args.base_batch
    tower = model.audio_model.to("cuda" if peer("torch").cuda.is_available() else "cpu")
    both = {
        f"base {batch}": our_step(same_weights(model), batch),
        f"eager {batch}": their_step(tower, batch),
    }
    times = take_turns(both, max(1, args.rounds // 2))
    compare("base", times, "base", "eager", "transformers, eager")


def main() -> None:
    """Times all contenders in turns and prints one line per comparison."""
    parser = arguments(__doc__)
    parser.add_argument("--batches", type=int, nargs="+")
    parser.add_argument("--nano-batches", type=int, nargs="+")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--precisions", nargs="+", choices=TOLERANCE)
    parser.add_argument("--compile-batch", type=int, help="0 leaves torch.compile out")
    parser.add_argument("--base-batch", type=int, help="0 leaves base out")
    import jax

    parser.set_defaults(**DEFAULTS["cpu" if jax.default_backend() == "cpu" else "accelerator"])
    args = parser.parse_args()
    peer("torch").set_num_threads(len(os.sched_getaffinity(0)))
    for precision in args.precisions:
        time_tiny(precision, args)
    if args.base_batch:
        time_base(args)


if __name__ == "__main__":
    main()
