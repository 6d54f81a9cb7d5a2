"""How well the host hides behind the device: embedding files against the encoder alone.

    python scripts/bench/feeding.py AUDIO_FOLDER [--files 500] [--encoder tiny|NAME] [--rounds 2]

The files of the folder are taken as they are; when there are fewer than asked for, the rest are
excerpts of them (cut at another place, so that every file has its own content), written as FLAC.
"Alone" runs the same batches, decoded beforehand, through front end and encoder. Both are timed
after one warming run, in turns; the ratio of the fastest rounds is what the README quotes.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from loopjax.audio.batching import Batch, Feeder, make_buckets
from loopjax.audio.decode import DecodeOptions
from loopjax.audio.manifest import AUDIO_EXTENSIONS, scan
from loopjax.audio.pool import DecoderProcess
from loopjax.config import EmbedConfig
from loopjax.embedding import embed_corpus
from loopjax.htsat.frontend import DEVICE_RATES_HZ

MIN_EXCERPT_S = 0.2


def gather(folder: Path, n_files: int, extra: Path) -> list[Path]:
    """Real files, then excerpts of them until there are enough."""
    originals = [
        path
        for path in sorted(folder.rglob("*"))
        if path.suffix.lower().encode() in AUDIO_EXTENSIONS
    ]
    files = originals[:n_files]
    turn = 0
    while len(files) < n_files:
        turn += 1
        for path in originals[: n_files - len(files)]:
            samples, rate = soundfile.read(path, always_2d=True)
            start = min(
                round(0.07 * turn * rate), max(0, len(samples) - round(MIN_EXCERPT_S * rate))
            )
            name = extra / f"{path.stem}_{turn}.flac"
            soundfile.write(name, samples[start:] if start else samples[:-turn], rate)
            files.append(name)
    return files


def load(name: str) -> Any:
    """An encoder by name; `tiny` is the published architecture with untrained weights."""
    from loopjax.htsat.encoder import Encoder, random_weights
    from loopjax.htsat.frontend import LogMelConfig
    from loopjax.htsat.model import HtsatConfig

    if name != "tiny":
        from loopjax.htsat.zoo import load_encoder

        return load_encoder(name)
    config = HtsatConfig.tiny(fusion=True)
    return Encoder(config, LogMelConfig(), random_weights(config), encoder_id="tiny-untrained")


def prepare_batches(listing: Path, batch_size: int) -> list[Batch]:
    """Decodes everything into memory."""
    options = DecodeOptions(device_rates_hz=DEVICE_RATES_HZ)
    config = EmbedConfig()
    buckets = make_buckets(config.buckets_s, config.max_duration_s, batch_size)
    feeder = Feeder(
        scan([listing]),
        [DecoderProcess(options)],
        buckets,
        lambda failure: None,
        queue_batches=10**6,
    )
    batches = list(feeder)
    feeder.close()
    return batches


def alone(encoder: Any, batches: list[Batch], batch_size: int) -> float:
    """Seconds for front end and encoder on prepared batches, the encoder always full."""
    started = time.perf_counter()
    mels, longs, results = [], [], []
    for batch in batches:
        mel, longer = encoder.front_end(batch.samples, batch.length_samples, batch.sample_rate_hz)
        if len(batch.rows) == batch_size:
            results.append(encoder.encode(mel, longer))
        else:
            mels.append(np.asarray(mel)[: len(batch.rows)])
            longs.append(np.asarray(longer)[: len(batch.rows)])
    if mels:
        mel, longer = np.concatenate(mels), np.concatenate(longs)
        pad = -len(mel) % batch_size
        mel = np.pad(mel, [(0, pad), (0, 0), (0, 0), (0, 0)])
        longer = np.pad(longer, (0, pad))
        for i in range(0, len(mel), batch_size):
            results.append(encoder.encode(mel[i : i + batch_size], longer[i : i + batch_size]))
    for result in results:
        np.asarray(result)
    return time.perf_counter() - started


def main() -> None:
    """Measures in turns and prints one JSON line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--files", type=int, default=500)
    parser.add_argument("--encoder", default="tiny")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=2)
    args = parser.parse_args()
    encoder = load(args.encoder)
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        (root / "extra").mkdir()
        listing = root / "files.txt"
        listing.write_text(
            "\n".join(map(str, gather(args.folder.resolve(), args.files, root / "extra")))
        )
        batches = prepare_batches(listing, args.batch_size)
        options = EmbedConfig(batch_size=args.batch_size)
        ratios: dict[str, list[float]] = {"alone_s": [], "end_to_end_s": [], "wait_share": []}
        for number in range(args.rounds + 1):
            alone_s = alone(encoder, batches, args.batch_size)
            started = time.perf_counter()
            store = root / f"store_{number}"
            summary = embed_corpus([listing], encoder, store, options, progress=False)
            end_to_end_s = time.perf_counter() - started
            print(
                f"round {number}: alone {alone_s:.1f} s, end to end {end_to_end_s:.1f} s",
                flush=True,
            )
            if number:  # the first round compiles
                ratios["alone_s"].append(alone_s)
                ratios["end_to_end_s"].append(end_to_end_s)
                ratios["wait_share"].append(summary.wait_share)
        ratio = min(ratios["end_to_end_s"]) / min(ratios["alone_s"])
        print(json.dumps({"files": args.files, "encoder": encoder.id, "ratio": ratio, **ratios}))


if __name__ == "__main__":
    main()
