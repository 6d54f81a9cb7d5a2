"""Encoder clips per second by batch size, against transformers' CLAP audio tower.

    python scripts/bench/encoder.py --batches 1 4 8 --rounds 5

Both sides run one architecture with the same random weights on the same log-mel in float32; their
embeddings must agree before anything is timed. Each side is quoted at its best batch size, and
`torch.compile`, with its weights frozen into the program, at one, because it compiles for minutes.
"""

import os
from collections.abc import Callable
from typing import Any

import numpy as np
from measure import Times, arguments, emit, peer, rounded, take_turns

SIZES: dict[str, dict[str, Any]] = {
    "tiny": {},
    "base": {"patch_embeds_hidden_size": 128, "hidden_size": 1024, "depths": [2, 2, 12, 2]},
}
TOLERANCE = 1e-4  # of the embedding's length: only the order of sums differs


def log_mel(batch: int, views: int) -> np.ndarray:
    """Noise at a spectrogram's level, float32 [batch, views, 1001, 64]."""
    noise = np.random.default_rng(0).normal(-40.0, 15.0, (batch, views, 1001, 64))
    return noise.astype(np.float32)


def their_tower(size: str) -> Any:
    """The tower and projection of transformers, without fusion, randomly initialised."""
    peer("torch").manual_seed(0)
    transformers = peer("transformers")
    config = transformers.ClapAudioConfig(enable_fusion=False, **SIZES[size])
    return transformers.ClapAudioModelWithProjection(config).eval()


def same_weights(model: Any) -> Any:
    """Our encoder with the weights of a transformers model."""
    from loopjax.htsat.encoder import Encoder
    from loopjax.htsat.mapping import map_checkpoint
    from loopjax.htsat.params import LazyTensor

    arrays = {name: value.numpy() for name, value in model.state_dict().items()}
    mapped = map_checkpoint({k: LazyTensor(v.shape, lambda v=v: v) for k, v in arrays.items()})
    return Encoder(mapped.config, mapped.front_end, mapped.weights, encoder_id="random")


def untrained(size: str) -> Any:
    """Our encoder by size, randomly initialised."""
    from loopjax.htsat.encoder import Encoder, random_weights
    from loopjax.htsat.frontend import LogMelConfig
    from loopjax.htsat.model import HtsatConfig

    config = {"nano": HtsatConfig.nano, "tiny": HtsatConfig.tiny}[size]()
    return Encoder(config, LogMelConfig(), random_weights(config), encoder_id=size)


def our_step(encoder: Any, batch: int) -> Callable[[], Any]:
    """Encodes one prepared batch."""
    mel, longer = log_mel(batch, encoder.config.views), np.zeros(batch, bool)
    return lambda: encoder.encode(mel, longer)


def their_step(tower: Any, batch: int) -> Callable[[], Any]:
    """The same by transformers."""
    torch = peer("torch")
    mel, longer = torch.from_numpy(log_mel(batch, 1)), torch.zeros(batch, 1, dtype=torch.bool)

    def run() -> Any:
        with torch.no_grad():
            return tower(mel, is_longer=longer).pooler_output.numpy()

    return run


def check_same(encoder: Any, tower: Any) -> None:
    """Ends the program when the two towers disagree."""
    ours, theirs = np.asarray(our_step(encoder, 2)()), their_step(tower, 2)()
    difference = np.abs(ours - theirs).max() / np.linalg.norm(theirs, axis=1).min()
    if difference > TOLERANCE:
        raise SystemExit(f"the towers disagree by {difference:.1e}; nothing was timed")


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


def main() -> None:
    """Times all contenders in turns and prints one line per comparison."""
    parser = arguments(__doc__)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4, 8])
    parser.add_argument("--nano-batches", type=int, nargs="+", default=[4, 16])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--compile-batch", type=int, default=8, help="0 leaves torch.compile out")
    parser.add_argument("--base-batch", type=int, default=4, help="0 leaves base out")
    args = parser.parse_args()
    peer("torch").set_num_threads(len(os.sched_getaffinity(0)))
    model = their_tower("tiny")
    tiny, nano, tower = same_weights(model), untrained("nano"), model.audio_model
    check_same(tiny, tower)
    steps: dict[str, Callable[[], Any]] = {}
    for batch in args.batches:
        steps[f"tiny {batch}"] = our_step(tiny, batch)
        steps[f"eager {batch}"] = their_step(tower, batch)
    steps |= {f"nano {batch}": our_step(nano, batch) for batch in args.nano_batches}
    if args.compile_batch:
        peer("torch._inductor.config", "torch").freezing = True
        compiled = peer("torch").compile(tower)
        steps[f"torch.compile {args.compile_batch}"] = their_step(compiled, args.compile_batch)
    times = take_turns(steps, args.rounds)
    eager = "transformers, eager"
    compare("tiny", times, "tiny", "eager", eager, ">= 1.3x")
    if args.compile_batch:
        name = "transformers, torch.compile"
        compare("tiny, compiled", times, "tiny", "torch.compile", name, ">= 1.2x")
    compare("nano", times, "nano", "tiny", "loopjax, tiny", ">= 10x")
    if args.base_batch:
        base = their_tower("base")
        ours, theirs = same_weights(base), base.audio_model
        b = args.base_batch
        both = {f"base {b}": our_step(ours, b), f"eager {b}": their_step(theirs, b)}
        compare("base", take_turns(both, max(1, args.rounds // 2)), "base", "eager", eager)


if __name__ == "__main__":
    main()
