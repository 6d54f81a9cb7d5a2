"""One file to mono samples at its own rate (or resampled on the host), or a reason why not.

Runs inside a decoder process (`worker.py`). Every limit is checked on the header's claims before
anything is allocated for them, and again on what the codec delivers.
"""

import errno
import hashlib
import os
import stat
from dataclasses import dataclass, field

import numpy as np
import soundfile

from loopjax.audio.containers import DecodeError, read_header
from loopjax.audio.manifest import os_reason

BLOCK_SAMPLES = 1 << 20  # samples of all channels decoded at a time
MAX_AMPLITUDE = 1e6  # float files may hold 1e30; beyond this only overflow is left
SILENCE_PEAK = 1e-4  # -80 dB
DC_OFFSET = 0.05
FULL_SCALE = 0.9999
CLIPPED_RUN_SAMPLES = 4  # consecutive full-scale samples that one normalised peak cannot make
MP3_PADDING_FRAMES = 4 * 1152  # encoder delay and padding that decoders may trim
CANCEL_RATIO = 1e-3  # mono energy below -30 dB of the channels' mean energy

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


@dataclass
class Decoded:
    """One loop's samples and what is known about its file."""

    samples: np.ndarray  # int16 or float32 [n], mono at `rate_hz`
    rate_hz: int
    sha256: str
    source_rate_hz: int
    channels: int
    n_frames: int
    duration_s: float
    subtype: str
    flags: list[str] = field(default_factory=list)


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
            mix = _Mixer(audio, frames, options)
            mono = mix.read()
            rate, channels, subtype = audio.samplerate, audio.channels, audio.subtype
    except soundfile.LibsndfileError as error:
        raise DecodeError("decode_error", error.error_string) from None
    flags = [*header.flags, *mix.flags]
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
    if mono.size == 0:
        raise DecodeError("no_samples", "the file holds no audio frames")
    n_frames = mono.size
    target = options.target_rate_hz
    if rate not in options.device_rates_hz and rate != target:
        if not options.host_resampling:
            raise DecodeError("unsupported_rate", f"{rate} Hz needs resample auto or host")
        mono = resample_on_host(mono, rate, target)
    return Decoded(
        samples=mono,
        rate_hz=rate if rate in options.device_rates_hz else target,
        sha256=sha256,
        source_rate_hz=rate,
        channels=channels,
        n_frames=n_frames,
        duration_s=n_frames / rate,
        subtype=subtype,
        flags=sorted(set(flags)),
    )


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


class _Mixer:
    """Streams a file through the mono mix and gathers what the flags need."""

    def __init__(self, audio: soundfile.SoundFile, frames: int | None, options: DecodeOptions):
        self._audio = audio
        self._options = options
        self._limit = _max_frames(audio.samplerate, options)
        self._capacity = self._limit + 1 if frames is None else frames
        self._int16 = audio.subtype in INT16_SUBTYPES
        self._peak = 0.0
        self._channel_energy = 0.0
        self.flags: list[str] = []

    def read(self) -> np.ndarray:
        """Returns mono int16 (one 16-bit channel, nothing to mix) or float32 [n]."""
        audio = self._audio
        keep_int16 = self._int16 and (audio.channels == 1 or self._options.mono == "left")
        mono = np.empty(self._capacity, np.int16 if keep_int16 else np.float32)
        block_frames = max(1, BLOCK_SAMPLES // audio.channels)
        dtype = "int16" if self._int16 else "float32"
        block = np.empty((min(block_frames, self._capacity), audio.channels), dtype)
        done = 0
        while done < self._capacity:
            room = block[: self._capacity - done]
            raw = audio.read(len(room), dtype=dtype, always_2d=True, out=room)
            if len(raw) == 0:
                break
            self._mix(raw, mono[done : done + len(raw)])
            done += len(raw)
        if done > self._limit:
            raise DecodeError("limit_duration", f"longer than {self._options.max_duration_s:g} s")
        mono = mono[:done]
        self._flag(mono)
        return mono

    def _mix(self, raw: np.ndarray, out: np.ndarray) -> None:
        if not self._int16:
            self._clean(raw)
        high, low = raw.max(initial=0), raw.min(initial=0)
        scale = 1.0 / 32768.0 if self._int16 else 1.0
        self._peak = max(self._peak, float(high) * scale, -float(low) * scale)
        channels = raw.shape[1]
        used = {"mean": channels, "left": 1, "mid": min(2, channels)}[self._options.mono]
        if used == 1:
            if raw.dtype == out.dtype:
                out[:] = raw[:, 0]
            else:
                np.multiply(raw[:, 0], np.float32(scale), out=out, dtype=np.float32)
        else:
            np.add(raw[:, 0], raw[:, 1], out=out, dtype=np.float32)
            for channel in range(2, used):
                out += raw[:, channel]
            out *= np.float32(scale / used)  # exact for two channels: a power of two
            for channel in range(used):
                column = raw[:, channel].astype(np.float32)
                energy = float(np.vdot(column, column))
                self._channel_energy += energy * scale * scale / used

    def _clean(self, raw: np.ndarray) -> None:
        finite = np.isfinite(raw)
        if not finite.all():
            if not self._options.sanitize:
                bad = int(raw.size - np.count_nonzero(finite))
                raise DecodeError("non_finite", f"{bad} samples are NaN or infinite")
            raw[~finite] = 0.0
            self.flags.append("sanitized")
        if np.abs(raw).max(initial=0.0) > MAX_AMPLITUDE:
            np.clip(raw, -MAX_AMPLITUDE, MAX_AMPLITUDE, out=raw)

    def _flag(self, mono: np.ndarray) -> None:
        if mono.size == 0:
            return
        scale = 1.0 / 32768.0 if mono.dtype == np.int16 else 1.0
        if float(np.abs(mono).max()) * scale <= SILENCE_PEAK:
            self.flags.append("silence")  # of what is embedded: opposite channels may cancel
        if abs(float(mono.mean(dtype=np.float64))) * scale > DC_OFFSET:
            self.flags.append("dc")
        if self._peak >= FULL_SCALE and _longest_run(np.abs(mono * scale) >= FULL_SCALE):
            self.flags.append("clipped")
        if self._channel_energy > 0.0:
            energy = float(np.vdot(mono, mono))
            if energy < CANCEL_RATIO * self._channel_energy:
                self.flags.append("mono_cancels")


def _longest_run(full_scale: np.ndarray) -> bool:
    """Whether `CLIPPED_RUN_SAMPLES` consecutive samples (or all of a shorter file) are True."""
    run = min(CLIPPED_RUN_SAMPLES, full_scale.size)
    together = full_scale[: full_scale.size - run + 1].copy()
    for shift in range(1, run):
        together &= full_scale[shift : shift + together.size]
    return bool(together.any())


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
