"""One file to mono samples at its own rate (or resampled on the host), or a reason why not.

Runs inside a decoder process (`worker.py`). Every limit is checked on the header's claims before
anything is allocated for them, and again on what the codec delivers.
"""

import errno
import hashlib
import os
import stat
from dataclasses import dataclass

import numpy as np
import soundfile

from loopjax.audio.headers import read_header
from loopjax.audio.loop import AudioInfo, DecodeError, os_reason
from loopjax.audio.mixdown import Mixer

BLOCK_SAMPLES = 1 << 16  # samples of all channels decoded at a time; fits the cache
MP3_PADDING_FRAMES = 4 * 1152  # encoder delay and padding that decoders may trim

# Subtypes whose samples are 16-bit integers already: kept as int16, half the transfer.
INT16_SUBTYPES = frozenset(
    ("PCM_16", "PCM_S8", "PCM_U8", "ULAW", "ALAW", "IMA_ADPCM", "MS_ADPCM", "GSM610", "ALAC_16")
)
CONTAINERS = frozenset(["WAV", "WAVEX", "RF64", "AIFF", "FLAC", "OGG", "MP3", "AU", "CAF"])


@dataclass(frozen=True)
class DecodeOptions:
    """What to accept and how to mix; everything here can change a number or an outcome."""

    mono: str = "mean"
    accept_truncated: bool = False
    sanitize: bool = False
    max_duration_s: float = 600.0
    max_channels: int = 64
    min_rate_hz: int = 4000
    max_rate_hz: int = 768_000
    max_file_bytes: int = 2 << 30
    max_samples: int = 1 << 27  # mono samples at the file's rate: 512 MiB as float32
    target_rate_hz: int = 48_000
    device_rates_hz: tuple[int, ...] = (48_000,)  # other rates are resampled here by soxr HQ
    host_resampling: bool = True  # False rejects them instead


@dataclass(frozen=True)
class Decoded:
    """One loop's samples and what is known about its file."""

    samples: np.ndarray  # int16 or float32 [n], mono at `info.rate_hz`
    info: AudioInfo


def decode_file(
    path: bytes, size_bytes: int, mtime_ns: int, options: DecodeOptions | None = None
) -> Decoded:
    """Decodes one file.

    Args:
        path: exact bytes of the path.
        size_bytes: size when the manifest was made; -1 skips the comparison.
        mtime_ns: modification time when the manifest was made.
        options: limits and policies.

    Raises:
        DecodeError: the file was rejected; carries the reason.
    """
    options = options or DecodeOptions()
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise DecodeError("changed", "the file vanished after it was listed") from None
    except OSError as error:
        if error.errno == errno.ENXIO:
            raise DecodeError("not_regular_file", "is a socket") from None
        raise DecodeError(os_reason(error), str(error.strerror)) from None
    try:
        info = os.fstat(fd)
        if not stat.S_ISREG(info.st_mode):
            raise DecodeError("not_regular_file", "is a folder, device, pipe or socket")
        if size_bytes >= 0:
            _require_unchanged(info, size_bytes, mtime_ns)
        if info.st_size == 0:
            raise DecodeError("empty_file", "the file has no bytes")
        if info.st_size > options.max_file_bytes:
            raise DecodeError("limit_file_size", f"{info.st_size} bytes")
        decoded = _decode(fd, info.st_size, options)
        _require_unchanged(os.fstat(fd), info.st_size, info.st_mtime_ns)
        return decoded
    except OSError as error:
        raise DecodeError(os_reason(error), str(error.strerror)) from None
    finally:
        os.close(fd)


def _require_unchanged(info: os.stat_result, size_bytes: int, mtime_ns: int) -> None:
    if info.st_size != size_bytes or info.st_mtime_ns != mtime_ns:
        raise DecodeError("changed", "size or modification time changed after it was listed")


def _decode(fd: int, size_bytes: int, options: DecodeOptions) -> Decoded:
    header = read_header(fd, size_bytes)
    _check_limits(header.channels, header.rate_hz, header.frames, options)
    if header.truncated and not options.accept_truncated:
        raise DecodeError("truncated", header.truncated)
    with os.fdopen(os.dup(fd), "rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    os.lseek(fd, 0, os.SEEK_SET)
    try:
        with soundfile.SoundFile(fd, closefd=False) as audio:
            if audio.format not in CONTAINERS:
                raise DecodeError("unsupported_format", f"{audio.format} is not admitted")
            frames = audio.frames if 0 <= audio.frames < 1 << 60 else None
            _check_limits(audio.channels, audio.samplerate, frames, options)
            is_int16 = audio.subtype in INT16_SUBTYPES
            mixer = Mixer(audio.channels, is_int16, options.mono, options.sanitize)
            mono = _read_mono(audio, frames, mixer, options)
            rate, channels, subtype = audio.samplerate, audio.channels, audio.subtype
    except soundfile.LibsndfileError as error:
        raise DecodeError("decode_error", error.error_string) from None
    flags = list(header.flags)
    expected = frames or 0
    if header.kind == "mp3" and header.frames is not None:
        expected = max(expected, header.frames - MP3_PADDING_FRAMES)
    if mono.size < expected:
        message = f"{mono.size} of {expected} frames can be decoded"
        if mono.size == 0 or not options.accept_truncated:
            raise DecodeError("truncated", message)
        flags.append("truncated")
    elif header.truncated:
        flags.append("truncated")
    return _finish(mono, mixer, flags, rate, channels, subtype, sha256, options)


def _check_limits(
    channels: int | None, rate_hz: float | None, frames: int | None, options: DecodeOptions
) -> None:
    if channels is not None and channels > options.max_channels:
        raise DecodeError("limit_channels", f"{channels} channels, at most {options.max_channels}")
    if rate_hz is None:
        return
    if not options.min_rate_hz <= rate_hz <= options.max_rate_hz:
        allowed = f"{options.min_rate_hz} to {options.max_rate_hz} Hz"
        raise DecodeError("limit_rate", f"{rate_hz:g} Hz, allowed are {allowed}")
    if frames is not None and frames > _max_frames(rate_hz, options):
        raise DecodeError(
            "limit_duration", f"{frames / rate_hz:.1f} s, at most {options.max_duration_s:g} s"
        )


def _max_frames(rate_hz: float, options: DecodeOptions) -> int:
    return min(int(options.max_duration_s * rate_hz), options.max_samples)


def _read_mono(
    audio: soundfile.SoundFile, frames: int | None, mixer: Mixer, options: DecodeOptions
) -> np.ndarray:
    """Streams a file through the mono mix; memory follows the limits, not the claims."""
    limit = _max_frames(audio.samplerate, options)
    capacity = limit + 1 if frames is None else frames
    mono = np.empty(capacity, mixer.mono_dtype)
    block_frames = max(1, BLOCK_SAMPLES // audio.channels)
    block = np.empty((min(block_frames, capacity), audio.channels), mixer.raw_dtype)
    done = 0
    while done < capacity:
        room = block[: capacity - done]
        raw = audio.read(len(room), dtype=mixer.raw_dtype, always_2d=True, out=room)
        if len(raw) == 0:
            break
        mixer.mix(raw, mono[done : done + len(raw)])
        done += len(raw)
    if done > limit:
        raise DecodeError("limit_duration", f"longer than {options.max_duration_s:g} s")
    return mono[:done]


def decode_array(samples: np.ndarray, rate_hz: int, options: DecodeOptions) -> Decoded:
    """Treats samples that are already decoded like the content of a file.

    Args:
        samples: [n] or [n, channels]; int16, other integers (full scale 2**31 if they do not fit
            into 16 bits), or float in [-1, 1].
        rate_hz: their rate.
        options: limits and policies.

    Raises:
        DecodeError: as `decode_file`.
    """
    raw = np.array(samples[:, None] if samples.ndim == 1 else samples)  # mixing may change it
    digest = hashlib.sha256(f"{rate_hz} {raw.dtype} {raw.shape}".encode())
    digest.update(np.ascontiguousarray(raw).data)
    if raw.dtype.kind in "iu" and raw.dtype != np.int16:
        fits = raw.size == 0 or max(int(raw.max()), -int(raw.min()) - 1) <= 32767
        raw = raw.astype(np.int16) if fits else raw / 2.0**31
    if raw.dtype != np.int16:
        raw = raw.astype(np.float32)
    _check_limits(raw.shape[1], rate_hz, len(raw), options)
    mixer = Mixer(raw.shape[1], raw.dtype == np.int16, options.mono, options.sanitize)
    mono = np.empty(len(raw), mixer.mono_dtype)
    mixer.mix(raw, mono)
    subtype = samples.dtype.name
    return _finish(mono, mixer, [], rate_hz, raw.shape[1], subtype, digest.hexdigest(), options)


def _finish(
    mono: np.ndarray,
    mixer: Mixer,
    flags: list[str],
    rate_hz: int,
    channels: int,
    subtype: str,
    sha256: str,
    options: DecodeOptions,
) -> Decoded:
    """Flags, host resampling and the record, for files and arrays alike."""
    if mono.size == 0:
        raise DecodeError("no_samples", "the file holds no audio frames")
    flags = sorted({*flags, *mixer.flags(mono)})
    n_frames, target_hz = mono.size, rate_hz
    if rate_hz not in options.device_rates_hz and rate_hz != options.target_rate_hz:
        if not options.host_resampling:
            raise DecodeError("unsupported_rate", f"{rate_hz} Hz needs resample auto or host")
        target_hz = options.target_rate_hz
        mono = resample_on_host(mono, rate_hz, target_hz)
    info = AudioInfo(
        rate_hz=target_hz,
        sha256=sha256,
        source_rate_hz=rate_hz,
        channels=channels,
        n_frames=n_frames,
        duration_s=n_frames / rate_hz,
        subtype=subtype,
        flags=tuple(flags),
    )
    return Decoded(mono, info)


def resample_on_host(mono: np.ndarray, rate_hz: int, target_hz: int) -> np.ndarray:
    """Resamples by soxr HQ with librosa's length rule: ceil(n * float(target / rate)), zero tail.

    Args:
        mono: int16 or float32 [n].
        rate_hz: rate of `mono`.
        target_hz: rate of the result.

    Returns:
        float32 [ceil(n * target_hz / rate_hz)] (librosa `core/audio.py: resample`).
    """
    import soxr  # takes 50 ms to import and most corpora never need it

    samples = mono.astype(np.float32) / np.float32(32768.0) if mono.dtype == np.int16 else mono
    length = int(np.ceil(samples.size * (float(target_hz) / rate_hz)))
    resampled = soxr.resample(samples, rate_hz, target_hz, quality="HQ")
    out = np.zeros(length, np.float32)
    count = min(length, resampled.size)
    out[:count] = resampled[:count]
    return out
