"""Training speed of one Deep SVDD head against PyTorch, interleaved in one process.

    python scripts/bench/heads.py --rows 2000 --width 1024 --batch 32 --rounds 5

Every round runs every contender once over one epoch of reconstruction (512-256-128, BatchNorm, ELU,
dropout 0.2, AdamW), so that a busy machine hurts all alike; one JSON line per measurement, then one
line with the best of each, the ratios and loopjax's compile time (not part of the ratios). PyTorch
runs without a DataLoader and without reading the loss. The last lines compare several seeds in one
call with as many calls.
"""

import argparse
import json
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import torch
from torch import nn

from loopjax import training, training_loop
from loopjax.detectors.autoencoder import NetworkConfig, initialise
from loopjax.detectors.objectives import Reconstruction

TORCH_VARIANTS = {
    "torch AdamW": {},
    "torch AdamW foreach": {"foreach": True},
    "torch AdamW fused": {"fused": True},
}


def loopjax_epoch(X: np.ndarray, batch: int, heads: int) -> Callable[[], None]:
    """One epoch of `heads` seeds in one compiled call."""
    network = NetworkConfig(X.shape[1], (512, 256, 128))
    recipe = training.Recipe(
        Reconstruction(network),
        batch,
        max_epochs=10**6,
        patience=10**6,
        serial_heads=jax.default_backend() == "cpu",
    )
    starts = []
    for seed in range(heads):
        params, stats = initialise(network, np.random.default_rng(seed))
        starts.append(training.start(params, stats, {}, seed))
    state = training_loop.place(training_loop.stack(starts), None)
    rows = np.arange(len(X))
    split = training_loop.pad_split([rows] * heads, [rows[:0]] * heads, batch)
    hyper = training.Hyper(*(np.full(heads, v, np.float32) for v in (1e-5, 5e-6, 1000, 1e-5)))
    data = training_loop.place(training_loop.pad_rows(X), None)

    def run() -> None:
        nonlocal state
        state, _ = training.advance(state, data, split, hyper, recipe=recipe, epochs=1)
        jax.block_until_ready(state)

    return run


def torch_epoch(
    X: np.ndarray, batch: int, device: str, options: dict[str, Any]
) -> Callable[[], None]:
    """One epoch of the same training in eager PyTorch, rows already on the device."""

    def block(n_in: int, n_out: int) -> nn.Sequential:
        return nn.Sequential(
            nn.Linear(n_in, n_out, bias=False), nn.BatchNorm1d(n_out), nn.ELU(), nn.Dropout(0.2)
        )

    width = X.shape[1]
    model = nn.Sequential(
        block(width, 512),
        block(512, 256),
        nn.Linear(256, 128, bias=False),
        block(128, 256),
        block(256, 512),
        nn.Linear(512, width, bias=False),
    ).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, weight_decay=1e-5, **options)
    rows = torch.from_numpy(X).to(device)

    def run() -> None:
        order = torch.randperm(len(rows), device=device)
        for start in range(0, len(rows), batch):
            x = rows[order[start : start + batch]]
            optimizer.zero_grad()
            loss = nn.functional.mse_loss(model(x), x)
            loss.backward()
            optimizer.step()
        if device == "cuda":
            torch.cuda.synchronize()

    return run


def seconds(run: Callable[[], None]) -> float:
    """Wall-clock seconds of one call."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def main() -> None:
    """Run all contenders and print JSON lines."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--heads", type=int, default=10)
    parser.add_argument(
        "--threads", type=int, default=2, help="of PyTorch; pin the process for jax"
    )
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    device = "cuda" if jax.default_backend() == "gpu" and torch.cuda.is_available() else "cpu"
    X = np.random.default_rng(0).normal(size=(args.rows, args.width)).astype(np.float32)
    steps = -(-args.rows // args.batch)
    contenders = {"loopjax": loopjax_epoch(X, args.batch, 1)}
    for name, options in TORCH_VARIANTS.items():
        contenders[name] = torch_epoch(X, args.batch, device, options)
    first = {name: seconds(run) for name, run in contenders.items()}
    best = dict.fromkeys(contenders, float("inf"))
    for number in range(args.rounds):
        for name, run in contenders.items():
            took = seconds(run)
            best[name] = min(best[name], took)
            print(json.dumps({"contender": name, "round": number, "steps_per_s": steps / took}))
    compile_s = first["loopjax"] - best["loopjax"]
    rates = {name: steps / took for name, took in best.items()}
    best_torch = max(rate for name, rate in rates.items() if name != "loopjax")
    summary = {
        "best_steps_per_s": rates,
        "over_plain_torch": rates["loopjax"] / rates["torch AdamW"],
        "over_best_torch": rates["loopjax"] / best_torch,
        "compile_s": compile_s,
        "device": jax.devices()[0].device_kind,
        "versions": {"jax": jax.__version__, "torch": torch.__version__},
    }
    print(json.dumps(summary))
    many = loopjax_epoch(X, args.batch, args.heads)
    one = contenders["loopjax"]
    seconds(many)
    together = min(seconds(many) for _ in range(args.rounds))
    serial = min(sum(seconds(one) for _ in range(args.heads)) for _ in range(args.rounds))
    alone = min(seconds(one) for _ in range(args.rounds))
    print(
        json.dumps(
            {
                "heads": args.heads,
                "one_call_s": together,
                "serial_calls_s": serial,
                "one_call_over_serial": together / serial,
                "one_call_over_one_head": together / alone,
            }
        )
    )


if __name__ == "__main__":
    main()
