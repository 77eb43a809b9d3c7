"""Counts the bytes that instructions read from and write to the main memory of a device."""

import functools

from qwen35_jax.planning.hlo.text import ArrayType, Computation, Instruction, Module

_FREE = {
    "after-all", "async-start", "bitcast", "call", "conditional", "constant", "get-tuple-element", "opt-barrier",
    "parameter", "partition-id", "replica-id", "tuple", "while",
}  # fmt: skip
_SLICES = {"dynamic-slice", "gather", "slice"}
# These write in place, and only the part of the first operand that this other operand gives.
_UPDATES = {"dynamic-update-slice": 1, "scatter": 2}
_VIEWS = {"bitcast", "convert", "copy", "reshape"}
# The TPU compiler marks buffers by these custom calls, which move nothing themselves.
MARKS = ("AllocateBuffer", "AssumeGatherIndicesInBound", "AsyncCollectiveDone", "AsyncCollectiveStart", "ConcatBitcast")


class Traffic:
    """Counts the bytes of instructions outside fusions.

    A fusion reads its operands and writes its results once. Of an operand that it only slices, the slice counts; of one
    that it updates in place, the updated part. Arrays that the compiler keeps in the chip's own memory (a layout with
    ``S(1)``) are free, but their way there and back is not. The padding of layouts is left out.
    """

    def __init__(self, module: Module, continued: set[tuple[str, str]]):
        """``continued`` names, as (computation, instruction), those that only wait for a collective of another."""
        self.computations = module.computations
        self.continued = continued

    def __call__(self, computation: Computation, instruction: Instruction) -> int:
        if instruction.opcode in _FREE or instruction.opcode.endswith(("-done", "-update")) or is_mark(instruction):
            return 0
        if instruction.opcode == "copy-start":
            return _stored(instruction.arrays[:2])
        if instruction.opcode == "slice-start":
            source, *_, part, _ = instruction.arrays
            return part.num_bytes * (source.space == 0) + _stored([part])
        if instruction.opcode.endswith("-start") and instruction.opcode != "all-reduce-start":
            return _stored(instruction.arrays)  # operands and results
        read = 0
        for position, operand in enumerate(computation.operands(instruction)):
            read += min(_stored(operand.arrays), self._read(computation.name, instruction, position))
        return read + self._written(computation, instruction)

    def _read(self, scope: str, user: Instruction, position: int) -> int:
        """Returns the bytes that ``user`` takes of its operand, in whichever memory that lies."""
        if user.opcode == "fusion":
            return self._read_inside(user.called("calls"), position)
        if position == 0 and user.opcode in _SLICES:
            return _all(user.arrays)
        if (position == 0 and user.opcode in _UPDATES) or (scope, user.name) in self.continued or is_mark(user):
            return 0
        operand = self.computations[scope].instructions[user.operand_names[position]]
        return _all(operand.arrays)

    @functools.cache  # noqa: B019  an instance lives for one module
    def _read_inside(self, name: str, position: int) -> int:
        """Returns the bytes that a fused computation takes of one of its parameters."""
        computation, users = self.computations[name], self._users(name)
        parameter = next(
            x for x in computation.instructions.values() if x.opcode == "parameter" and int(x.operands) == position
        )
        total, views = 0, [parameter.name]
        while views:
            for user, place in users.get(views.pop(), ()):
                if user.opcode in _VIEWS and not user.is_root:
                    views.append(user.name)
                elif user.opcode != "tuple":
                    total += self._read(name, user, place)
        return total

    @functools.cache  # noqa: B019
    def _users(self, name: str) -> dict[str, list[tuple[Instruction, int]]]:
        users = {}
        for instruction in self.computations[name].instructions.values():
            for place, operand in enumerate(instruction.operand_names):
                users.setdefault(operand, []).append((instruction, place))
        return users

    def _written(self, computation: Computation, instruction: Instruction) -> int:
        arrays = instruction.arrays
        if instruction.opcode != "fusion":
            return min(_stored(arrays), self._changed(computation, instruction))
        inner = self.computations[instruction.called("calls")]
        root = inner.root
        results = inner.operands(root) if root.opcode == "tuple" else [root]
        if len(results) != len(arrays):  # a result that is a tuple itself
            return min(_stored(arrays), sum(self._changed(inner, x) for x in results))
        return sum(
            min(array.num_bytes, self._changed(inner, x))
            for array, x in zip(arrays, results, strict=True) if array.space == 0
        )  # fmt: skip

    def _changed(self, scope: Computation, result: Instruction) -> int:
        """Returns the bytes of a result that are new, in whichever memory they lie."""
        operands = result.operand_names
        if result.opcode in _UPDATES:
            return _all(scope.instructions[operands[_UPDATES[result.opcode]]].arrays)
        if result.opcode == "parameter" or (scope.name, result.name) in self.continued:
            return 0
        if is_mark(result):
            return _all(scope.instructions[operands[0]].arrays) if "AsyncCollectiveStart" in result.attributes else 0
        if result.opcode == "fusion":
            inner = self.computations[result.called("calls")]
            return self._changed(inner, inner.root)
        if result.opcode in ("tuple", "get-tuple-element"):
            return sum(self._changed(scope, scope.instructions[name]) for name in operands)
        source = scope.instructions[operands[0]] if result.opcode in _VIEWS else None
        if source is not None and source.opcode in {*_UPDATES, *_VIEWS}:
            return self._changed(scope, source)
        return _all(result.arrays)


def is_mark(instruction: Instruction) -> bool:
    """Whether this is a custom call that moves and computes nothing."""
    return instruction.opcode == "custom-call" and any(
        f'custom_call_target="{mark}"' in instruction.attributes for mark in MARKS
    )


def _stored(arrays) -> int:
    """Returns the bytes of the arrays that lie in the main memory of the device."""
    return sum(array.num_bytes for array in arrays if array.space == 0)


def _all(arrays: tuple[ArrayType, ...]) -> int:
    return sum(array.num_bytes for array in arrays)
