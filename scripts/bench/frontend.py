"""Log-mel and resampling, milliseconds of one core per clip, against what users pick instead.

    python scripts/bench/frontend.py --clips 8 --rounds 7

The process keeps to one core and counts its own processor time. Ours takes a batch of clips at
once; the others are called as their users call them: transformers' `ClapFeatureExtractor` with a
list, `torch.stft` with a batch, soxr clip by clip.
"""

import os
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from measure import arguments, emit, peer, rounded, take_turns

CLIP_HZ, LOOP_HZ = 48_000, 44_100
LOOP_S = 4


def waves(clips: int, samples: int) -> np.ndarray:
    """Decaying noise, float32 [clips, samples] in [-1, 1]."""
    decay = np.exp(-6.0 * (np.arange(samples) % 24_000) / 24_000)
    noise = np.random.default_rng(0).normal(0.0, 0.2, (clips, samples))
    return np.clip(noise * decay, -1.0, 1.0).astype(np.float32)


def our_views(samples: np.ndarray, rate_hz: int) -> Callable[[], Any]:
    """Our front end with the four fusion views, compiled."""
    from loopjax.encoders.encoder import HtsatEncoder, random_weights
    from loopjax.htsat.frontend import LogMelConfig
    from loopjax.htsat.model import HtsatConfig

    config = HtsatConfig.nano(width=16, depths=(1,), heads=(1,))  # only its front end is used
    encoder = HtsatEncoder(config, LogMelConfig(), random_weights(config), encoder_id="front end")
    lengths = np.full(len(samples), samples.shape[1], np.int32)
    return lambda: encoder.front_end(samples, lengths, rate_hz)[0]


def our_resampler(samples: np.ndarray) -> Callable[[], Any]:
    """The device resampler alone."""
    import jax

    from loopjax.htsat.frontend import resample

    program = jax.jit(lambda x: resample(x, LOOP_HZ, CLIP_HZ))
    return lambda: program(samples)


def extractor_views(samples: np.ndarray) -> Callable[[], Any]:
    """The feature extractor of transformers, as the CLAP processor calls it."""
    transformers = peer("transformers")
    extractor = transformers.ClapFeatureExtractor(frequency_min=50, truncation="fusion")
    clips = list(samples)
    return lambda: extractor(clips, sampling_rate=CLIP_HZ, return_tensors="np")["input_features"]


def torch_log_mel(samples: np.ndarray) -> Callable[[], Any]:
    """A batch through torch.stft and one matrix product: one view, no filling, no int16 step."""
    from loopjax.htsat.frontend import LogMelConfig, mel_filterbank

    torch = peer("torch")
    bank, window = torch.from_numpy(mel_filterbank(LogMelConfig()).copy()), torch.hann_window(1024)
    wave = torch.from_numpy(samples)

    def run() -> Any:
        spectrum = torch.stft(wave, 1024, 480, window=window, return_complex=True)
        power = spectrum.real.square() + spectrum.imag.square()
        mel = power.transpose(1, 2) @ bank
        return 10.0 * torch.log10(mel.clamp(min=1e-10))

    return run


def soxr_resampler(samples: np.ndarray) -> Callable[[], Any]:
    """Clip by clip at the default quality of librosa."""
    soxr = peer("soxr")
    return lambda: [soxr.resample(clip, LOOP_HZ, CLIP_HZ, quality="HQ") for clip in samples]


def main() -> None:
    """Times everything in turns and prints one line per comparison."""
    parser = arguments(__doc__)
    parser.add_argument("--clips", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    peer("torch").set_num_threads(1)
    full = waves(args.clips, 10 * CLIP_HZ)
    loops = waves(args.clips, LOOP_S * LOOP_HZ)
    resampled = soxr_resampler(loops)
    views_of_resampled = extractor_views(np.stack(resampled()))
    steps = {
        "views": our_views(full, CLIP_HZ),
        "extractor": extractor_views(full),
        "torch": torch_log_mel(full),
        "loop": our_views((loops * 32767).astype(np.int16), LOOP_HZ),
        "soxr and extractor": lambda: (resampled(), views_of_resampled()),
        "resampler": our_resampler(loops),
        "soxr": resampled,
    }
    times = take_turns(steps, args.rounds, clock=time.process_time)

    def line(row: str, ours: str, other: str, name: str, target: str | None = None) -> None:
        mine, theirs = times[ours], times[other]
        emit(
            "frontend",
            row,
            ours=1000 * mine.median_s / args.clips,
            unit="ms/clip",
            peer=1000 * theirs.median_s / args.clips,
            peer_name=name,
            higher_is_better=False,
            target=target,
            spread={"ours": rounded(mine.spread), "peer": rounded(theirs.spread)},
            compile_s=rounded(mine.compile_s),
        )

    hf = "ClapFeatureExtractor"
    line("log-mel views of 10 s", "views", "extractor", f"transformers' {hf}", ">= 2x")
    line("log-mel views of 10 s, against one view", "views", "torch", "torch.stft")
    line("4-s loop at 44.1 kHz to views", "loop", "soxr and extractor", f"soxr HQ + {hf}", ">= 2x")
    line("resampling 4 s from 44.1 kHz", "resampler", "soxr", "soxr HQ")


if __name__ == "__main__":
    main()
