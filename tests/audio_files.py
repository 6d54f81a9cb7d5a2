"""Small audio files for tests: real tones, and every way we know to spoil them."""

import struct
from pathlib import Path

import numpy as np
import soundfile


def tone(seconds: float = 0.5, rate_hz: int = 48_000, seed: int = 0, channels: int = 1):
    """A decaying tone with a little noise, float32 [n, channels]."""
    rng = np.random.default_rng(seed)
    t = np.arange(max(1, round(seconds * rate_hz))) / rate_hz
    pitch_hz = 110.0 * 2 ** rng.uniform(0, 3)
    wave = 0.4 * np.sin(2 * np.pi * pitch_hz * t) * np.exp(-t) + 0.01 * rng.standard_normal(t.size)
    return np.repeat(wave[:, None], channels, axis=1).astype(np.float32)


def write_tone(path: Path, seconds: float = 0.5, rate_hz: int = 48_000, seed: int = 0, **kwargs):
    """Writes a tone; the extension chooses the container."""
    channels = kwargs.pop("channels", 1)
    soundfile.write(path, tone(seconds, rate_hz, seed, channels), rate_hz, **kwargs)
    return path


def write_corpus(folder: Path, n_files: int, seconds=(0.2, 0.45, 0.9), rate_hz: int = 48_000):
    """A flat folder of short WAV loops of a few lengths; returns the paths."""
    folder.mkdir(parents=True, exist_ok=True)
    return [
        write_tone(folder / f"loop_{i:05d}.wav", seconds[i % len(seconds)], rate_hz, seed=i)
        for i in range(n_files)
    ]


def wav_bytes(
    frames: bytes,
    *,
    channels: int = 1,
    rate_hz: int = 48_000,
    bits: int = 16,
    format_tag: int = 1,
    data_size: int | None = None,
    riff_size: int | None = None,
) -> bytes:
    """A WAV file with any claim in its header, true or not."""
    align = max(1, (channels * bits // 8) & 0xFFFF)
    fmt = struct.pack("<HHIIHH", format_tag, channels, rate_hz & 0xFFFFFFFF, 0, align, bits)
    body = b"WAVEfmt " + struct.pack("<I", 16) + fmt
    body += b"data" + struct.pack("<I", len(frames) if data_size is None else data_size) + frames
    return b"RIFF" + struct.pack("<I", len(body) if riff_size is None else riff_size) + body


def pcm16(wave: np.ndarray) -> bytes:
    """Float samples as little-endian 16-bit PCM."""
    return (np.clip(wave, -1, 1) * 32767).astype("<i2").tobytes()
