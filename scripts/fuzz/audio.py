"""Damages audio files of every container and codec, and decodes them.

    python -m scripts.fuzz.audio --n 2000

A file is decoded or rejected with a reason. What is decoded must be finite and as long as its row
says, and a file in which only metadata can have changed must still sound the same. Ends with
"0 lost, 0 hung, 0 ran, 0 tracebacks", or exit code 1.
"""

import os
import random
import sys
from pathlib import Path

import numpy as np
import soundfile

from loopjax.audio.decode import Decoded, decode_file
from loopjax.audio.loop import DecodeError
from loopjax.errors import UserError
from scripts.fuzz.outcomes import CANARY, Outcomes, command_line, mutated, tried

RATE_HZ = 48_000
HEAD_BYTES = 200  # where the sizes, rates and channels of most containers stand
FILES = (  # extension, format, subtype
    ("wav", "WAV", "PCM_16"),
    ("float.wav", "WAV", "FLOAT"),
    ("ima.wav", "WAV", "IMA_ADPCM"),
    ("extensible.wav", "WAVEX", "PCM_24"),
    ("rf64", "RF64", "PCM_16"),
    ("w64", "W64", "PCM_16"),
    ("aiff", "AIFF", "PCM_24"),
    ("au", "AU", "ULAW"),
    ("caf", "CAF", "ALAC_16"),
    ("flac", "FLAC", "PCM_16"),
    ("ogg", "OGG", "VORBIS"),
    ("opus", "OGG", "OPUS"),
    ("mp3", "MP3", "MPEG_LAYER_III"),
)
CHECKED = ("flac",)  # whose frames carry checksums: what is decoded is what was written


def work(outcomes: Outcomes, n: int, seed: int, folder: Path) -> None:
    """Tries `n` damaged files."""
    rng = random.Random(seed)
    whole = write_files(folder / "whole")
    sounds = {file: decode(file).samples for file in whole}
    for number in range(n):
        file = rng.choice(whole)
        kind, raw = damaged(file.read_bytes(), rng)
        path = folder / f"case-{file.name}"
        path.write_bytes(raw)

        def read(path: Path = path, file: Path = file) -> str | None:
            return fault(decode(path), sounds[file], file)

        label = f"{kind} in {file.name} (seed {seed}, number {number})"
        tried(outcomes, label, read, folder / CANARY)


def write_files(folder: Path) -> list[Path]:
    """One sound file of each kind, two channels, a third of a second."""
    folder.mkdir()
    time_s = np.arange(RATE_HZ // 3) / RATE_HZ
    left = 0.3 * np.sin(2 * np.pi * 220 * time_s) * np.exp(-3 * time_s)
    wave = np.stack([left, left[::-1]], axis=1)
    for extension, kind, subtype in FILES:
        soundfile.write(folder / f"a.{extension}", wave, RATE_HZ, format=kind, subtype=subtype)
    return sorted(folder.iterdir())


def damaged(raw: bytes, rng: random.Random) -> tuple[str, bytes]:
    """One to three damages, half of them in the header."""
    kinds = []
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        edge = HEAD_BYTES if rng.random() < 0.5 else len(raw)
        kind, head = mutated(raw[:edge], rng)
        raw = head if kind == "cut" and edge == HEAD_BYTES else head + raw[edge:]
        kinds.append(kind)
    return " and ".join(kinds), raw


def decode(path: Path) -> Decoded:
    """Decodes as a decoder process does; a rejected file is a refusal."""
    info = path.stat()
    try:
        return decode_file(os.fsencode(path), info.st_size, info.st_mtime_ns)
    except DecodeError as error:
        raise UserError(str(error)) from None


def fault(decoded: Decoded, sound: np.ndarray, file: Path) -> str | None:
    """What is wrong with the samples of a damaged file."""
    samples, info = decoded.samples, decoded.info
    if samples.ndim != 1 or not np.isfinite(samples).all():
        return "samples that are no finite mono"
    if info.rate_hz == info.source_rate_hz and samples.size != info.n_frames:
        return f"{samples.size} samples, but its row says {info.n_frames}"
    if file.suffix[1:] in CHECKED and samples.size == sound.size:
        same_scale = samples.dtype == sound.dtype and info.channels == 2
        if same_scale and not np.array_equal(samples, sound):
            return "other samples under right checksums"
    return None


if __name__ == "__main__":
    sys.exit(command_line(work, __doc__))
