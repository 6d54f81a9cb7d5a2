"""The instructions of the pickle machine that data needs (Python's `pickletools` documents them).

The old ways to make instances, extension codes and buffers outside the file are left out.
"""

import codecs
import re
import struct
from collections.abc import Callable
from typing import Any

from loopjax.restricted_pickle.machine import MARK, Machine, RefusedError

MAX_INTEGER_BYTES = 32  # states of random generators hold 128 bits


def _integer(raw: bytes) -> int:
    if len(raw) > MAX_INTEGER_BYTES:
        raise RefusedError(f"it has an integer of {len(raw)} bytes")
    return int.from_bytes(raw, "little", signed=True)


def _decimal(line: bytes) -> int:
    if len(line) > 3 * MAX_INTEGER_BYTES:
        raise RefusedError(f"it has an integer of {len(line)} digits")
    return int(line)


def _decimal_or_bool(line: bytes) -> int:
    """The first protocol spells True as 01 and False as 00."""
    return line == b"01" if line in (b"00", b"01") else _decimal(line)


def _python2_text(raw: bytes) -> str | bytes:
    """Python 2 had one type for text and bytes."""
    return raw.decode() if raw.isascii() else raw


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogatepass")


def _protocol(machine: Machine) -> None:
    version = machine.take(1)[0]
    if version > 5:
        raise RefusedError(f"its pickle is of protocol {version}; 5 is the last one known")


def _floats(machine: Machine) -> None:
    """A number; a million in a row, as lists of embeddings have them, are read together."""
    run = _FLOATS.match(machine.data, machine.position - 1)
    if run is None:
        raise RefusedError("its pickle ends too early")
    machine.position = run.end()
    machine.stack += [value for (value,) in _FLOAT.iter_unpack(run[0])]


def _stack_global(machine: Machine) -> None:
    name, module = machine.pop(), machine.pop()
    machine.push_global(module, name)


def _set_items(machine: Machine) -> None:
    value, key = machine.pop(), machine.pop()
    machine.update((key, value))


def _dict(machine: Machine) -> None:
    items = machine.pop_group()
    machine.push_container({})
    machine.update(items)


_U1, _U2, _U4, _U8 = (struct.Struct(f"<{code}") for code in "BHIQ")
_I4, _FLOAT = struct.Struct("<i"), struct.Struct(">xd")
_FLOATS = re.compile(rb"(?:G.{8})+", re.DOTALL)
STOP = ord(".")
ACTIONS: dict[int, Callable[[Machine], Any]] = {
    ord(code): action
    for code, action in {
        "\x80": _protocol,
        "\x95": lambda m: m.take(8),
        "(": lambda m: m.stack.append(MARK),
        "0": lambda m: m.stack.pop(),
        "1": lambda m: m.pop_group(),
        "2": lambda m: m.stack.append(m.stack[-1]),
        # numbers
        "N": lambda m: m.stack.append(None),
        "\x88": lambda m: m.stack.append(True),
        "\x89": lambda m: m.stack.append(False),
        "I": lambda m: m.stack.append(_decimal_or_bool(m.line())),
        "J": lambda m: m.stack.append(m.number(_I4)),
        "K": lambda m: m.stack.append(m.number(_U1)),
        "M": lambda m: m.stack.append(m.number(_U2)),
        "L": lambda m: m.stack.append(_decimal(m.line().removesuffix(b"L"))),
        "\x8a": lambda m: m.stack.append(_integer(m.take(m.number(_U1)))),
        "\x8b": lambda m: m.stack.append(_integer(m.take(m.number(_I4)))),
        "F": lambda m: m.stack.append(float(m.line())),
        "G": _floats,
        # text and bytes
        "S": lambda m: m.stack.append(_python2_text(codecs.escape_decode(m.line()[1:-1])[0])),
        "T": lambda m: m.stack.append(_python2_text(m.take(m.number(_I4)))),
        "U": lambda m: m.stack.append(_python2_text(m.take(m.number(_U1)))),
        "V": lambda m: m.stack.append(m.line().decode("raw-unicode-escape")),
        "X": lambda m: m.stack.append(_text(m.take(m.number(_U4)))),
        "\x8c": lambda m: m.stack.append(_text(m.take(m.number(_U1)))),
        "\x8d": lambda m: m.stack.append(_text(m.take(m.number(_U8)))),
        "B": lambda m: m.stack.append(m.take(m.number(_U4))),
        "C": lambda m: m.stack.append(m.take(m.number(_U1))),
        "\x8e": lambda m: m.stack.append(m.take(m.number(_U8))),
        "\x96": lambda m: m.stack.append(m.take(m.number(_U8))),
        # containers; sets are read as lists
        "]": lambda m: m.push_container([]),
        "\x8f": lambda m: m.push_container([]),
        "l": lambda m: m.push_container(m.pop_group()),
        "\x91": lambda m: m.push_container(m.pop_group()),
        "}": lambda m: m.push_container({}),
        "d": _dict,
        ")": lambda m: m.stack.append(()),
        "t": lambda m: m.push_container(tuple(m.pop_group())),
        "\x85": lambda m: m.push_tuple(1),
        "\x86": lambda m: m.push_tuple(2),
        "\x87": lambda m: m.push_tuple(3),
        "a": lambda m: m.extend([m.pop()]),
        "e": lambda m: m.extend(m.pop_group()),
        "\x90": lambda m: m.extend(m.pop_group()),
        "s": _set_items,
        "u": lambda m: m.update(m.pop_group()),
        # references
        "p": lambda m: m.remember(_decimal(m.line())),
        "q": lambda m: m.remember(m.number(_U1)),
        "r": lambda m: m.remember(m.number(_U4)),
        "\x94": lambda m: m.remember(len(m.memo)),
        "g": lambda m: m.recall(_decimal(m.line())),
        "h": lambda m: m.recall(m.number(_U1)),
        "j": lambda m: m.recall(m.number(_U4)),
        # names and calls
        "c": lambda m: m.push_global(_text(m.line()), _text(m.line())),
        "\x93": _stack_global,
        "R": lambda m: m.call(),
        "\x81": lambda m: m.call(),
        "b": lambda m: m.build(),
        "Q": lambda m: m.push_persistent(),
    }.items()
}
