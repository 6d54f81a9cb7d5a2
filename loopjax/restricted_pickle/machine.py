"""What a pickle works upon: a stack, references and a budget; what its instructions may do."""

import itertools
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

MEMORY_PER_BYTE = 64
SPARE_BYTES = 16 << 20
MAX_KEY = 1 << 60  # larger integers can be chosen to collide in a dict, which then takes forever
MAX_NAME = 300
CONTAINER_BYTES = 256  # what an empty dict, its place in a list and its bookkeeping take

Function = Callable[..., object]
Names = Callable[[str, str], bool]
Persistent = Callable[[object], object]


class RefusedError(ValueError):
    """The pickle is damaged, dishonest, or asks for something that is not known to be harmless."""


class UnknownNameError(RefusedError):
    """The pickle asks for a name that is not listed."""

    def __init__(self, module: str, name: str):
        self.name = "".join(c if c.isprintable() else "?" for c in f"{module}.{name}")
        super().__init__(f"it asks for {self.name}, which is not needed here; nothing was run")


class Name(str):
    """A class that the file mentions but that is of no use here; text cannot be called."""

    __slots__ = ()


class Description:
    """What a listed function may return where the pickle gives the state of a value later."""

    __slots__ = ()

    def set_state(self, state: object) -> None:
        """Takes the state, checked.

        Raises:
            RefusedError: it is not the state of such a value.
        """
        raise NotImplementedError

    @property
    def elements(self) -> bytes | list[Any]:
        """What it was given, for counting; empty where it holds little."""
        return b""


class _Callable(NamedTuple):
    """A listed function, as it lies on the stack."""

    function: Function


class _Mark:
    """Where a group of items starts on the stack."""


MARK = _Mark()


class Machine:
    """The state of one reading: where it is, the stack, and what was put aside for later."""

    def __init__(
        self,
        data: bytes,
        start: int,
        functions: Mapping[tuple[str, str], Function],
        is_inert: Names,
        persistent: Persistent | None,
    ):
        self.data, self.position = data, start
        self.functions, self.is_inert, self.persistent = functions, is_inert, persistent
        self.stack: list[Any] = []
        self.memo: list[Any] = []
        self.room_bytes = MEMORY_PER_BYTE * len(data) + SPARE_BYTES

    # ---- bytes ----

    def take(self, n_bytes: int) -> bytes:
        """The next bytes of the file."""
        end = self.position + n_bytes
        if n_bytes < 0 or end > len(self.data):
            raise RefusedError("its pickle ends too early")
        taken = self.data[self.position : end]
        self.position = end
        return taken

    def number(self, kind: struct.Struct) -> Any:
        """The next number of the file."""
        return kind.unpack(self.take(kind.size))[0]

    def line(self) -> bytes:
        """The bytes up to the end of the line."""
        end = self.data.find(b"\n", self.position)
        if end < 0:
            raise RefusedError("its pickle ends too early")
        taken = self.data[self.position : end]
        self.position = end + 1
        return taken

    # ---- stack ----

    def pop(self) -> Any:
        """The topmost value."""
        value = self.stack.pop()
        if value is MARK:
            raise RefusedError("its pickle is malformed")
        return value

    def pop_group(self) -> list[Any]:
        """The values above the last mark."""
        stack = self.stack
        at = len(stack) - 1
        while stack[at] is not MARK:  # an IndexError below the bottom is caught by `load`
            at -= 1
            if at < 0:
                raise RefusedError("its pickle is malformed")
        group = stack[at + 1 :]
        del stack[at:]
        return group

    def spend(self, n_bytes: int) -> None:
        """Counts memory; what is given back is not counted back."""
        self.room_bytes -= n_bytes
        if self.room_bytes < 0:
            raise RefusedError("its pickle would take far more memory than its size")

    def push_container(self, value: Any) -> None:
        """Adds a new list, tuple or dict."""
        self.spend(CONTAINER_BYTES)
        self.stack.append(value)

    def push_tuple(self, n_items: int) -> None:
        """Replaces the topmost values by a tuple of them."""
        items = tuple(self.pop() for _ in range(n_items))[::-1]
        self.push_container(items)

    # ---- memo ----

    def remember(self, index: int) -> None:
        """Puts the topmost value aside."""
        if not 0 <= index < len(self.data):
            raise RefusedError("its pickle is malformed: a reference beyond its own size")
        if index >= len(self.memo):
            self.memo.extend(itertools.repeat(MARK, index + 1 - len(self.memo)))
        self.memo[index] = self.stack[-1]

    def recall(self, index: int) -> None:
        """Pushes what was put aside."""
        value = self.memo[index] if index >= 0 else MARK
        if value is MARK:
            raise RefusedError("its pickle is malformed: a reference to nothing")
        self.stack.append(value)

    # ---- filling ----

    def extend(self, items: list[Any]) -> None:
        """Adds items to the list on top; sets are lists here."""
        target = self.stack[-1]
        if type(target) is not list:
            raise RefusedError("its pickle is malformed: items for what is no list")
        target.extend(items)

    def update(self, items: Sequence[Any]) -> None:
        """Adds keys and values, one after the other, to the dict on top."""
        target = self.stack[-1]
        if type(target) is not dict:
            raise RefusedError("its pickle is malformed: keys for what is no dict")
        fill(target, zip(items[::2], items[1::2], strict=True))

    # ---- names and calls ----

    def push_global(self, module: object, name: object) -> None:
        """Resolves a name through the caller's list; nothing is imported."""
        if not isinstance(module, str) or not isinstance(name, str):
            raise RefusedError("its pickle is malformed: a name that is no text")
        if len(module) + len(name) > MAX_NAME:
            raise RefusedError("its pickle is malformed: an endless name")
        if (module, name) in self.functions:
            self.stack.append(_Callable(self.functions[module, name]))
        elif self.is_inert(module, name):
            self.stack.append(Name(f"{module}.{name}"))
        else:
            raise UnknownNameError(module, name)

    def call(self) -> None:
        """Calls a listed function; its work is counted by the size of what it is given."""
        arguments, function = self.pop(), self.pop()
        if not isinstance(function, _Callable) or not isinstance(arguments, tuple):
            raise RefusedError("its pickle is malformed: a call of what is no listed function")
        self.spend(CONTAINER_BYTES)
        for argument in arguments:
            if isinstance(argument, (str, bytes, bytearray)):
                self.spend(len(argument))
            elif isinstance(argument, (list, tuple, dict)):
                self.spend(CONTAINER_BYTES * len(argument))
        self.stack.append(function.function(*arguments))

    def build(self) -> None:
        """State for what was built: descriptions take theirs, everything else has none."""
        state, target = self.pop(), self.stack[-1]
        if isinstance(target, Description):
            target.set_state(state)
        elif type(target) is not dict:
            raise RefusedError("its pickle is malformed: state for what has none")

    def push_persistent(self) -> None:
        """A value that only the writing program understands."""
        if self.persistent is None:
            raise RefusedError("its pickle refers to something outside the file")
        self.spend(CONTAINER_BYTES)
        self.stack.append(self.persistent(self.pop()))


def fill(target: dict[Any, Any], pairs: Iterable[tuple[Any, Any]]) -> None:
    """Adds pairs to a dict whose keys may be text, bytes and integers of ordinary size.

    Raises:
        RefusedError: another kind of key: how long those take to store, the file could choose.
    """
    for key, value in pairs:
        if not isinstance(key, (str, bytes)) and not (isinstance(key, int) and abs(key) < MAX_KEY):
            raise RefusedError(f"it has a key of an unusual kind ({type(key).__name__})")
        target[key] = value
