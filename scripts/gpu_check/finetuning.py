"""Section finetuning: training steps through the encoder, and their part of the device's peak.

Two views of each loop, NT-Xent, all gradients, AdamW, the running average, as
`scripts/bench/finetuning.py` times it on a CPU. Operations are those of the encoder alone, forward
and twice backward: what `remat` computes again is not counted.
"""

from scripts.bench.encoder import log_mel
from scripts.bench.finetuning import our_steps
from scripts.bench.measure import emit, rounded
from scripts.gpu_check.common import TINY_GFLOP, arguments, encoder, median_s

# The most telling first: time may run out.
STEPS: tuple[tuple[str, str, int, bool, str | None], ...] = (
    ("tiny", "bf16", 128, False, "30 % of the peak"),
    ("nano", "bf16", 256, False, None),
    ("tiny", "bf16", 256, True, None),
    ("tiny", "tf32", 64, False, None),
)
REHEARSAL = (("nano", "bf16", 2, False, None),)
H100_PEAK_TFLOP_PER_S = 989.0  # bfloat16, dense


def main() -> None:
    """Prints a row per step."""
    rehearse = arguments(__doc__).rehearse
    for size, precision, rows, remat, target in REHEARSAL if rehearse else STEPS:
        step = our_steps(encoder(size, precision), log_mel(rows, 1), augmented=True, remat=remat)
        taken_s, details = median_s(step, rehearse)
        more = dict(details)
        if size == "tiny":
            tflop_per_s = rows / taken_s * 2 * 3 * TINY_GFLOP / 1000
            more["tflop_per_s"] = rounded(tflop_per_s)
            more["part_of_peak"] = rounded(tflop_per_s / H100_PEAK_TFLOP_PER_S)
        again = ", blocks computed again" if remat else ""
        name = f"training step, {size} {precision}, {rows} loops, two views each{again}"
        emit("gpu_check", name, ours=rows / taken_s, unit="loops/s", target=target, **more)


if __name__ == "__main__":
    main()
