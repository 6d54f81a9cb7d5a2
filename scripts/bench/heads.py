"""Training speed of one Deep SVDD head against PyTorch, and of several seeds trained together.

    python scripts/bench/heads.py --rows 2000 --width 1024 --batch 32 --rounds 12

Every round runs every contender once over one epoch (512-256-128, BatchNorm, ELU, dropout 0.2,
AdamW) of a stage: reconstruction by the autoencoder, then the one-class objective, which trains the
encoder alone. PyTorch's rows lie on the device already, without a DataLoader and without reading
the loss. Seeds trained together count the steps of all of them. Then come batches of 4,096 rows,
and a whole `fit` beside PyOD's.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
from measure import Times, arguments, emit, peer, rounded, take_turns

WIDTHS = (512, 256, 128)
EPOCHS = 10
TORCH_VARIANTS: dict[str, dict[str, Any]] = {
    "torch AdamW": {},
    "torch AdamW foreach": {"foreach": True},
    "torch AdamW fused": {"fused": True},
}


def setting(X: np.ndarray, batch: int, heads: int, stage: str) -> tuple[Any, ...]:
    """Recipe, stacked state, rows, split and rates of `heads` seeds, ready to train."""
    from loopjax.detectors.svdd.network import NetworkConfig, encoder_part, initialize
    from loopjax.detectors.svdd.objectives import OneClass, Reconstruction
    from loopjax.training import loop as training_loop
    from loopjax.training import steps as training
    from loopjax.training.recipe import Hyperparams, Recipe

    network = NetworkConfig(X.shape[1], WIDTHS)
    one_class = stage == "one-class"
    recipe = Recipe(OneClass(network) if one_class else Reconstruction(network), batch)
    starts = []
    for seed in range(heads):
        arrays = initialize(network, np.random.default_rng(seed))
        aux: dict[str, Any] = {}
        if one_class:
            arrays = [encoder_part(part) for part in arrays]
            aux = {"center": np.full(WIDTHS[-1], 0.1, np.float32)}
        starts.append(training.start(*arrays, aux, seed))
    rows = np.arange(len(X))
    split = training_loop.pad_split([rows] * heads, [rows[:0]] * heads, batch)
    rates = (np.full(heads, v, np.float32) for v in (1e-5, 5e-6, 1000, 1e-5))
    endless = np.full(heads, 10**6, np.int32)
    hyperparams = Hyperparams(*rates, endless, endless)
    data = training_loop.place(training_loop.pad_rows(X), None)
    return recipe, training_loop.stack(starts), data, split, hyperparams


def loopjax_epoch(X: np.ndarray, batch: int, stage: str, heads: int = 1) -> Callable[[], Any]:
    """One epoch of one head, or of several seeds together, in one compiled call."""
    from loopjax.training import loop as training_loop
    from loopjax.training import steps as training

    recipe, start, data, split, hyperparams = setting(X, batch, heads, stage)
    state = training_loop.place(start, None)
    options = {"epochs": 1, "loop_steps": training_loop.loop_steps(recipe, split.n_train)}

    def run() -> Any:
        nonlocal state
        state, _ = training.advance(state, data, split, hyperparams, recipe=recipe, **options)
        return state.epoch

    return run


def torch_epoch(
    X: np.ndarray, batch: int, stage: str, device: str, options: dict[str, Any]
) -> Callable[[], None]:
    """One epoch of the same training in eager PyTorch."""
    torch = peer("torch")
    nn = torch.nn

    def block(n_in: int, n_out: int) -> Any:
        return nn.Sequential(
            nn.Linear(n_in, n_out, bias=False), nn.BatchNorm1d(n_out), nn.ELU(), nn.Dropout(0.2)
        )

    def chain(widths: tuple[int, ...]) -> list[Any]:
        blocks = [block(*pair) for pair in pairwise(widths[:-1])]
        return [*blocks, nn.Linear(*widths[-2:], bias=False)]

    down = (X.shape[1], *WIDTHS)
    layers = chain(down) if stage == "one-class" else chain(down) + chain(down[::-1])
    model = nn.Sequential(*layers).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, weight_decay=1e-5, **options)
    rows = torch.from_numpy(X).to(device)
    center = torch.full((WIDTHS[-1],), 0.1, device=device)

    def run() -> None:
        order = torch.randperm(len(rows), device=device)
        for start in range(0, len(rows), batch):
            x = rows[order[start : start + batch]]
            optimizer.zero_grad()
            target = center if stage == "one-class" else x
            loss = ((model(x) - target) ** 2).mean()
            loss.backward()
            optimizer.step()
        if device == "cuda":
            torch.cuda.synchronize()

    return run


def our_fit(X: np.ndarray, batch: int) -> Callable[[], Any]:
    """A fit of the one-class stage alone."""
    from loopjax.detectors.svdd.estimator import DeepSVDD

    options: dict[str, Any] = {"hidden_dims": WIDTHS, "batch_size": batch, "pretrain_epochs": 0}
    return lambda: DeepSVDD(**options, epochs=EPOCHS).fit(X).decision_scores_


def pyod_fit(X: np.ndarray, batch: int) -> Callable[[], Any]:
    """The same by PyOD, whose objective has no pretraining by default."""
    detector = peer("pyod.models.deep_svdd").DeepSVDD
    options = {"hidden_neurons": list(WIDTHS), "batch_size": batch, "verbose": 0}
    return lambda: detector(X.shape[1], **options, epochs=EPOCHS).fit(X).decision_scores_


def compare(
    row: str,
    ours: Times,
    theirs: Times,
    name: str,
    counts: tuple[int, int],
    unit: str,
    target: str | None = None,
) -> None:
    """Prints our rate, the first of `counts` per run, against a contender's, the second per run."""
    emit(
        "heads",
        row,
        ours=counts[0] / ours.median_s,
        unit=unit,
        peer=counts[1] / theirs.median_s,
        peer_name=name,
        target=target,
        spread={"ours": rounded(ours.spread), "peer": rounded(theirs.spread)},
        compile_s=rounded(ours.compile_s),
    )


def main() -> None:
    """Times everything in turns and prints one line per comparison."""
    parser = arguments(__doc__)
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--large-rows", type=int, default=50_000)
    parser.add_argument("--rounds", type=int, default=12)
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
    for stage in ("reconstruction", "one-class"):
        contenders = {
            "ours": loopjax_epoch(X, args.batch, stage),
            "together": loopjax_epoch(X, args.batch, stage, args.heads),
        }
        for name, options in TORCH_VARIANTS.items():
            contenders[name] = torch_epoch(X, args.batch, stage, device, options)
        times = take_turns(contenders, args.rounds)
        ours, together = times["ours"], times["together"]
        for name in TORCH_VARIANTS:
            row = f"{stage}, {args.rows} x {args.width}, batch {args.batch}, against {name}"
            target = {"torch AdamW": ">= 3x", "torch AdamW fused": ">= 1.3x"}.get(name)
            compare(row, ours, times[name], name, (steps, steps), "steps/s", target)
        row, counts = f"{stage}, {args.heads} seeds together", (args.heads * steps, steps)
        for name in ("torch AdamW", "torch AdamW fused"):
            compare(f"{row}, against {name}", together, times[name], name, counts, "steps/s")
        target = ">= 5x" if on_gpu else ">= 1x"
        one = "loopjax, one seed at a time"
        compare(f"{row}, against one at a time", together, ours, one, counts, "steps/s", target)
    large = np.random.default_rng(0).normal(size=(args.large_rows, 768)).astype(np.float32)
    few, fused = max(1, args.rounds // 5), "torch AdamW fused"
    options = TORCH_VARIANTS[fused]
    contenders = {
        "ours": loopjax_epoch(large, 4096, "reconstruction"),
        fused: torch_epoch(large, 4096, "reconstruction", device, options),
    }
    times = take_turns(contenders, few)
    row = f"reconstruction, {args.large_rows} x 768, batch 4096, against {fused}"
    counts = (args.large_rows, args.large_rows)
    compare(row, times["ours"], times[fused], fused, counts, "rows/s")
    times = take_turns({"ours": our_fit(X, args.batch), "PyOD": pyod_fit(X, args.batch)}, few)
    row = f"fit, {EPOCHS} epochs of the one-class objective"
    compare(row, times["ours"], times["PyOD"], "PyOD", (EPOCHS, EPOCHS), "epochs/s")


if __name__ == "__main__":
    main()
