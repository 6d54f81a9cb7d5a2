"""Waveforms to log-mel spectrograms, on the device.

Three published front ends differ only in `LogMelConfig`: the HTK mel of the fused CLAP towers, the
Slaney mel inside the unfused towers, and the 32 kHz Slaney mel of the AudioSet HTS-AT. Numbers and
their sources are in the docstrings; every matrix product asks for full precision, because one TF32
or bfloat16 pass moves quiet mel bands by tens of decibels.
"""

import math
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from loopjax.htsat import tpu_frontend

IMAGE_FRAMES = 1024  # mel frames that fill the network's image
CUBIC_A = -0.75  # torch's bicubic kernel
LOG_FLOOR = 1e-10  # -100 dB, both torchlibrosa's and CLAP's amin
DEVICE_RATES_HZ = (8000, 16000, 22050, 24000, 32000, 44100, 48000, 88200, 96000)

# Measured: soxr HQ is a Kaiser-windowed sinc with these figures (its gain from 0.88 to 0.99 of the
# Nyquist frequency is met within 0.1 dB), so embeddings agree although no tap was copied.
RESAMPLE_CUTOFF = 0.95686  # of the lower Nyquist frequency
RESAMPLE_HALF_TAPS = 97.73  # samples of the lower rate on each side
RESAMPLE_KAISER_BETA = 13.04
DEVICE_RESAMPLER = f"kaiser {RESAMPLE_CUTOFF} {RESAMPLE_HALF_TAPS} {RESAMPLE_KAISER_BETA}"


@dataclass(frozen=True)
class LogMelConfig:
    """One log-mel front end (LAION-CLAP `training/data.py: get_mel`, torchlibrosa `stft.py`)."""

    sample_rate_hz: int = 48000
    n_fft: int = 1024
    hop_samples: int = 480
    mel_bins: int = 64
    fmin_hz: float = 50.0
    fmax_hz: float = 14000.0
    mel_scale: Literal["htk", "slaney"] = "htk"  # slaney includes Slaney's area normalization
    clip_samples: int = 480000
    filling: Literal["repeatpad", "pad", "repeat", "repeat_frames"] = "repeatpad"
    quantize_int16: bool = True
    bank_rate_hz: int | None = None  # rate the mel filters were laid out for, if another one

    @property
    def bank_hz(self) -> int:
        """Rate the mel filters were laid out for."""
        return self.bank_rate_hz or self.sample_rate_hz

    @property
    def clip_frames(self) -> int:
        """Frames of one full clip: 1001 for ten seconds."""
        return self.clip_samples // self.hop_samples + 1

    @classmethod
    def clap_fused(cls, **changes: Any) -> "LogMelConfig":
        """The front end of CLAP towers with feature fusion: HTK mel, not normalized."""
        return cls(**changes)

    @classmethod
    def clap_unfused(cls, **changes: Any) -> "LogMelConfig":
        """The in-model front end of CLAP towers without fusion: Slaney mel and norm."""
        values: dict[str, Any] = {"mel_scale": "slaney"}
        return cls(**(values | changes))

    @classmethod
    def audioset_32khz(cls, **changes: Any) -> "LogMelConfig":
        """The front end of the original AudioSet HTS-AT in its inference mode.

        It accepts as many frames as fill its image, 10.24 s, and repeats the frames of a shorter
        clip (RetroCirce `model/htsat.py: forward`, `infer_mode`).
        """
        values: dict[str, Any] = {
            "sample_rate_hz": 32000,
            "hop_samples": 320,
            "mel_scale": "slaney",
            "filling": "repeat_frames",
            "quantize_int16": False,
        }
        values |= changes
        values.setdefault("clip_samples", IMAGE_FRAMES * values["hop_samples"] - 1)
        return cls(**values)

    @classmethod
    def speech_commands_16khz(cls) -> "LogMelConfig":
        """The front end of the HTS-AT for Speech Commands: one second, repeated when shorter."""
        return cls(
            sample_rate_hz=16000,
            hop_samples=160,
            mel_scale="slaney",
            clip_samples=16000,
            filling="repeat",
            quantize_int16=False,
        )

    @classmethod
    def msclap_2023(cls, **changes: Any) -> "LogMelConfig":
        """Microsoft CLAP 2023: seven seconds at 44.1 kHz under filters laid out for 32 kHz."""
        values: dict[str, Any] = {
            "sample_rate_hz": 44100,
            "hop_samples": 320,
            "mel_scale": "slaney",
            "clip_samples": 308700,
            "filling": "repeat",
            "quantize_int16": False,
            "bank_rate_hz": 32000,
        }
        return cls(**(values | changes))


def _hz_to_mel(hz: np.ndarray, scale: str) -> np.ndarray:
    if scale == "htk":
        return 2595.0 * np.log10(1.0 + hz / 700.0)
    log_part = 15.0 + np.log(np.maximum(hz, 1e-9) / 1000.0) * 27.0 / np.log(6.4)
    return np.where(hz < 1000.0, 3.0 * hz / 200.0, log_part)


def _mel_to_hz(mel: np.ndarray, scale: str) -> np.ndarray:
    if scale == "htk":
        return 700.0 * (10.0 ** (mel / 2595.0) - 1.0)
    return np.where(mel < 15.0, 200.0 * mel / 3.0, 1000.0 * np.exp((mel - 15.0) * np.log(6.4) / 27))


def _mel_edges_hz(config: LogMelConfig) -> np.ndarray:
    """Where the triangles begin, peak and end, [mel_bins + 2]."""
    low, high = _hz_to_mel(np.array([config.fmin_hz, config.fmax_hz]), config.mel_scale)
    return _mel_to_hz(np.linspace(low, high, config.mel_bins + 2), config.mel_scale)


def mel_centers_hz(config: LogMelConfig) -> np.ndarray:
    """Where the triangles peak, float64 [mel_bins]."""
    return _mel_edges_hz(config)[1:-1]


@lru_cache(maxsize=8)
def mel_filterbank(config: LogMelConfig) -> np.ndarray:
    """Triangular mel filters, float32 [n_fft // 2 + 1, mel_bins].

    HTK triangles peak at one (torchaudio `melscale_fbanks`, norm None); Slaney triangles are
    divided by half their width in Hz (librosa `filters.mel`).
    """
    bins_hz = np.linspace(0.0, config.bank_hz / 2, config.n_fft // 2 + 1)
    edges_hz = _mel_edges_hz(config)
    rise = (bins_hz[:, None] - edges_hz[:-2]) / np.diff(edges_hz)[:-1]
    fall = (edges_hz[2:] - bins_hz[:, None]) / np.diff(edges_hz)[1:]
    bank = np.maximum(0.0, np.minimum(rise, fall))
    if config.mel_scale == "slaney":
        bank *= 2.0 / (edges_hz[2:] - edges_hz[:-2])
    return bank.astype(np.float32)


def log_mel(waveform: jax.Array, length_samples: jax.Array, config: LogMelConfig) -> jax.Array:
    """Log-mel spectrogram of one clip whose real length may be less than the array's.

    The STFT is centered, with reflect padding around the *real* end; frames past `length // hop`
    lie beyond the end and hold values that the caller must not use.

    Args:
        waveform: float32 [L].
        length_samples: int32 scalar, n_fft // 2 < length <= L.
        config: the front end.

    Returns:
        float32 [L // hop + 1, mel_bins] in dB, floor -100.
    """
    hop, n_fft = config.hop_samples, config.n_fft
    # A frame is its own hop, the next and so on, the last one in part.
    n_hops = waveform.shape[0] // hop + -(-n_fft // hop)
    ends = {"half": n_fft // 2, "size": n_hops * hop}
    hops = jax.lax.platform_dependent(
        waveform,
        length_samples,
        tpu=partial(tpu_frontend.mirror, **ends),
        default=partial(_mirror, **ends),
    ).reshape(-1, hop)
    bank = mel_filterbank(config)
    heard = np.flatnonzero(bank.any(axis=1))
    first, end = int(heard[0]), int(heard[-1]) + 1  # no filter reaches the bins below and above
    bins = {"n_fft": n_fft, "first": first, "end": end}
    power = jax.lax.platform_dependent(
        hops,
        tpu=partial(tpu_frontend.power_spectrum, **bins),
        default=partial(_power_spectrum, **bins),
    )
    mel = jnp.matmul(power, jnp.asarray(bank[first:end]), precision=jax.lax.Precision.HIGHEST)
    return 10.0 * jnp.log10(jnp.maximum(mel, LOG_FLOOR))


def _mirror(waveform: jax.Array, length_samples: jax.Array, *, half: int, size: int) -> jax.Array:
    """`tpu_frontend.mirror`: both mirrors and the signal in one pass over memory."""
    at = jnp.abs(jnp.arange(size) - half)
    at = jnp.where(at < length_samples, at, 2 * length_samples - 2 - at)
    return waveform[jnp.clip(at, 0, waveform.shape[0] - 1)]


def _power_spectrum(hops: jax.Array, *, n_fft: int, first: int, end: int) -> jax.Array:
    """`tpu_frontend.power_spectrum` by fast Fourier transforms."""
    n_hops = -(-n_fft // hops.shape[1])
    n_frames = hops.shape[0] - n_hops + 1
    frames = jnp.concatenate([hops[i : i + n_frames] for i in range(n_hops)], axis=1)[:, :n_fft]
    spectrum = jnp.fft.rfft(frames * jnp.asarray(np.hanning(n_fft + 1)[:-1], jnp.float32))
    spectrum = spectrum[:, first:end]
    return jnp.square(spectrum.real) + jnp.square(spectrum.imag)


def repeat_frames(mel: jax.Array, total_frames: jax.Array) -> jax.Array:
    """Fills the image with whole copies of a short clip's frames, stretched by what is missing.

    RetroCirce `model/htsat.py: forward` with `infer_mode`, then `reshape_wav2img`: bicubic with
    the corners aligned, as in `htsat.model.stretch_time`, but of a length that only shows at run
    time.

    Args:
        mel: float32 [T, mel_bins], of which the first `total_frames` are real.
        total_frames: int32 scalar, at most T.

    Returns:
        float32 [T, mel_bins].
    """
    n_out = mel.shape[0]
    n_in = (n_out // total_frames) * total_frames
    scale = (n_in - 1).astype(jnp.float32) / jnp.float32(n_out - 1)
    position = jnp.arange(n_out, dtype=jnp.float32) * scale
    floor = jnp.floor(position)
    rows = floor.astype(jnp.int32)[:, None] + jnp.arange(-1, 3)
    taps = mel[jnp.clip(rows, 0, n_in - 1) % total_frames]
    return (taps * cubic_weights(position - floor)[:, :, None]).sum(axis=1)


def cubic_weights(fraction: Any) -> Any:
    """Weights of the rows before, at, after and second after a position; [N] -> [N, 4].

    Args:
        fraction: of a row that the position lies past its row, a NumPy or JAX array.
    """

    def near(s: Any) -> Any:
        return (CUBIC_A + 2) * s**3 - (CUBIC_A + 3) * s**2 + 1

    def far(s: Any) -> Any:
        return CUBIC_A * (s**3 - 5 * s**2 + 8 * s - 4)

    weights = [far(1 + fraction), near(fraction), near(1 - fraction), far(2 - fraction)]
    return (jnp if isinstance(fraction, jax.Array) else np).stack(weights, axis=-1)


def quantize_int16(waveform: jax.Array) -> jax.Array:
    """Clips, scales by 32767 in float32, truncates toward zero, scales back (LAION `hook.py`)."""
    return jnp.trunc(jnp.clip(waveform, -1.0, 1.0) * jnp.float32(32767.0)) / jnp.float32(32767.0)


def fill_clip(waveform: jax.Array, length_samples: jax.Array, config: LogMelConfig) -> jax.Array:
    """Extends a clip that is too short; a longer one only loses what lies past its real end.

    `repeatpad` tiles whole copies and ends in silence, `repeat` tiles to the end, `pad` appends
    silence (LAION `training/data.py: get_audio_features`); so does `repeat_frames`, which repeats
    the spectrogram later (`repeat_frames`).

    Args:
        waveform: float32 [L].
        length_samples: int32 scalar, real samples; 0 marks an empty row of a batch.
        config: gives `clip_samples` and `filling`.

    Returns:
        float32 [max(L, clip_samples)].
    """
    clip = config.clip_samples
    size = max(waveform.shape[0], clip)
    positions = jnp.arange(size)
    period = jnp.maximum(length_samples, 1)
    tiled_end = {
        "repeatpad": (clip // period) * period,
        "repeat": jnp.asarray(clip),
        "pad": length_samples,
        "repeat_frames": length_samples,
    }[config.filling]
    is_full = length_samples >= clip
    end = jnp.where(is_full, length_samples, tiled_end)
    repeated = jax.lax.platform_dependent(
        waveform,
        jnp.where(is_full, size, period),
        tpu=partial(tpu_frontend.repeat, size=size),
        default=lambda waveform, period: waveform[
            jnp.minimum(positions % period, waveform.shape[0] - 1)
        ],
    )
    return jnp.where(positions < end, repeated, 0.0)


def resampled_lengths(
    length_samples: np.ndarray, rate_hz: int, target_hz: int
) -> tuple[np.ndarray, np.ndarray]:
    """Lengths after resampling: (samples that carry signal, samples of the result).

    librosa rounds `length * float(target / rate)` up and fills the tail with zeros, while soxr
    itself rounds to nearest; 13230 samples at 44.1 kHz give 14400 and 14401.
    """
    lengths = np.asarray(length_samples, np.float64)
    ratio = float(target_hz) / rate_hz
    signal = np.floor(lengths * target_hz / rate_hz + 0.5)
    return signal.astype(np.int32), np.ceil(lengths * ratio).astype(np.int32)


@lru_cache(maxsize=32)
def resampling_kernel(rate_hz: int, target_hz: int) -> tuple[np.ndarray, int, int, int]:
    """Polyphase Kaiser-windowed sinc: (kernel [width, up], up, down, left taps)."""
    divisor = math.gcd(rate_hz, target_hz)
    up, down = target_hz // divisor, rate_hz // divisor
    lower = min(1.0, up / down)  # the lower Nyquist frequency, relative to the input's
    cutoff, width = RESAMPLE_CUTOFF * lower, RESAMPLE_HALF_TAPS / lower
    half = math.ceil(width)
    positions = np.arange(up) * down / up
    taps = np.arange(down + 2 * half)[:, None] - (half - 1)
    distance = taps - positions
    window_at = np.clip(1.0 - np.square(distance / width), 0.0, None)
    window = np.i0(RESAMPLE_KAISER_BETA * np.sqrt(window_at)) / np.i0(RESAMPLE_KAISER_BETA)
    kernel = cutoff * np.sinc(cutoff * distance) * np.where(np.abs(distance) < width, window, 0.0)
    return kernel.astype(np.float32), up, down, half - 1


def resample(waveform: jax.Array, rate_hz: int, target_hz: int) -> jax.Array:
    """Polyphase resampling by a strided convolution.

    Args:
        waveform: float32 [B, L], zero past each row's real end.
        rate_hz: rate of the input; `rate_hz / target_hz` should reduce to small integers.
        target_hz: rate of the output.

    Returns:
        float32 [B, ceil(L * target_hz / rate_hz)].
    """
    if rate_hz == target_hz:
        return waveform
    kernel, up, down, left = resampling_kernel(rate_hz, target_hz)
    length = waveform.shape[1]
    out_length = -(-length * up // down)
    n_blocks = -(-out_length // up)
    right = (n_blocks - 1) * down + kernel.shape[0] - left - length
    padded = jnp.pad(waveform, ((0, 0), (left, max(right, 0))))
    blocks = jax.lax.conv_general_dilated(
        padded[:, :, None],
        jnp.asarray(kernel)[:, None, :],
        window_strides=(down,),
        padding="VALID",
        dimension_numbers=("NWC", "WIO", "NWC"),
        precision=jax.lax.Precision.HIGHEST,
    )
    return blocks[:, :n_blocks].reshape(waveform.shape[0], -1)[:, :out_length]
