"""Reads pickles as data: a stack machine of its own that runs nothing and builds plain values only.

Python's unpickler calls whatever a file names and lets the file set the state of what was built;
even with a list of harmless names, the state of a `numpy.dtype` can forge pointers. Here a pickle
can make numbers, text, bytes, lists, tuples and dicts, can call the functions that the caller
lists, and gets arrays as descriptions (see `arrays`) from which we build real ones.

Whatever the bytes say, reading takes at most `MEMORY_PER_BYTE` times their number plus
`SPARE_BYTES`, and so does everything that can be reached from the result, references counted as
often as they occur; integers are bounded, and nesting is.
"""

import itertools
import struct
from collections.abc import Iterator, Mapping
from typing import Any

from loopjax.restricted_pickle.instructions import ACTIONS, STOP
from loopjax.restricted_pickle.machine import (
    MEMORY_PER_BYTE,
    SPARE_BYTES,
    Description,
    Function,
    Machine,
    Names,
    Persistent,
    RefusedError,
)

MAX_DEPTH = 100
_ITEM_BYTES = 8


def _no_name(module: str, name: str) -> bool:
    return False


def load(
    data: bytes,
    functions: Mapping[tuple[str, str], Function],
    *,
    is_inert: Names = _no_name,
    persistent: Persistent | None = None,
) -> Any:
    """The value of a pickle of any protocol.

    Args:
        data: the pickle; what follows it is not looked at.
        functions: what it may call, by module and name. They get untrusted values, and may be
            called very often with the same large ones.
        is_inert: further names it may mention; they become `Name`s.
        persistent: makes a value of an identifier that only the writing program understands.

    Raises:
        RefusedError: names what was asked for, or what is wrong. Nothing was run.
    """
    return load_next(data, 0, functions, is_inert=is_inert, persistent=persistent)[0]


def load_next(
    data: bytes,
    start: int,
    functions: Mapping[tuple[str, str], Function],
    *,
    is_inert: Names = _no_name,
    persistent: Persistent | None = None,
) -> tuple[Any, int]:
    """`load` of a pickle that starts within `data`; also returns where it ends."""
    machine = Machine(data, start, functions, is_inert, persistent)
    try:
        value = _run(machine)
        _check_reach(value, MEMORY_PER_BYTE * len(data) + SPARE_BYTES)
    except RefusedError:
        raise
    except (
        ArithmeticError,
        AttributeError,
        LookupError,
        MemoryError,
        RecursionError,
        TypeError,
        ValueError,
        struct.error,
    ) as error:
        reason = str(error)[:200] or type(error).__name__
        raise RefusedError(f"its pickle is unreadable ({reason})") from None
    return value, machine.position


def _run(machine: Machine) -> Any:
    data = machine.data
    while machine.position < len(data):
        opcode = data[machine.position]
        machine.position += 1
        if opcode == STOP:
            return machine.pop()
        if opcode not in ACTIONS:
            raise RefusedError(f"its pickle holds the unknown instruction {opcode:#x}")
        ACTIONS[opcode](machine)
    raise RefusedError("its pickle ends too early")


def _check_reach(value: object, limit_bytes: int) -> None:
    """Refuses values that contain themselves, nest too deeply, or unfold far beyond the file.

    A list of ten references to a list of ten references, and so on, is small until someone walks
    through it.
    """
    sizes: dict[int, int] = {}
    active: set[int] = set()
    frames: list[_Frame] = [_Frame(0, iter((value,)))]
    while True:
        frame = frames[-1]
        for child in frame.children:
            inner = _children(child)
            if inner is None:
                frame.n_bytes += _leaf_bytes(child)
            elif id(child) in sizes:
                frame.n_bytes += sizes[id(child)]
            elif id(child) in active or len(frames) > MAX_DEPTH:
                raise RefusedError("its pickle nests too deeply or contains itself")
            else:
                active.add(id(child))
                frames.append(_Frame(id(child), inner))
                break
        else:
            frames.pop()
            if not frames:
                return
            active.discard(frame.key)
            sizes[frame.key] = frame.n_bytes + _ITEM_BYTES
            frames[-1].n_bytes += sizes[frame.key]
        if frames[-1].n_bytes > limit_bytes:
            raise RefusedError("its pickle would unfold to far more than its size")


class _Frame:
    """A container on the way from the value to where the walk is."""

    __slots__ = ("children", "key", "n_bytes")

    def __init__(self, key: int, children: Iterator[object]):
        self.key, self.children, self.n_bytes = key, children, 0


def _children(value: object) -> Iterator[object] | None:
    """What a container holds; None = no container."""
    if type(value) is list or type(value) is tuple:
        return iter(value)
    if type(value) is dict:
        return itertools.chain.from_iterable(value.items())
    if isinstance(value, Description) and isinstance(value.elements, list):
        return iter(value.elements)
    return None


def _leaf_bytes(value: object) -> int:
    if isinstance(value, (str, bytes)):
        return len(value) + _ITEM_BYTES
    if isinstance(value, Description):
        return len(value.elements) + _ITEM_BYTES
    return _ITEM_BYTES
