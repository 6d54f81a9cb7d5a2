"""Several channels to one, and what is odd about a recording besides its sound."""

from typing import Literal

import numpy as np

from loopjax.audio.loop import DecodeError

INT16_SCALE = 1.0 / 32768.0
MAX_AMPLITUDE = 1e6  # float files may hold 1e30; beyond this only overflow is left
SILENCE_PEAK = 1e-4  # -80 dB
DC_OFFSET = 0.05
FULL_SCALE = 0.9999
CLIPPED_RUN_SAMPLES = 4  # consecutive full-scale samples that one normalized peak cannot make
CANCEL_RATIO = 1e-3  # mono energy below -30 dB of the channels' mean energy


def to_int16(samples: np.ndarray) -> np.ndarray:
    """Float samples as the nearest 16-bit ones; beyond full scale they are clipped."""
    return np.clip(np.rint(samples * 32768.0), -32768, 32767).astype(np.int16)


class Mixer:
    """Mixes blocks of one file to mono and gathers what its flags need."""

    def __init__(self, channels: int, is_int16: bool, mono: str, sanitize: bool):
        """Chooses the sample formats.

        Args:
            channels: of the file.
            is_int16: whether its samples are 16-bit integers.
            mono: "mean" of all channels, "left" (first) or "mid" (mean of the first two).
            sanitize: replace NaN and infinity by zero instead of rejecting the file.
        """
        self._used = {"mean": channels, "left": 1, "mid": min(2, channels)}[mono]
        self._scale = INT16_SCALE if is_int16 else 1.0
        self._sanitize = sanitize
        self._is_int16 = is_int16
        self._sanitized = False
        self._peak = 0.0
        self._channel_energy = 0.0
        self._buffer = np.empty((0, channels), np.float32)
        self.raw_dtype: Literal["int16", "float32"] = "int16" if is_int16 else "float32"
        # One 16-bit channel stays as it is: half the transfer, converted on the device.
        self.mono_dtype = "int16" if is_int16 and self._used == 1 else "float32"

    def mix(self, raw: np.ndarray, out: np.ndarray) -> None:
        """Mixes one block.

        Args:
            raw: `raw_dtype` [n, channels]; may be changed.
            out: `mono_dtype` [n], receives the mix.

        Raises:
            DecodeError: `non_finite`.
        """
        if not self._is_int16:
            self._clean(raw)
        self._peak = max(self._peak, _peak(raw) * self._scale)
        if self._used == 1:
            out[:] = raw[:, 0]
            return
        values = self._as_float(raw)
        flat = values.reshape(-1)
        energy = float(np.vdot(flat, flat)) * self._scale**2
        self._channel_energy += energy / raw.shape[1]
        np.add(values[:, 0], values[:, 1], out=out)
        for channel in range(2, self._used):
            out += values[:, channel]
        out *= np.float32(self._scale / self._used)  # exact for two channels: a power of two

    def flags(self, mono: np.ndarray) -> list[str]:
        """What the whole mix shows: silence, dc, clipped, mono_cancels, sanitized."""
        if mono.size == 0:
            return []
        scale = self._scale if mono.dtype == np.int16 else 1.0
        found = ["sanitized"] if self._sanitized else []
        if _peak(mono) * scale <= SILENCE_PEAK:
            found.append("silence")  # of what is embedded: opposite channels may cancel
        if abs(float(mono.mean(dtype=np.float64))) * scale > DC_OFFSET:
            found.append("dc")
        if self._peak >= FULL_SCALE and _has_run(mono, FULL_SCALE / scale):
            found.append("clipped")
        if self._channel_energy > 0.0:
            energy = float(np.vdot(mono, mono))
            if energy < CANCEL_RATIO * self._channel_energy:
                found.append("mono_cancels")
        return found

    def _as_float(self, raw: np.ndarray) -> np.ndarray:
        """The block as float32, in a buffer that is kept: fresh pages cost more than the copy."""
        if raw.dtype == np.float32:
            return raw
        if len(self._buffer) < len(raw):
            self._buffer = np.empty(raw.shape, np.float32)
        values = self._buffer[: len(raw)]
        np.copyto(values, raw)
        return values

    def _clean(self, raw: np.ndarray) -> None:
        finite = np.isfinite(raw)
        if not finite.all():
            if not self._sanitize:
                bad = int(raw.size - np.count_nonzero(finite))
                raise DecodeError("non_finite", f"{bad} samples are NaN or infinite")
            raw[~finite] = 0.0
            self._sanitized = True
        if _peak(raw) > MAX_AMPLITUDE:
            np.clip(raw, -MAX_AMPLITUDE, MAX_AMPLITUDE, out=raw)


def _peak(samples: np.ndarray) -> float:
    """Largest magnitude; the magnitude of -32768 does not fit into int16."""
    return max(float(samples.max(initial=0)), -float(samples.min(initial=0)))


def _has_run(mono: np.ndarray, level: float) -> bool:
    """Whether `CLIPPED_RUN_SAMPLES` consecutive samples (or all of a shorter file) reach it."""
    loud = (mono >= level) | (mono <= -level)
    run = min(CLIPPED_RUN_SAMPLES, loud.size)
    together = loud[: loud.size - run + 1].copy()
    for shift in range(1, run):
        together &= loud[shift : shift + together.size]
    return bool(together.any())
