"""Averages the weights of two encoders of one training, an earlier and a later one.

    python -m scripts.nano.average EARLIER LATER --later 0.6 -o OUT

A long training on rendered loops hears degradations ever better and sounds it was never shown ever
worse; between its weights and those it began with lie encoders that have most of both (Wortsman et
al. 2022, "Robust fine-tuning of zero-shot models"). `--short-only` leaves what only long clips use
as the earlier one has it, for a later one that was trained on short clips alone.
"""

import argparse
import json
from pathlib import Path

import numpy as np

from loopjax.encoders.encoder import HtsatEncoder
from loopjax.encoders.load import load_encoder
from loopjax.encoders.storage import save_encoder

LONG_ONLY = ("patch_embed.aff.", "patch_embed.mel_conv.")


def average(
    earlier: HtsatEncoder, later: HtsatEncoder, part: float, short_only: bool
) -> dict[str, np.ndarray]:
    """`1 - part` of the earlier's weights and `part` of the later's, by flat name."""
    theirs, mixed = later.weights(), {}
    for name, own in earlier.weights().items():
        weight = 0.0 if short_only and name.startswith(LONG_ONLY) else part
        both = (1.0 - weight) * own.astype(np.float64) + weight * theirs[name]
        mixed[name] = both.astype(np.float32)
    return mixed


def main() -> None:
    """Writes the encoder folder OUT."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("earlier", type=Path)
    parser.add_argument("later", type=Path)
    parser.add_argument("--later", dest="part", type=float, required=True, help="0 to 1")
    parser.add_argument("--short-only", action="store_true")
    parser.add_argument("-o", "--out", type=Path, required=True)
    args = parser.parse_args()
    earlier, later = (load_encoder(path, "fp32") for path in (args.earlier, args.later))
    weights = average(earlier, later, args.part, args.short_only)
    about = json.loads((args.later / "config.json").read_text("utf-8"))["about"]
    about["averaged"] = {"later": args.part, "short_only": args.short_only}
    save_encoder(
        args.out,
        earlier.config,
        earlier.mel_config,
        weights,
        encoder_id="loopjax-nano",
        about=about,
    )


if __name__ == "__main__":
    main()
