"""Makes the file that other devices are compared with: a CPU's log-mel and embeddings.

    JAX_PLATFORMS=cpu python -m scripts.gpu_check.reference

`reference.npz` holds, by `SIZE/...`, the digest of the seeded weights, every 40th frame of the
log-mel in decibels and the float32 embeddings of a few loops. Make it anew when the network, its
front end or `common.py` changes what it computes; the rehearsal fails until then.
"""

import jax
import numpy as np

from scripts.gpu_check.common import REFERENCE, encoder, loops

# Seconds and rate of the loops by name: resampled and repeated; cropped or fused.
KINDS = {"4 s at 44100 Hz": (4.0, 44_100), "20 s at 48000 Hz": (20.0, 48_000)}
LOOPS = 4
SIZES = ("nano", "tiny", "base")
FRAMES = slice(None, None, 40)


def views(model, kind: str) -> tuple[jax.Array, jax.Array]:
    """Log-mel views of the loops of a kind, and which are long."""
    seconds, rate_hz = KINDS[kind]
    samples = loops(LOOPS, seconds, rate_hz)
    return model.front_end(samples, np.full(LOOPS, samples.shape[1], np.int32), rate_hz)


def main() -> None:
    """Writes the file."""
    if jax.default_backend() != "cpu":
        raise SystemExit("the reference is a CPU's: set JAX_PLATFORMS=cpu")
    arrays = {}
    for size in SIZES:
        model = encoder(size, "fp32")
        arrays[f"{size}/weights"] = np.array(model.weights_sha256)
        for kind in KINDS:
            mel, longer = views(model, kind)
            arrays[f"{size}/{kind}/mel_db"] = np.asarray(mel)[:, :, FRAMES]
            arrays[f"{size}/{kind}/embedding"] = np.asarray(model.encode(mel, longer))
    np.savez_compressed(REFERENCE, **arrays)


if __name__ == "__main__":
    main()
