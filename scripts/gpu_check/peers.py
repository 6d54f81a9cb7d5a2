"""Section transformers: the same tower by PyTorch, eager and compiled, in a process without JAX.

Takes our rates from the rows of section encoder, and says so where one is missing.
"""

import sys
from typing import Any

from scripts.bench.encoder import their_device_step, their_tower
from scripts.bench.measure import emit, peer
from scripts.gpu_check.common import arguments, earlier, median_s

# Their precision, ours, and the target of the ratio on an H100.
STEPS = (
    ("eager bf16", "bf16", ">= 1.3x"),
    ("eager tf32", "tf32", None),
    ("eager fp32", "fp32", None),
    ("torch.compile bf16", "bf16-fused", "> 1x"),  # last: it compiles for half a minute
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
        taken_s, details = median_s(their_device_step(model, batch), args.rehearse, wait)
        emit(
            "gpu_check",
            f"{row}, against transformers",
            ours=ours[row],
            unit="clips/s",
            peer=batch / taken_s,
            peer_name=f"transformers, {theirs}",
            target=target,
            **details,
        )
    return 1 if missing else 0


def wait(embeddings: Any) -> None:
    """Until the embeddings are there."""
    if embeddings.is_cuda:
        peer("torch").cuda.synchronize()


if __name__ == "__main__":
    sys.exit(main())
