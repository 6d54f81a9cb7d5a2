"""Section transformers: the same tower by PyTorch, eager and compiled, in a process without JAX.

Takes our rates from the rows of section encoder, and says so where one is missing.
"""

import statistics
import sys
from collections.abc import Callable
from typing import Any

from scripts.bench.encoder import their_step, their_tower
from scripts.bench.measure import emit, peer, seconds
from scripts.gpu_check.common import LEAST_CALLS, arguments, earlier

# Their precision, ours, and the target of the ratio on an H100.
STEPS = (
    ("eager bf16", "bf16", ">= 1.3x"),
    ("torch.compile bf16", "bf16-fused", "> 1x"),
    ("eager fp32", "fp32", None),
    ("eager tf32", "tf32", None),
)


def main() -> int:
    """Prints a row per step; exit code 1 where a row of ours is missing."""
    args = arguments(__doc__)
    torch = peer("torch")
    ours, missing = earlier(args.rows), 0
    device, batch = ("cpu", 1) if args.rehearse else ("cuda", 128)
    tower = their_tower("tiny").audio_model.to(device)
    for theirs, precision, target in STEPS[2:3] if args.rehearse else STEPS:
        row = f"tiny {precision}, batch {batch}"
        if row not in ours:
            print(f"{row}: section encoder gave no such row to compare with", file=sys.stderr)
            missing += 1
            continue
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = "tf32" in theirs
        tower = tower.to(torch.bfloat16 if "bf16" in theirs else torch.float32)
        model = torch.compile(tower) if "compile" in theirs else tower
        rate = clips_per_s(their_step(model, batch), batch, args.rehearse)
        emit(
            "gpu_check",
            f"{row}, against transformers",
            ours=ours[row],
            unit="clips/s",
            peer=rate,
            peer_name=f"transformers, {theirs}",
            target=target,
        )
    return 1 if missing else 0


def clips_per_s(step: Callable[[], Any], batch: int, rehearse: bool) -> float:
    """By the median of at least 20 calls, after two that compile."""
    for _ in range(2):
        step()
    return batch / statistics.median(seconds(step) for _ in range(2 if rehearse else LEAST_CALLS))


if __name__ == "__main__":
    sys.exit(main())
