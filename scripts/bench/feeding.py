"""How well the host hides behind the device: embedding files against the encoder alone.

    python scripts/bench/feeding.py AUDIO_FOLDER --files 500 --encoders tiny loopjax-nano

The files of the folder (the bundled loops by default) are taken as they are; when there are fewer
than asked for, the rest are excerpts of them (cut at another place, so that every file has its own
content), written as FLAC.
"Alone" runs the same batches, decoded beforehand, through front end and encoder. Both are timed
after one warming run, in turns; medians of the rounds are compared.
"""

import argparse
import itertools
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from measure import REPOSITORY, arguments, emit

from loopjax.audio.batching import Batch, make_buckets
from loopjax.audio.decode import DecodeOptions
from loopjax.audio.feeding import Feeder
from loopjax.audio.process import DecoderProcess
from loopjax.audio.sources.files import scan
from loopjax.audio.sources.walk import AUDIO_EXTENSIONS
from loopjax.config import EmbedConfig
from loopjax.embedding.chain import embed_corpus
from loopjax.htsat.frontend import DEVICE_RATES_HZ

MIN_EXCERPT_S = 0.2
DEMO = REPOSITORY / "loopjax" / "data" / "demo"


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
    from loopjax.encoders.encoder import HtsatEncoder, random_weights
    from loopjax.htsat.frontend import LogMelConfig
    from loopjax.htsat.model import HtsatConfig

    if name != "tiny":
        from loopjax.encoders.load import load_encoder

        return load_encoder(name)
    config = HtsatConfig.tiny(fusion=True)
    return HtsatEncoder(config, LogMelConfig(), random_weights(config), encoder_id="tiny-untrained")


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


def alone(encoder: Any, batches: list[Batch], batch_size: int) -> None:
    """Front end and encoder on prepared batches, the encoder always full."""
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


def main() -> None:
    """Measures in turns; the first round compiles and does not count."""
    parser = arguments(__doc__)
    parser.add_argument("folder", type=Path, nargs="?", default=DEMO, help="of audio files")
    parser.add_argument("--files", type=int, default=500)
    parser.add_argument("--encoders", nargs="+", default=["tiny"], help="tiny, or names")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    for name in args.encoders:
        compare(load(name), args)


def compare(encoder: Any, args: argparse.Namespace) -> None:
    """Times one encoder and prints its line."""
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        (root / "extra").mkdir()
        listing = root / "files.txt"
        listing.write_text(
            "\n".join(map(str, gather(args.folder.resolve(), args.files, root / "extra")))
        )
        batches = prepare_batches(listing, args.batch_size)
        options = EmbedConfig(batch_size=args.batch_size)
        stores = (root / f"store_{number}" for number in itertools.count())
        waits = []

        def end_to_end() -> None:
            summary = embed_corpus([listing], encoder, next(stores), options, progress=False)
            waits.append(summary.wait_fraction)

        apart, whole = [], []
        for _ in range(args.rounds + 1):
            apart.append(timed(lambda: alone(encoder, batches, args.batch_size)))
            whole.append(timed(end_to_end))
    (alone_s, alone_cpu_s), (whole_s, whole_cpu_s) = (np.median(t[1:], 0) for t in (apart, whole))
    emit(
        "feeding",
        f"{args.files} files, {encoder.id}, end to end",
        ours=whole_s,
        unit="s",
        peer=alone_s,
        peer_name="encoder alone on prepared batches",
        higher_is_better=False,
        target="at most 1.15 times the encoder alone",
        cpu_s={"ours": round(whole_cpu_s, 1), "peer": round(alone_cpu_s, 1)},
        ratio_by_round=[round(w[0] / a[0], 2) for w, a in zip(whole, apart, strict=True)][1:],
        wait_fraction=[round(share, 3) for share in waits[1:]],
    )


def timed(run: Callable[[], None]) -> tuple[float, float]:
    """Seconds by the clock, and of all cores, ended child processes included."""
    before, started = os.times(), time.perf_counter()
    run()
    elapsed_s, after = time.perf_counter() - started, os.times()
    return elapsed_s, sum(after[:4]) - sum(before[:4])


if __name__ == "__main__":
    main()
