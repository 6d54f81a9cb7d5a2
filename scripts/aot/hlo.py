"""Reads the text of an optimized HLO module: kernels, the bytes they move, collectives, cycles."""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

ITEM_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2}
ITEM_BYTES |= {"f32": 4, "s32": 4, "u32": 4, "f64": 8, "s64": 8, "u64": 8, "c64": 8, "c128": 16}
NO_KERNEL = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all"}
NO_KERNEL |= {"partition-id", "replica-id", "opt-barrier"}
CALLS = {"call", "conditional", "while"}
COLLECTIVES = ("all-gather", "all-reduce", "all-to-all", "collective-permute", "reduce-scatter")


@dataclass(frozen=True)
class Instruction:
    """One line of a computation.

    Attributes:
        name: its name.
        shape: type of the result, as text.
        opcode: what it does.
        operands: names of the operands.
        attributes: the rest of the line.
    """

    name: str
    shape: str
    opcode: str
    operands: tuple[str, ...]
    attributes: str


class Module:
    """An optimized module: computations by name, and which one is the entry."""

    def __init__(self, text: str):
        self.computations: dict[str, list[Instruction]] = {}
        self.entry = ""
        lines: list[Instruction] | None = None
        # What a Pallas kernel says of itself is the one thing that is spread over lines.
        text = re.sub(r"kernel_metadata=\{\n(.*?)\n\}", r"kernel_metadata={\1}", text, flags=re.S)
        for line in text.splitlines():
            head = re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\{\s*$", line)
            if head:
                lines = self.computations.setdefault(head[2], [])
                self.entry = head[2] if head[1] else self.entry
            elif line.startswith("}"):
                lines = None
            elif lines is not None and (found := _instruction(line)):
                lines.append(found)
        if not self.entry:
            raise ValueError("no ENTRY computation: not the text of an HLO module")

    def kernels(self, computation: str | None = None) -> Iterator[tuple[Instruction, int]]:
        """Every instruction that runs on the device, with the bytes it reads and writes.

        Bodies of loops, calls and branches count once. Caches make real traffic lower.
        """
        instructions = self.computations[computation or self.entry]
        shapes = {instruction.name: instruction.shape for instruction in instructions}
        for instruction in instructions:
            if instruction.opcode in CALLS:
                for body in called(instruction):
                    yield from self.kernels(body)
            elif instruction.opcode not in NO_KERNEL:
                moved = sum(size_bytes(shapes.get(name, "")) for name in instruction.operands)
                yield instruction, moved + size_bytes(instruction.shape)

    def collectives(self) -> dict[str, int]:
        """How often each kind of exchange between devices occurs."""
        found = Counter(
            instruction.opcode.removesuffix("-start")
            for instructions in self.computations.values()
            for instruction in instructions
        )
        return {kind: found[kind] for kind in COLLECTIVES if found[kind]}

    def whiles(self) -> list[int | None]:
        """Trip count of every loop; None where only the data decides."""
        return [
            trip_count(instruction)
            for instructions in self.computations.values()
            for instruction in instructions
            if instruction.opcode == "while"
        ]

    def tpu_kernels(self) -> Iterator[tuple[str, str, int]]:
        """Pallas kernels for TPUs: the name of each, its text, and how many programs it is."""
        for instruction, _ in self.kernels():
            programs = re.search(r'kernel_metadata=\{"programs":"(\d+)"', instruction.attributes)
            text = re.search(r'"body":"([^"]*)"', instruction.attributes)
            if programs and text:
                yield instruction.name, text[1], int(programs[1])

    def cycles(self, computation: str | None = None) -> int:
        """The TPU compiler's own estimate, loops by their trip count (once where unknown).

        Pallas kernels are left out: it has none of them.
        """
        total = 0
        for instruction in self.computations[computation or self.entry]:
            estimate = re.search(r'"estimated_cycles":"(\d+)"', instruction.attributes)
            total += int(estimate[1]) if estimate else 0
            if instruction.opcode == "while":
                body = re.search(r"body=%([\w.\-]+)", instruction.attributes)
                assert body is not None
                total += (trip_count(instruction) or 1) * self.cycles(body[1])
        return total


def trip_count(loop: Instruction) -> int | None:
    """How often a loop runs, where the compiler knows."""
    count = re.search(r'known_trip_count":\{"n":"(\d+)"', loop.attributes)
    return int(count[1]) if count else None


def called(instruction: Instruction) -> list[str]:
    """Computations that a call, a loop or a conditional runs."""
    names = re.findall(
        r"(?:to_apply|true_computation|false_computation|body|condition)=%([\w.\-]+)",
        instruction.attributes,
    )
    for branches in re.findall(r"branch_computations=\{([^}]*)\}", instruction.attributes):
        names += re.findall(r"%([\w.\-]+)", branches)
    return names


def size_bytes(shape: str) -> int:
    """Bytes of a type as HLO writes it, tuples included: `(f32[8,4]{1,0}, bf16[2])`."""
    total = 0
    for item, dims in re.findall(r"(\w+)\[([\d,]*)\]", shape):
        count = ITEM_BYTES.get(item, 0)
        for dim in filter(None, dims.split(",")):
            count *= int(dim)
        total += count
    return total


def _instruction(line: str) -> Instruction | None:
    found = re.match(r"\s*(?:ROOT )?%([\w.\-]+) = (.*)$", line)
    if not found:
        return None
    name, rest = found.groups()
    end = _closing(rest) if rest.startswith("(") else rest.find(" ")
    shape, rest = rest[:end], rest[end:].strip()
    call = re.match(r"([\w\-]+)\(", rest)
    if not call:
        return None
    end = _closing(rest[len(call[1]) :]) + len(call[1])
    operands = tuple(re.findall(r"%([\w.\-]+)", rest[:end]))
    return Instruction(name, shape, call[1], operands, rest[end:])


def _closing(text: str) -> int:
    """Where the bracket that opens the text is closed, exclusive."""
    depth = 0
    for at, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if depth == 0:
            return at + 1
    return len(text)
