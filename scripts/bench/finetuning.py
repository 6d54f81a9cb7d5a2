"""Training steps per second through the encoder, against the same step in PyTorch.

    python scripts/bench/finetuning.py --sizes nano tiny --rows 4 --rounds 5

Both sides run one architecture with the same random weights on the same log-mel: two views of each
row, NT-Xent, all gradients, clipping by the global norm, AdamW. Ours also makes the views (gain,
tilt, noise floor, rotation, stripes) and keeps the running average; PyTorch's gets them ready made.
One core each and CPU seconds, so that other processes disturb neither.
For tiny the first losses must agree, where ours makes no views, before anything is timed; patches
of 8 are not read from a checkpoint, so for nano both sides begin from weights of their own.
"""

import os
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from encoder import log_mel, same_weights, their_tower, untrained
from measure import arguments, emit, peer, take_turns

TEMPERATURE = 0.2


def their_step(tower: Any, views: np.ndarray) -> Any:
    """One step of PyTorch on [2 B, 1, T, bins]; returns the loss."""
    torch = peer("torch")
    mel, n_rows = torch.from_numpy(views), len(views) // 2
    longer = torch.zeros(len(views), 1, dtype=torch.bool)
    itself = torch.eye(len(views), dtype=torch.bool)
    twin = torch.arange(len(views)).roll(n_rows)
    weights = list(tower.audio_model.parameters())
    optimizer = torch.optim.AdamW(weights, lr=1e-4, weight_decay=0.05)

    def run() -> float:
        optimizer.zero_grad()
        z = tower.audio_model(mel, is_longer=longer).pooler_output
        z = torch.nn.functional.normalize(z, dim=1)
        logits = (z @ z.T / TEMPERATURE).masked_fill(itself, -torch.inf)
        loss = torch.nn.functional.cross_entropy(logits, twin)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        return loss.item()

    return run


def our_steps(
    encoder: Any, mel: np.ndarray, *, augmented: bool, remat: bool = False
) -> Callable[[], jax.Array]:
    """One step of ours on [B, 1, T, bins], in the encoder's precision; returns the loss."""
    from loopjax import parallel
    from loopjax.config.finetuning import (
        AugmentConfig,
        ObjectiveConfig,
        OptimizerConfig,
        TrainableConfig,
    )
    from loopjax.finetuning.network import build_network, split_weights
    from loopjax.finetuning.objectives import Rows, make_objective
    from loopjax.finetuning.steps import Batch, make_steps, place_batch

    n_rows, mesh = len(mel), parallel.global_mesh()
    trainable = TrainableConfig("all")
    network = build_network(encoder.config, trainable, encoder.precision, remat=remat)
    trained, frozen = split_weights(network, encoder, trainable, seed=0)
    still = AugmentConfig(
        gain_db=0.0, tilt_db=0.0, floor_db=-100.0, rotate=False, time_stripe=0, band_stripe=0
    )
    objective = ObjectiveConfig(temperature=TEMPERATURE)
    steps = make_steps(
        network,
        make_objective(objective, encoder.embedding_dim, 0),
        frozen,
        mesh,
        optimizer=OptimizerConfig(steps=10**6, warmup_steps=0, learning_rate=1e-4),
        augmentation=AugmentConfig() if augmented else still,
        anchor=0.0,
        start=trained,
        seed=0,
    )
    place = np.arange(n_rows, dtype=np.int32)
    rows = Rows(
        mask=np.ones((1, n_rows), bool),
        content=place[None].astype(np.uint32),
        label=np.zeros((1, n_rows), np.int32),
        target=np.zeros((1, n_rows, 0), np.float32),
    )
    period = np.full((1, n_rows), 12800, np.int32)
    batch = Batch(mel[None], np.zeros((1, n_rows), bool), period, place[None], rows)
    placed = place_batch(batch, mesh)
    state = steps.start({"encoder": trained, "head": {}})

    def run() -> jax.Array:
        nonlocal state
        state, metrics = steps.train(state, placed)
        return metrics[0]

    return run


def main() -> None:
    """Emits one line per size."""
    parser = arguments(__doc__)
    parser.add_argument("--sizes", nargs="+", choices=("nano", "tiny"), default=["nano", "tiny"])
    parser.add_argument("--rows", type=int, default=4, help="loops of a step, two views each")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # before either starts its threads
    peer("torch").set_num_threads(1)
    for size in options.sizes:
        tower = their_tower(size)
        encoder = same_weights(tower) if size == "tiny" else untrained(size)
        mel = log_mel(options.rows, 1)
        theirs = their_step(tower, np.concatenate([mel, mel]))
        if size == "tiny":
            first, expected = float(our_steps(encoder, mel, augmented=False)()), theirs()
            if abs(first - expected) > 1e-4 * abs(expected):
                raise SystemExit(f"the losses differ, {first} and {expected}; nothing is timed")
        ours = our_steps(encoder, mel, augmented=True)
        contenders = {"ours": lambda run=ours: float(run()), "theirs": theirs}
        times = take_turns(contenders, options.rounds, clock=time.process_time)
        emit(
            "finetuning",
            f"training step, {size}, {options.rows} loops, two views each",
            ours=options.rows / times["ours"].median_s,
            peer=options.rows / times["theirs"].median_s,
            unit="loops/s",
            peer_name="transformers",
            target=">= 1.2x",
        )


if __name__ == "__main__":
    main()
