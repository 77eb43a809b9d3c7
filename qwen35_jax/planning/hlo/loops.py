"""Counts how often each computation of a module runs, through loops, calls and branches.

When XLA compiles for a CPU or a GPU, it writes the trip count on each loop. For a TPU it does not; there the count
follows from the first value of the loop's counter, its step, and the bound in the condition.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from qwen35_jax.planning.hlo.text import Computation, Instruction, Module

_SAME_VALUE = {"copy", "bitcast", "convert", "reshape"}


@dataclass(frozen=True)
class Runs:
    """How often computations run in one run of the module.

    Attributes:
      times: for each computation that runs on its own or in a fusion. Those that a reduction applies are left out.
      fused: the computations in fusions.
      unknown_loops: loops whose trip count depends on data, counted as if they ran once.
    """

    times: dict[str, int]
    fused: set[str]
    unknown_loops: tuple[str, ...]


def count_runs(module: Module) -> Runs:
    """Follows the calls from the entry down. Every branch of a conditional counts as taken."""
    times, fused, unknown = defaultdict(int), set(), []
    times[module.entry] = 1
    # A computation stands before its callers, so from the end of the text all callers come first.
    for computation in reversed(module.computations.values()):
        if computation.name not in times:
            continue
        for instruction in computation.instructions.values():
            trips = 1
            if instruction.opcode == "while":
                trips = trip_count(module, computation, instruction)
                if trips is None:
                    unknown.append(instruction.name)
                    trips = 1
            for name in _runs(instruction):
                times[name] += trips * times[computation.name]
                if instruction.opcode == "fusion" or computation.name in fused:
                    fused.add(name)
    return Runs(dict(times), fused, tuple(unknown))


def trip_count(module: Module, computation: Computation, loop: Instruction) -> int | None:
    """Returns how often the ``while`` instruction ``loop`` runs its body, or None if the text does not tell."""
    if known := loop.attribute(r'"known_trip_count":\{"n":"(\d+)"'):
        return int(known)
    values = _Values(module)
    compared = values.comparison(module.computations[loop.called("condition")])
    if compared is None:
        return None
    left, direction, right = compared
    body = module.computations[loop.called("body")]

    def line(value: "_Linear") -> tuple[int, int] | None:
        """Returns the first value and the step of one side of the comparison."""
        if value.index is None:
            return value.offset, 0
        first = values.element(computation, loop.operand_names[0], value.index, None)
        after = values.element(body, body.root.name, value.index, None)
        if first is None or first.index is not None or after is None or after.index != value.index:
            return None
        return first.offset + value.offset, after.offset

    counter, limit = line(left), line(right)
    if counter is None or limit is None:
        return None
    (start, step), (bound, bound_step) = counter, limit
    return _trips(bound - start, step - bound_step, direction)


def _trips(distance: int, step: int, direction: str) -> int | None:
    """Counts the ``i`` from 0 with ``i * step`` still before ``distance``."""
    if direction in ("GT", "GE"):
        distance, step = -distance, -step
    distance += direction in ("LE", "GE")
    if direction not in ("LT", "LE", "GT", "GE") or step <= 0:
        return None
    return max(0, -(-distance // step))


def _runs(instruction: Instruction) -> list[str]:
    """Names the computations that an instruction runs as a whole, not once for each element."""
    match instruction.opcode:
        case "while":
            return [instruction.called("body")]
        case "call":
            return [instruction.called("to_apply")]
        case "fusion" | "async-start":
            return [instruction.called("calls")]
        case "conditional":
            if branches := instruction.attribute(r"branch_computations=\{([^}]*)\}"):
                return [name.strip().removeprefix("%") for name in branches.split(",")]
            return [instruction.called("true_computation"), instruction.called("false_computation")]
    return []


class _Linear(NamedTuple):
    """The integer ``offset`` plus element ``index`` of the tuple that the computation was given (None: plus 0)."""

    index: int | None
    offset: int


class _Values:
    """Evaluates integer scalars of a module as far as they are constants or counters."""

    def __init__(self, module: Module):
        self.computations = module.computations

    def comparison(self, condition: Computation) -> tuple[_Linear, str, _Linear] | None:
        """Returns the two sides of the comparison that the condition of a loop ends with."""
        root, scope, arguments = condition.root, condition, None
        if root.opcode == "fusion":
            arguments = [self.value(condition, name, None) for name in root.operand_names]
            scope = self.computations[root.called("calls")]
            root = scope.root
        if root.opcode != "compare":
            return None
        left, right = (self.value(scope, name, arguments) for name in root.operand_names)
        if left is None or right is None:
            return None
        return left, root.required(r"direction=(\w+)"), right

    def value(self, scope: Computation, name: str, arguments: Sequence[_Linear | None] | None) -> _Linear | None:
        """Evaluates a scalar. ``arguments`` are what a fused computation was given, and None in any other."""
        instruction = scope.instructions[name]
        names = instruction.operand_names
        if instruction.opcode in _SAME_VALUE:
            return self.value(scope, names[0], arguments)
        if instruction.opcode == "constant" and instruction.operands.lstrip("-").isdigit():
            return _Linear(None, int(instruction.operands))
        if instruction.opcode == "parameter" and arguments is not None:
            return arguments[int(instruction.operands)]
        if instruction.opcode == "get-tuple-element":
            return self.element(scope, names[0], int(instruction.required(r"index=(\d+)")), arguments)
        if instruction.opcode == "fusion":
            return self.element(scope, name, None, arguments)
        if instruction.opcode in ("add", "subtract"):
            left, right = (self.value(scope, operand, arguments) for operand in names)
            if left is None or right is None:
                return None
            if instruction.opcode == "subtract":
                return _Linear(left.index, left.offset - right.offset) if right.index is None else None
            if left.index is None or right.index is None:
                return _Linear(right.index if left.index is None else left.index, left.offset + right.offset)
        return None

    def element(
        self, scope: Computation, name: str, index: int | None, arguments: Sequence[_Linear | None] | None
    ) -> _Linear | None:
        """Evaluates element ``index`` of the tuple ``name``, or the scalar ``name`` if the index is None."""
        instruction = scope.instructions[name]
        if instruction.opcode == "fusion":
            inner = self.computations[instruction.called("calls")]
            given = [self.value(scope, operand, arguments) for operand in instruction.operand_names]
            return self.element(inner, inner.root.name, index, given)
        if index is None:
            return self.value(scope, name, arguments)
        if instruction.opcode == "tuple":
            return self.value(scope, instruction.operand_names[index], arguments)
        if instruction.opcode == "opt-barrier":
            return self.element(scope, instruction.operand_names[0], index, arguments)
        if instruction.opcode == "parameter" and arguments is None:
            return _Linear(index, 0)
        return None
