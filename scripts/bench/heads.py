"""Training speed of one Deep SVDD head against PyTorch, and of several heads in one call.

    python scripts/bench/heads.py --rows 2000 --width 1024 --batch 32 --rounds 5

Every round runs every contender once over one epoch of reconstruction (512-256-128, BatchNorm, ELU,
dropout 0.2, AdamW). PyTorch's rows lie on the device already, without a DataLoader and without
reading the loss. The last line sets several seeds in one call beside as many calls.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from measure import arguments, emit, peer, rounded, take_turns

TORCH_VARIANTS: dict[str, dict[str, Any]] = {
    "torch AdamW": {},
    "torch AdamW foreach": {"foreach": True},
    "torch AdamW fused": {"fused": True},
}


def loopjax_epoch(X: np.ndarray, batch: int, heads: int) -> Callable[[], Any]:
    """One epoch of `heads` seeds in one compiled call."""
    import jax

    from loopjax import training, training_loop
    from loopjax.detectors.autoencoder import NetworkConfig, initialise
    from loopjax.detectors.objectives import Reconstruction

    network = NetworkConfig(X.shape[1], (512, 256, 128))
    recipe = training.Recipe(
        Reconstruction(network),
        batch,
        serial_heads=jax.default_backend() == "cpu",
    )
    starts = []
    for seed in range(heads):
        params, stats = initialise(network, np.random.default_rng(seed))
        starts.append(training.start(params, stats, {}, seed))
    state = training_loop.place(training_loop.stack(starts), None)
    rows = np.arange(len(X))
    split = training_loop.pad_split([rows] * heads, [rows[:0]] * heads, batch)
    rates = (np.full(heads, v, np.float32) for v in (1e-5, 5e-6, 1000, 1e-5))
    hyper = training.Hyper(*rates, *(np.full(heads, 10**6, np.int32) for _ in range(2)))
    data = training_loop.place(training_loop.pad_rows(X), None)

    def run() -> Any:
        nonlocal state
        state, _ = training.advance(state, data, split, hyper, recipe=recipe, epochs=1)
        return state.epoch

    return run


def torch_epoch(
    X: np.ndarray, batch: int, device: str, options: dict[str, Any]
) -> Callable[[], None]:
    """One epoch of the same training in eager PyTorch."""
    torch = peer("torch")
    nn = torch.nn

    def block(n_in: int, n_out: int) -> Any:
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


def main() -> None:
    """Times everything in turns and prints one line per comparison."""
    parser = arguments(__doc__)
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--heads", type=int, default=10)
    parser.add_argument("--threads", type=int, default=2, help="of PyTorch")
    args = parser.parse_args()
    torch = peer("torch")
    torch.set_num_threads(args.threads)
    import jax

    on_gpu = jax.default_backend() == "gpu"
    device = "cuda" if on_gpu and torch.cuda.is_available() else "cpu"
    X = np.random.default_rng(0).normal(size=(args.rows, args.width)).astype(np.float32)
    steps = -(-args.rows // args.batch)
    contenders = {"loopjax": loopjax_epoch(X, args.batch, 1)}
    for name, options in TORCH_VARIANTS.items():
        contenders[name] = torch_epoch(X, args.batch, device, options)
    times = take_turns(contenders, args.rounds)
    ours = times["loopjax"]
    for name in TORCH_VARIANTS:
        emit(
            "heads",
            f"one head, {args.rows} x {args.width}, batch {args.batch}, against {name}",
            ours=steps / ours.median_s,
            unit="steps/s",
            peer=steps / times[name].median_s,
            peer_name=name,
            target={"torch AdamW": ">= 3x", "torch AdamW fused": ">= 1.3x"}.get(name),
            spread={"ours": rounded(ours.spread), "peer": rounded(times[name].spread)},
            compile_s=rounded(ours.compile_s),
        )
    one = contenders["loopjax"]
    seeds = {
        "one call": loopjax_epoch(X, args.batch, args.heads),
        "serial": lambda: [one() for _ in range(args.heads)][-1],  # waits for the last
        "alone": one,
    }
    times = take_turns(seeds, args.rounds)
    together, serial = times["one call"], times["serial"]
    emit(
        "heads",
        f"{args.heads} seeds in one call, one epoch",
        ours=together.median_s,
        unit="s",
        peer=(times["alone"] if on_gpu else serial).median_s,
        peer_name="one seed" if on_gpu else f"{args.heads} calls",
        higher_is_better=False,
        target=">= 0.5x" if on_gpu else ">= 1x",
        spread={"ours": rounded(together.spread), "peer": rounded(serial.spread)},
        compile_s=rounded(together.compile_s),
    )


if __name__ == "__main__":
    main()
