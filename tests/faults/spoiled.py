"""The files of the fault matrix: each name says what is wrong with it."""

import struct
from pathlib import Path

import numpy as np
import soundfile

from tests.audio_files import pcm16, tone, wav_bytes

SECOND = tone(1.0, seed=99)[:, 0]


def write_spoiled_files(folder: Path) -> None:
    """Writes all of them."""
    for write in (_headers, _cut, _foreign, _limits, _values, _shapes, _formats, _channels):
        write(folder)


def _headers(folder: Path) -> None:
    second = pcm16(SECOND)
    _save(folder / "empty.wav", b"")
    _save(folder / "no_frames.wav", wav_bytes(b""))
    _save(folder / "huge_data_claim.wav", wav_bytes(second, data_size=0x7FFFFFF0))
    _save(folder / "streamed.wav", wav_bytes(second, data_size=2**32 - 1, riff_size=2**32 - 1))
    for channels in (0, 1025, 65535):
        _save(folder / f"channels_{channels}.wav", wav_bytes(second, channels=channels))
    for rate in (0, 4_000_000_000):
        _save(folder / f"rate_{rate}.wav", wav_bytes(second, rate_hz=rate))
    _save(folder / "only_riff.wav", b"RIFF\x04\x00\x00\x00WAVE")
    _save(folder / "header_ends.au", b".snd\x00\x00")


def _cut(folder: Path) -> None:
    whole = wav_bytes(pcm16(SECOND))
    _save(folder / "cut.wav", whole[:5000])
    for extension in ("flac", "mp3", "ogg", "aiff"):
        path = folder / f"cut.{extension}"
        soundfile.write(path, np.tile(SECOND, 4), 48_000)
        raw = path.read_bytes()
        _save(path, raw[: len(raw) // 2])
    path = folder / "no_length_header.mp3"  # variable bit rate: a decoder can only guess
    soundfile.write(path, SECOND, 48_000)
    raw = path.read_bytes()
    _save(path, raw[raw.find(raw[:2], 4) :])


def _foreign(folder: Path) -> None:
    _save(folder / "text.wav", b"This is not audio. " * 100)
    _save(folder / "picture.flac", b"\x89PNG\r\n\x1a\n" + bytes(2000))
    for kind in ("MAT5", "XI", "SDS"):
        path = folder / f"{kind.lower()}.wav"
        subtype = "DPCM_16" if kind == "XI" else "PCM_16"
        soundfile.write(path, SECOND, 44_100, format=kind, subtype=subtype)


def _limits(folder: Path) -> None:
    _save(folder / "channels_1024.wav", wav_bytes(bytes(2048 * 48), channels=1024))
    _save(folder / "rate_1.wav", wav_bytes(pcm16(SECOND), rate_hz=1))
    for extension in ("flac", "ogg"):
        with soundfile.SoundFile(folder / f"thirty_minutes.{extension}", "w", 8000, 2) as file:
            for _ in range(1801):
                file.write(np.zeros((8000, 2), np.int16))
    raw = bytearray((folder / "thirty_minutes.flac").read_bytes())
    (packed,) = struct.unpack(">Q", raw[18:26])
    raw[18:26] = struct.pack(">Q", packed & ~((1 << 36) - 1))  # total samples: unknown
    _save(folder / "unknown_length.flac", bytes(raw))


def _values(folder: Path) -> None:
    for name, value in (("nan", np.nan), ("inf", np.inf)):
        wave = SECOND.copy()
        wave[100:110] = value
        soundfile.write(folder / f"{name}.wav", wave, 48_000, subtype="FLOAT")
    huge = SECOND.astype(np.float64)
    huge[1000:1100], huge[2000:2100] = 1e30, -1e30
    soundfile.write(folder / "huge.wav", huge, 48_000, subtype="DOUBLE")
    soundfile.write(folder / "denormal.wav", SECOND * 1e-40, 48_000, subtype="FLOAT")
    soundfile.write(folder / "silent.wav", np.zeros(24_000), 48_000)
    soundfile.write(folder / "dc.wav", np.full(24_000, 0.5), 48_000)
    square = np.where(np.arange(24_000) // 100 % 2 == 0, 1.0, -1.0)
    soundfile.write(folder / "square.wav", square, 48_000, subtype="FLOAT")
    soundfile.write(folder / "opposite.wav", np.stack([SECOND, -SECOND], 1), 48_000)


def _shapes(folder: Path) -> None:
    ten = np.resize(SECOND, 480_480 + 480)
    for n in (1, 7, 479_999, 480_000, 480_001, 480_479, 480_480):
        soundfile.write(folder / f"samples_{n}.wav", ten[:n], 48_000)


def _formats(folder: Path) -> None:
    wide = np.repeat(np.resize(SECOND, 19_200)[:, None], 32, axis=1)
    soundfile.write(folder / "192k_24bit_32ch.wav", wide, 192_000, subtype="PCM_24")
    for subtype in ("DOUBLE", "PCM_U8", "ULAW", "ALAW", "IMA_ADPCM", "MS_ADPCM", "PCM_32"):
        soundfile.write(folder / f"{subtype.lower()}.wav", SECOND, 48_000, subtype=subtype)
    for extension, kind in (("aiff", "AIFF"), ("au", "AU"), ("caf", "CAF"), ("rf64", "RF64")):
        soundfile.write(folder / f"plain.{extension}", SECOND, 48_000, format=kind)
    soundfile.write(folder / "plain.opus", SECOND, 48_000, format="OGG", subtype="OPUS")
    soundfile.write(folder / "odd_rate.wav", np.resize(SECOND, 37_800), 37_800)


def _channels(folder: Path) -> None:
    other = tone(1.0, seed=98)[:, 0]
    soundfile.write(folder / "mono.wav", SECOND, 48_000)
    soundfile.write(folder / "dual_mono.wav", np.stack([SECOND, SECOND], 1), 48_000)
    soundfile.write(folder / "left_right.wav", np.stack([SECOND, other], 1), 48_000)
    soundfile.write(folder / "right_left.wav", np.stack([other, SECOND], 1), 48_000)


def _save(path: Path, data: bytes) -> None:
    path.write_bytes(data)
