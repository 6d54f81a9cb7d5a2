"""Section heads: training steps per second of Deep SVDD against PyTorch, ten seeds, and kNN."""

from typing import Any

import numpy as np

from scripts.bench.heads import TORCH_VARIANTS, loopjax_epoch, torch_epoch
from scripts.bench.measure import emit, rounded, seconds, take_turns
from scripts.gpu_check.common import arguments

SEEDS = 10
FUSED = "torch AdamW fused"


def main() -> None:
    """Prints a row per batch size, per batch size with ten seeds, and for kNN."""
    rehearse = arguments(__doc__).rehearse
    rounds = 2 if rehearse else 5
    device = "cpu" if rehearse else "cuda"
    for n_rows, batch in ((128, 32),) if rehearse else ((2000, 32), (50_000, 4096)):
        X = noise(n_rows, 64 if rehearse else 1024)
        stage = "one-class"
        contenders: dict[str, Any] = {
            "ours": loopjax_epoch(X, batch, stage),
            "together": loopjax_epoch(X, batch, stage, SEEDS),
            FUSED: torch_epoch(X, batch, stage, device, TORCH_VARIANTS[FUSED]),
        }
        times = take_turns(contenders, rounds)
        steps = -(-n_rows // batch)
        row = f"{stage} steps, {n_rows} x {X.shape[1]}, batch {batch}"
        ours = steps / times["ours"].median_s
        emit(
            "gpu_check",
            row,
            ours=ours,
            unit="steps/s",
            peer=steps / times[FUSED].median_s,
            peer_name=FUSED,
            target=">= 10x" if batch == 32 else None,
            compile_s=rounded(times["ours"].compile_s),
        )
        emit(
            "gpu_check",
            f"{row}, {SEEDS} seeds together",
            ours=SEEDS * steps / times["together"].median_s,
            unit="steps/s",
            peer=ours,
            peer_name="loopjax, one seed",
            target=f">= {SEEDS // 2}x: at most twice the time of one",
        )
    neighbors(1000 if rehearse else 200_000)


def neighbors(n_rows: int) -> None:
    """One row: kNN fitted on all rows, its training scores included."""
    from loopjax.detectors.knn import KNN

    X = noise(n_rows, 768)
    taken = seconds(lambda: KNN(max_reference=None).fit(X).decision_scores_)
    emit("gpu_check", f"kNN fit, {n_rows} x 768", ours=n_rows / taken, unit="rows/s")


def noise(n_rows: int, width: int) -> np.ndarray:
    """Rows without structure."""
    return np.random.default_rng(0).normal(size=(n_rows, width)).astype(np.float32)


if __name__ == "__main__":
    main()
