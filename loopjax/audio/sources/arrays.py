"""Samples in memory as a corpus: each array is decoded like a WAV file that holds it."""

import io
import os
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import soundfile

from loopjax.audio.decode import DecodeOptions
from loopjax.audio.decoder import Decoder
from loopjax.audio.loop import Loop, make_key
from loopjax.audio.process import DecoderProcess
from loopjax.audio.sources.selection import Selection
from loopjax.audio.sources.source import Source, open_source
from loopjax.audio.sources.unit import Unit
from loopjax.errors import UserError


class Arrays:
    """Arrays of one sample rate; their paths are `array-000000` and so on, in the order given."""

    columns: tuple[str, ...] = ()

    def __init__(self, arrays: Sequence[object], rate_hz: int):
        """Takes the arrays.

        Args:
            arrays: one per loop; mono [n], or [n, channels] or [channels, n], where the shorter
                axis holds the channels; int16, or float in [-1, 1].
            rate_hz: their sample rate.

        Raises:
            UserError: another shape or type, or no rate; says which array and what was expected.
        """
        if isinstance(rate_hz, bool) or not isinstance(rate_hz, int | np.integer) or rate_hz < 1:
            raise UserError(f"rate_hz is {rate_hz!r}: expected a whole number, such as 44100")
        self._sounds = [_checked(i, np.asarray(array)) for i, array in enumerate(arrays)]
        self._rate_hz = int(rate_hz)

    @property
    def n_loops(self) -> int:
        """How many arrays there are."""
        return len(self._sounds)

    def loops(self, process_index: int = 0, process_count: int = 1) -> Iterator[Loop]:
        """One loop per array."""
        for i in range(process_index, len(self._sounds), process_count):
            name = f"array-{i:06d}"
            fetch = partial(_as_wav, self._sounds[i], self._rate_hz)
            size_bytes = self._sounds[i].nbytes
            yield Loop(make_key(name.encode()), name, name.encode(), size_bytes, 0, "", fetch)

    def units(self, n_loops: int) -> Iterator[Unit]:
        """All of them: what lies in one process's memory is not shared."""
        yield Unit(0, "arrays", self.loops)

    def decoder(self, options: DecodeOptions, timeout_s: float) -> Decoder:
        """A decoder in a process of its own."""
        return DecoderProcess(options, timeout_s)


def open_any(sources: Any, rate_hz: int | None, selection: Selection) -> Source:
    """Opens a path or several, see `open_source`, or an array or several, see `Arrays`.

    Args:
        sources: what to open.
        rate_hz: of arrays.
        selection: of files.

    Raises:
        UserError: neither paths nor arrays; says what was expected.
    """
    if _is_array(sources) or isinstance(sources, str | os.PathLike):
        sources = [sources]
    elif not isinstance(sources, Iterable):
        raise UserError(f"sources is {sources!r}: expected paths, or arrays of samples")
    sources = list(sources)
    for i, source in enumerate(sources):
        if not _is_array(source) and not isinstance(source, str | os.PathLike):
            kind = type(source).__name__
            raise UserError(f"sources[{i}] is a {kind}: expected a path, or samples as an array")
    n_arrays = sum(map(_is_array, sources))
    if n_arrays and n_arrays < len(sources):
        raise UserError("sources has paths and arrays: embed the two kinds separately")
    if not n_arrays:
        if rate_hz is not None:
            raise UserError("rate_hz is for arrays of samples; files know theirs")
        return open_source(sources, selection)
    if rate_hz is None:
        raise UserError("arrays of samples need their rate, such as rate_hz=44100")
    return Arrays(sources, rate_hz)


def _is_array(source: object) -> bool:
    """Whether this holds numbers; arrays and columns of text are lists of paths."""
    return (
        hasattr(source, "__array__")
        and not isinstance(source, str)
        and np.asarray(source).dtype.kind not in "OUST"
    )


def _checked(number: int, array: np.ndarray) -> np.ndarray:
    """An array as int16 or float32 [n, channels]."""
    where = f"array {number} of shape {array.shape} and type {array.dtype}"
    if array.ndim not in (1, 2) or (array.ndim == 2 and array.shape[0] == array.shape[1]):
        raise UserError(
            f"{where}: expected one loop, mono [n], [n, channels] or [channels, n] (the shorter "
            "axis holds the channels); several loops are a list of arrays"
        )
    if array.dtype != np.int16 and array.dtype.kind != "f":
        raise UserError(f"{where}: expected samples as int16, or as floats in [-1, 1]")
    samples = array if array.dtype == np.int16 else array.astype(np.float32)
    if array.ndim == 1 or not array.size:
        return samples.reshape(-1, 1)
    return samples if len(samples) > samples.shape[1] else samples.T


def _as_wav(samples: np.ndarray, rate_hz: int) -> bytes:
    """The bytes of a WAV file that holds samples [n, channels] as they are."""
    file = io.BytesIO()
    subtype = "PCM_16" if samples.dtype == np.int16 else "FLOAT"
    soundfile.write(file, samples, rate_hz, format="WAV", subtype=subtype)
    return file.getvalue()
