"""One file to mono samples at its own rate (or resampled on the host), or a reason why not.

Runs inside a decoder process (`worker.py`). Every limit is checked on the header's claims before
anything is allocated for them, and again on what the codec delivers.
"""

import errno
import hashlib
import os
import stat
import tempfile
from contextlib import closing
from dataclasses import dataclass
from io import FileIO
from typing import Any, cast

import numpy as np
import soundfile

from loopjax.audio.containers.content import Content, View
from loopjax.audio.containers.read import read_streams
from loopjax.audio.containers.stream import Stream
from loopjax.audio.foreign import ForeignAudio
from loopjax.audio.loop import (
    AudioInfo,
    DecodeError,
    UnsupportedFormatError,
    modified_ns,
    os_reason,
)
from loopjax.audio.mixdown import Mixer
from loopjax.audio.resample import as_float, resample_on_host

BLOCK_SAMPLES = 1 << 16  # samples of all channels decoded at a time; fits the cache
# Without waiting for the other end of a pipe; what is no regular file is refused after opening.
OPEN_FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)
OPEN_FLAGS |= getattr(os, "O_BINARY", 0)

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
    min_duration_s: float = 0.0
    max_duration_s: float = 600.0
    max_channels: int = 64
    min_rate_hz: int = 4000
    max_rate_hz: int = 768_000
    max_file_bytes: int = 2 << 30
    max_samples: int = 1 << 27  # mono samples at the file's rate: 512 MiB as float32
    target_rate_hz: int = 48_000
    device_rates_hz: tuple[int, ...] = (48_000,)  # other rates are resampled here by soxr HQ
    host_resampling: bool = True  # False rejects them instead
    keep_rate: bool = False  # deliver the file's own rate, whatever it is


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
        fd = os.open(path, OPEN_FLAGS)
    except FileNotFoundError:
        raise DecodeError("changed", "the file vanished after it was listed") from None
    except OSError as error:
        if error.errno == errno.ENXIO:
            raise DecodeError("not_regular_file", "is a socket") from None
        raise DecodeError(os_reason(error), str(error.strerror)) from None
    with os.fdopen(fd, "rb", buffering=0) as file:
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
            decoded = _decode(file, info.st_size, options)
            _require_unchanged(os.fstat(fd), info.st_size, modified_ns(info))
            return decoded
        except OSError as error:
            raise DecodeError(os_reason(error), str(error.strerror)) from None


def decode_bytes(content: bytes, options: DecodeOptions | None = None) -> Decoded:
    """Decodes the bytes of a file that lies in something else.

    Raises:
        DecodeError: as `decode_file`.
    """
    options = options or DecodeOptions()
    if not content:
        raise DecodeError("empty_file", "the record has no bytes")
    if len(content) > options.max_file_bytes:
        raise DecodeError("limit_file_size", f"{len(content)} bytes")
    try:
        with _nameless_file() as file:
            view, done = memoryview(content), 0
            while done < len(view):
                done += file.write(view[done:])
            file.seek(0)
            return _decode(file, len(content), options)
    except OSError as error:
        raise DecodeError(os_reason(error), str(error.strerror)) from None


def _nameless_file() -> FileIO:
    """In memory where the system can: libsndfile reads only descriptors by itself."""
    if hasattr(os, "memfd_create"):
        return FileIO(os.memfd_create("loopjax-record"), "r+")
    return cast(FileIO, tempfile.TemporaryFile(buffering=0))


def _require_unchanged(info: os.stat_result, size_bytes: int, mtime_ns: int) -> None:
    if info.st_size != size_bytes or modified_ns(info) != mtime_ns:
        raise DecodeError("changed", "size or modification time changed after it was listed")


@dataclass(frozen=True)
class _Part:
    """The sound of one stream of a file."""

    mono: np.ndarray
    rate_hz: int
    channels: int
    subtype: str
    flags: set[str]


def _decode(file: FileIO, size_bytes: int, options: DecodeOptions) -> Decoded:
    content = Content(file, size_bytes)
    try:
        streams = read_streams(content)
    except UnsupportedFormatError as error:
        file.seek(0)
        part = _decode_foreign(ForeignAudio(file, error.kind), options)
        return _finish(part, _sha256(file), options)
    for stream in streams:
        _check_limits(stream.channels, stream.rate_hz, stream.frames, options)
        if stream.truncated and not options.accept_truncated:
            raise DecodeError("truncated", stream.truncated)
    total_s = sum((stream.frames or 0) / (stream.rate_hz or 1) for stream in streams)
    if total_s > options.max_duration_s:
        raise _too_long(total_s, options)
    sha256 = _sha256(file)
    parts = [_decode_stream(content, file, stream, options) for stream in streams]
    part = parts[0] if len(parts) == 1 else _join(parts, options)
    return _finish(part, sha256, options)


def _sha256(file: FileIO) -> str:
    file.seek(0)
    return hashlib.file_digest(file, "sha256").hexdigest()


def _decode_stream(content: Content, file: FileIO, stream: Stream, options: DecodeOptions) -> _Part:
    """Decodes one stream of a file and compares what came out with what is held."""
    file.seek(0)
    # libsndfile reads a descriptor by itself, an object through a call for every block.
    source: Any = file.fileno() if stream.pieces is None else View(content, stream.pieces)
    try:
        with soundfile.SoundFile(source, closefd=False) as audio:
            if audio.format not in CONTAINERS:
                raise DecodeError("unsupported_format", f"{audio.format} is not admitted")
            frames = audio.frames if 0 <= audio.frames < 1 << 60 else None
            if stream.is_counted:
                frames = stream.frames
            _check_limits(audio.channels, audio.samplerate, frames, options)
            is_int16 = audio.subtype in INT16_SUBTYPES
            mixer = Mixer(audio.channels, is_int16, options.mono, options.sanitize)
            mono = _read_mono(audio, frames, mixer, options)
            rate_hz, channels, subtype = audio.samplerate, audio.channels, audio.subtype
    except soundfile.LibsndfileError as error:
        raise DecodeError("decode_error", error.error_string) from None
    flags = {*stream.flags, *mixer.flags(mono)}
    expected = stream.held_frames if stream.is_counted else max(frames or 0, stream.held_frames)
    if mono.size < expected:
        message = f"{mono.size} of {expected} frames can be decoded"
        if mono.size == 0 or not options.accept_truncated:
            raise DecodeError("truncated", message)
        flags.add("truncated")
    elif stream.truncated:
        flags.add("truncated")
    return _Part(mono, rate_hz, channels, subtype, flags)


def _decode_foreign(audio: ForeignAudio, options: DecodeOptions) -> _Part:
    """Decodes what libsndfile does not read, with the same checks."""
    with closing(audio):
        _check_limits(audio.channels, audio.rate_hz, audio.frames, options)
        mixer = Mixer(audio.channels, False, options.mono, options.sanitize)
        sounds, n_frames = [np.empty(0, np.float32)], 0
        for block in audio.blocks():
            sounds.append(np.empty(len(block), np.float32))
            mixer.mix(block, sounds[-1])
            n_frames += len(block)
            if n_frames > _max_frames(audio.rate_hz, options):
                raise _too_long(n_frames / audio.rate_hz, options)
    mono = np.concatenate(sounds)
    flags = set(mixer.flags(mono))
    if audio.is_short(n_frames):
        if n_frames == 0 or not options.accept_truncated:
            message = f"{n_frames} of {audio.frames} frames can be decoded"
            raise DecodeError("truncated", message)
        flags.add("truncated")
    return _Part(mono, audio.rate_hz, audio.channels, audio.subtype, flags)


def _join(parts: list[_Part], options: DecodeOptions) -> _Part:
    """Sets the sound of several streams one behind the other, at the highest of their rates."""
    rate_hz = max(part.rate_hz for part in parts)
    if any(part.rate_hz != rate_hz for part in parts) and not options.host_resampling:
        raise DecodeError(
            "unsupported_rate", "streams of different rates need resample auto or host"
        )
    sounds = [
        part.mono if part.rate_hz == rate_hz else resample_on_host(part.mono, part.rate_hz, rate_hz)
        for part in parts
    ]
    if any(sound.dtype != np.int16 for sound in sounds):
        sounds = [as_float(sound) for sound in sounds]
    mono = np.concatenate(sounds)
    if mono.size > _max_frames(rate_hz, options):
        raise _too_long(mono.size / rate_hz, options)
    flags = set().union(*(part.flags for part in parts)) | {"chained"}
    if not all("silence" in part.flags for part in parts):
        flags.discard("silence")
    return _Part(mono, rate_hz, max(p.channels for p in parts), parts[0].subtype, flags)


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
        raise _too_long(frames / rate_hz, options)


def _too_long(duration_s: float, options: DecodeOptions) -> DecodeError:
    return DecodeError(
        "limit_duration", f"{duration_s:.1f} s, at most {options.max_duration_s:g} s"
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
        samples: [n] or [n, channels]; float in [-1, 1], or integers whose type gives the full
            scale (unsigned ones are centered). 64 bits, into which datasets put 16-bit samples
            by convention, are taken for 16.
        rate_hz: their rate.
        options: limits and policies.

    Raises:
        DecodeError: as `decode_file`; `unknown_scale` for 64-bit integers beyond 16 bits,
            `bad_header` for arrays that are no samples.
    """
    if samples.ndim not in (1, 2) or samples.dtype.kind not in "iuf":
        message = f"{samples.dtype} of shape {list(samples.shape)} is no audio"
        raise DecodeError("bad_header", message)
    raw = np.array(samples[:, None] if samples.ndim == 1 else samples)  # mixing may change it
    digest = hashlib.sha256(f"{rate_hz} {raw.dtype} {raw.shape}".encode())
    digest.update(np.ascontiguousarray(raw).data)
    raw = _by_full_scale(raw)
    _check_limits(raw.shape[1], rate_hz, len(raw), options)
    mixer = Mixer(raw.shape[1], raw.dtype == np.int16, options.mono, options.sanitize)
    mono = np.empty(len(raw), mixer.mono_dtype)
    mixer.mix(raw, mono)
    subtype, flags = samples.dtype.name, set(mixer.flags(mono))
    part = _Part(mono, rate_hz, raw.shape[1], subtype, flags)
    return _finish(part, digest.hexdigest(), options)


def decode_mono(mono: np.ndarray, info: AudioInfo, options: DecodeOptions) -> Decoded:
    """Treats samples that `decode_file` has delivered at the file's own rate once more like a file.

    Args:
        mono: int16 [n].
        info: what it said of them.
        options: limits and rates.

    Raises:
        DecodeError: too long or too short, or a rate that is not admitted.
    """
    _check_limits(info.channels, info.source_rate_hz, mono.size, options)
    part = _Part(mono, info.source_rate_hz, info.channels, info.subtype, set(info.flags))
    return _finish(part, info.sha256, options)


def _by_full_scale(raw: np.ndarray) -> np.ndarray:
    """int16 as it is, everything else as float32 in [-1, 1]; never by what the values happen to be.

    A quiet loop of 32 bits would otherwise come out 65,536 times too loud.
    """
    if raw.dtype == np.int16:
        return raw
    if raw.dtype.kind == "f":
        return raw.astype(np.float32)
    bits = 8 * raw.dtype.itemsize
    if bits == 64:
        if raw.size and (int(raw.max()) > 32_767 or int(raw.min()) < -32_768):
            message = f"{raw.dtype} samples beyond 16 bits: their full scale cannot be known"
            raise DecodeError("unknown_scale", message)
        return raw.astype(np.int16)
    half = 2.0 ** (bits - 1)
    return ((raw - half if raw.dtype.kind == "u" else raw) / half).astype(np.float32)


def _finish(part: _Part, sha256: str, options: DecodeOptions) -> Decoded:
    """Last checks, host resampling and the record, for files and arrays alike."""
    mono, rate_hz = part.mono, part.rate_hz
    if mono.size == 0:
        raise DecodeError("no_samples", "the file holds no audio frames")
    if mono.size < options.min_duration_s * rate_hz:
        message = f"{mono.size / rate_hz:.3f} s, at least {options.min_duration_s:g} s"
        raise DecodeError("limit_duration", message)
    n_frames, target_hz = mono.size, rate_hz
    known = options.keep_rate or rate_hz == options.target_rate_hz
    if not known and rate_hz not in options.device_rates_hz:
        if not options.host_resampling:
            raise DecodeError("unsupported_rate", f"{rate_hz} Hz needs resample auto or host")
        target_hz = options.target_rate_hz
        mono = resample_on_host(mono, rate_hz, target_hz)
    info = AudioInfo(
        rate_hz=target_hz,
        sha256=sha256,
        source_rate_hz=rate_hz,
        channels=part.channels,
        n_frames=n_frames,
        duration_s=n_frames / rate_hz,
        subtype=part.subtype,
        flags=tuple(sorted(part.flags)),
    )
    return Decoded(mono, info)
