"""NumPy arrays in pickles: described by the file, built here.

A file says shape, type and elements; its own idea of a dtype's or an array's state never reaches
NumPy.
"""

import math
import re
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from loopjax.restricted_pickle.machine import Description, Function, RefusedError

MAX_DIMENSIONS = 32  # NumPy's, before 2.0
_SPELLING = re.compile(r"[<>=|]?(f[248]|[iu][1248]|b1|[US][1-9]\d{0,5}|O8?)")


class PickledDtype(Description):
    """A NumPy dtype as a file spells it: kind, width and byte order, nothing else."""

    __slots__ = ("spelling",)

    def __init__(self, spelling: object, *_: object):
        if not isinstance(spelling, str) or not _SPELLING.fullmatch(spelling):
            raise RefusedError(f"it has an array of unknown type {str(spelling)[:40]!r}")
        self.spelling = spelling

    def set_state(self, state: object) -> None:
        """Takes the byte order; fields, subarrays and whatever else a state can hold are refused.

        Raises:
            RefusedError: it is not the state of a plain type.
        """
        match state:
            case (int(), "<" | ">" | "|" | "=" as order, None, None, None, *_):
                self.spelling = order + self.spelling.lstrip("<>=|")
            case _:
                raise RefusedError("it has an array of structured or malformed type")

    def dtype(self) -> np.dtype:
        """The dtype, made from its spelling."""
        return np.dtype(self.spelling)


class PickledArray(Description):
    """A NumPy array as a file describes it; `read` makes the array.

    Attributes:
        shape: lengths of its axes.
        dtype: type of its elements, text or numbers; "O" where `data` is a list.
        data: the elements' bytes, or the elements.
        order: "C" or "F".
    """

    __slots__ = ("data", "dtype", "order", "shape")

    def __init__(self) -> None:
        self.shape: tuple[int, ...] = (0,)
        self.dtype = PickledDtype("f8")
        self.data: bytes | list[Any] = b""
        self.order: Literal["C", "F"] = "C"

    def set_state(self, state: object) -> None:
        """Takes shape, type and elements.

        Raises:
            RefusedError: they are not what an array has, or do not fit one another.
        """
        match state:
            case (
                int(),
                tuple() as shape,
                PickledDtype() as dtype,
                fortran,
                bytes() | list() as data,
            ):
                self.order = "F" if fortran else "C"
            case _:
                raise RefusedError("it has a malformed array")
        if len(shape) > MAX_DIMENSIONS or not all(type(n) is int and n >= 0 for n in shape):
            raise RefusedError("it has an array of impossible shape")
        there = len(data) if isinstance(data, list) else len(data) / dtype.dtype().itemsize
        if isinstance(data, list) != dtype.dtype().hasobject or math.prod(shape) != there:
            raise RefusedError("it has an array whose elements do not fit its shape")
        self.shape, self.dtype, self.data = shape, dtype, data

    @property
    def elements(self) -> bytes | list[Any]:
        """The elements' bytes, or the elements."""
        return self.data

    def read(self) -> np.ndarray:
        """The array; of dtype object only where `data` is a list.

        Raises:
            RefusedError: NumPy cannot hold an array of this shape.
        """
        dtype = self.dtype.dtype()
        try:
            if isinstance(self.data, list):
                flat = np.empty(len(self.data), object)
                for i, item in enumerate(self.data):
                    flat[i] = item
            else:
                flat = np.frombuffer(self.data, dtype)
            return flat.reshape(self.shape, order=self.order)
        except ValueError as error:
            raise RefusedError(f"it has an array that cannot be built ({error})") from None


def _reconstruct(*_: object) -> PickledArray:
    return PickledArray()


def _from_buffer(data: object, dtype: object, shape: object, order: object) -> PickledArray:
    array = PickledArray()
    array.set_state((1, shape, dtype, order == "F", data))
    return array


def _scalar(dtype: object, data: object) -> object:
    """A NumPy scalar, such as a learning rate in an optimizer's state."""
    array = PickledArray()
    array.set_state((1, (), dtype, False, data))
    return array.read().item()


def _encode(text: str, encoding: str) -> bytes:
    """Protocol 2 spells bytes as `_codecs.encode(text, 'latin1')`."""
    if encoding != "latin1":
        raise RefusedError("it encodes text in an unexpected way")
    return text.encode("latin1")


def _no_bytes() -> bytes:
    """Older protocols spell empty bytes as `bytes()`."""
    return b""


def _no_call(*_: object) -> object:
    raise RefusedError("it makes an array in an unexpected way")


NUMPY_FUNCTIONS: Mapping[tuple[str, str], Function] = {
    ("numpy", "dtype"): PickledDtype,
    ("numpy", "ndarray"): _no_call,  # only ever an argument of `_reconstruct`
    ("_codecs", "encode"): _encode,
    ("__builtin__", "bytes"): _no_bytes,
    ("builtins", "bytes"): _no_bytes,
    **{
        (f"numpy.{core}.{module}", name): function
        for core in ("core", "_core")
        for module, name, function in (
            ("multiarray", "_reconstruct", _reconstruct),
            ("multiarray", "scalar", _scalar),
            ("numeric", "_frombuffer", _from_buffer),
        )
    },
}
