"""Parses the text of an HLO module into computations of instructions, and types into arrays.

XLA prints an optimised module so: a computation starts at the left margin with its name and ends with ``}``. An
instruction is one line, ``%name = type opcode(operands), attributes``, and names its operands without their types.
"""

import functools
import math
import re
from dataclasses import dataclass, field

# Types of tuples and operand lists nest parentheses: layouts are written {1,0:T(8,128)(2,1)S(1)}.
_NESTED = r"\((?:[^()]++|\((?:[^()]++|\((?:[^()]++|\([^()]*+\))*+\))*+\))*+\)"
_INSTRUCTION = re.compile(
    rf"\s+(?P<root>ROOT )?%(?P<name>[\w.\-]+) = (?P<type>{_NESTED}|\S+) (?P<opcode>[\w\-]+)(?P<operands>{_NESTED})"
)
_COMPUTATION = re.compile(r"(?P<entry>ENTRY )?%(?P<name>[\w.\-]+) .*\{$")
# The attributes of a Pallas kernel may go on over several lines, some of which start with a brace.
_END = re.compile(r"\}(?:, execution_thread=.*)?")
_ARRAY = re.compile(r"\b(?P<dtype>pred|[subfc]\d+|bf16|f8\w+|f4\w+)\[(?P<dims>[\d,<=]*)\](?:\{(?P<layout>[^{}]*)\})?")
_NAME = re.compile(r"%([\w.\-]+)")


@dataclass(frozen=True)
class ArrayType:
    """An array in memory; ``space`` is 0 for the main memory of the device (HBM on a TPU)."""

    dtype: str
    shape: tuple[int, ...]
    space: int

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def num_bytes(self) -> int:
        """The bytes of the elements, without the padding of a tiled layout."""
        if self.dtype == "pred":
            return self.size
        bits = int("".join(re.findall(r"\d+", self.dtype)[:1]))
        return (self.size * bits + 7) // 8


@dataclass(frozen=True, slots=True)
class Instruction:
    """One instruction: ``operands`` and ``attributes`` are the text inside and after the parentheses."""

    name: str
    type: str
    opcode: str
    operands: str
    attributes: str
    is_root: bool

    @property
    def operand_names(self) -> list[str]:
        return _NAME.findall(self.operands)

    @property
    def arrays(self) -> tuple[ArrayType, ...]:
        """The arrays of the result, those of a tuple in order."""
        return array_types(self.type)

    def attribute(self, pattern: str) -> str | None:
        """Returns the group of ``pattern`` where it first matches the attributes."""
        match = re.search(pattern, self.attributes)
        return match and match[1]

    def required(self, pattern: str) -> str:
        """Returns the same group of an attribute that such instructions always have."""
        found = self.attribute(pattern)
        assert found is not None, f"{self.name} has no attribute {pattern}"
        return found

    def called(self, role: str) -> str:
        """Returns the name of the computation that this instruction calls as ``role`` ("calls", "body", ...)."""
        return self.required(rf"\b{role}=%([\w.\-]+)")


@dataclass
class Computation:
    """Instructions by name, in the order of the text: operands before their users."""

    name: str
    instructions: dict[str, Instruction] = field(default_factory=dict)

    @property
    def root(self) -> Instruction:
        return next(x for x in reversed(self.instructions.values()) if x.is_root)

    def operands(self, instruction: Instruction) -> list[Instruction]:
        return [self.instructions[name] for name in instruction.operand_names]


@dataclass(frozen=True)
class Module:
    """Computations by name, in the order of the text: a computation stands before those that call it."""

    computations: dict[str, Computation]
    entry: str
    num_devices: int


def parse_module(text: str) -> Module:
    """Reads a module.

    Raises:
      ValueError: the text is not that of an HLO module, for it has no entry computation.
    """
    computations, current, entry = {}, None, None
    for line in text.splitlines():
        if current is None:
            if line.startswith(("%", "ENTRY")) and (match := _COMPUTATION.match(line)):
                current = computations.setdefault(match["name"], Computation(match["name"]))
                entry = match["name"] if match["entry"] else entry
        elif _END.fullmatch(line):
            current = None
        elif match := _INSTRUCTION.match(line):
            instruction = Instruction(
                match["name"], match["type"], match["opcode"], match["operands"][1:-1], line[match.end() :],
                match["root"] is not None,
            )  # fmt: skip
            current.instructions[instruction.name] = instruction
    if entry is None:
        raise ValueError(f"no ENTRY computation in a text of {len(text)} characters; pass `compiled.as_text()`.")
    counts = re.findall(r"\b(?:num_partitions|replica_count)=(\d+)", text[: text.find("\n")])
    return Module(computations, entry, math.prod(map(int, counts)))


@functools.lru_cache(maxsize=1 << 16)
def array_types(text: str) -> tuple[ArrayType, ...]:
    """Returns the arrays named in the text of a type, those of a tuple in order."""
    found = []
    for match in _ARRAY.finditer(text):
        shape = tuple(int(size.removeprefix("<=")) for size in match["dims"].split(",") if size)
        space = re.search(r"S\((\d+)\)", match["layout"] or "")
        found.append(ArrayType(match["dtype"], shape, int(space[1]) if space else 0))
    return tuple(found)
