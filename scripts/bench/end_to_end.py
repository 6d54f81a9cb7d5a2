"""Audio files on disk to embeddings, against a plain loop over soundfile, soxr and transformers.

    python scripts/bench/end_to_end.py --files 96 --rounds 3

Stereo loops of 0.5 to 12 seconds at 44.1 kHz, as WAV, FLAC and MP3. loopjax runs `embed` with the
bundled encoder, the other side a randomly initialized tower of the same architecture, as one writes
it from the documentation: `soundfile.read`, mean over the channels, `soxr.resample`,
`ClapFeatureExtractor` and the PyTorch tower, in batches. `wait_fraction` is the part of the run in
which our device had nothing to do.
"""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from encoder import NANO
from measure import arguments, emit, peer, rounded, take_turns

RATE_HZ = 44_100
FORMATS = {"wav": "PCM_16", "flac": "PCM_16", "mp3": None}


def write_loops(folder: Path, n_files: int, extension: str) -> list[Path]:
    """Decaying partials and noise; four files in five last 0.5 to 8 s, the fifth up to 12 s."""
    import soundfile

    rng = np.random.default_rng(0)
    folder.mkdir()
    files = []
    for i in range(n_files):
        length_s = rng.uniform(8.0, 12.0) if i % 5 == 4 else rng.uniform(0.5, 8.0)
        t = np.arange(round(length_s * RATE_HZ)) / RATE_HZ
        root_hz = rng.uniform(50.0, 400.0)
        wave = sum(np.sin(2 * np.pi * root_hz * k * t) / k for k in (1, 2, 3))
        wave = 0.3 * wave * np.exp(-6.0 * (t % 0.5)) + 0.02 * rng.standard_normal(t.size)
        files.append(folder / f"{i:04d}.{extension}")
        stereo = np.stack([wave, np.roll(wave, 30)], axis=1)
        soundfile.write(files[-1], stereo, RATE_HZ, subtype=FORMATS[extension])
    return files


def our_run(folder: Path, encoder: Any, waits: list[float]) -> Callable[[], None]:
    """Embeds the folder into a new store each time and notes how long the device waited."""
    from loopjax.config import EmbedConfig
    from loopjax.embedding.chain import embed_corpus

    def run() -> None:
        store = folder.with_name(f"{folder.name}_store_{len(waits)}")
        summary = embed_corpus([folder], encoder, store, EmbedConfig(), progress=False)
        waits.append(summary.wait_fraction)

    return run


def plain_loop(files: list[Path], model: Any, batch: int) -> Callable[[], np.ndarray]:
    """The same job with the usual libraries, float32 [files, 192]."""
    soundfile, soxr, torch = peer("soundfile"), peer("soxr"), peer("torch")
    extractor = peer("transformers").ClapFeatureExtractor(frequency_min=50, truncation="fusion")

    def load(path: Path) -> np.ndarray:
        samples, rate_hz = soundfile.read(path, dtype="float32", always_2d=True)
        return soxr.resample(samples.mean(axis=1), rate_hz, 48_000)

    def run() -> np.ndarray:
        rows = []
        for start in range(0, len(files), batch):
            waves = [load(path) for path in files[start : start + batch]]
            features = extractor(waves, sampling_rate=48_000, return_tensors="pt")
            with torch.no_grad():
                rows.append(model.audio_model(**features).pooler_output.numpy())
        return np.concatenate(rows)

    return run


def main() -> None:
    """Times both sides in turns, format by format, and prints one line each."""
    parser = arguments(__doc__)
    parser.add_argument("--files", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=8, help="of the plain loop")
    parser.add_argument("--formats", nargs="+", default=list(FORMATS), choices=FORMATS)
    args = parser.parse_args()
    torch, transformers = peer("torch"), peer("transformers")
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    torch.manual_seed(0)
    model = transformers.ClapAudioModelWithProjection(
        transformers.ClapAudioConfig(**NANO, num_hidden_layers=3, enable_fusion=True)
    ).eval()
    from loopjax.encoders.load import load_encoder

    encoder = load_encoder("loopjax-nano")
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        for extension in args.formats:
            files = write_loops(root / extension, args.files, extension)
            waits: list[float] = []
            ours = our_run(root / extension, encoder, waits)
            theirs = plain_loop(files, model, args.batch)
            times = take_turns({"ours": ours, "theirs": theirs}, args.rounds)
            emit(
                "end_to_end",
                f"{extension} to embeddings, nano",
                ours=args.files / times["ours"].median_s,
                unit="files/s",
                peer=args.files / times["theirs"].median_s,
                peer_name="soundfile + soxr + transformers",
                wait_fraction=rounded(float(np.median(waits[1:]))),
                spread={name: rounded(taken.spread) for name, taken in times.items()},
            )


if __name__ == "__main__":
    main()
