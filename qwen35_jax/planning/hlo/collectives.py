"""Finds the instructions of a module that exchange data between devices, and how much they send."""

import math
import re
from dataclasses import dataclass

from qwen35_jax.planning.hlo.text import Computation, Instruction, Module

KINDS = ("all-gather", "all-reduce", "all-to-all", "collective-permute", "reduce-scatter")


@dataclass(frozen=True)
class Exchange:
    """The kind of an instruction that communicates, and the bytes that each device sends in one run of it."""

    kind: str
    bytes: float


def find_continued(module: Module, fused: set[str]) -> set[tuple[str, str]]:
    """Returns, as (computation, instruction), the collectives that only continue what another one started.

    The TPU compiler spreads an asynchronous collective over fusions. The first ends in the custom call
    ``AsyncCollectiveStart``. Later ones hold the same collective again, under the same channel, beside work of their
    own or with ``AsyncCollectiveDone``.
    """
    started, first = set(), set()
    for name in fused:
        computation = module.computations[name]
        for instruction in computation.instructions.values():
            if 'custom_call_target="AsyncCollectiveStart"' in instruction.attributes:
                for operand in computation.operands(instruction):
                    started.add(_channel(operand))
                    first.add((name, operand.name))
    again = {
        (name, instruction.name)
        for name in fused for instruction in module.computations[name].instructions.values()
        if instruction.opcode in KINDS and _channel(instruction) in started
    }  # fmt: skip
    return again - first


def exchange(module: Module, computation: Computation, instruction: Instruction) -> Exchange | None:
    """Returns what an instruction exchanges, or None if it does not communicate or ends what another began."""
    kind = instruction.opcode.removesuffix("-start")
    if kind not in KINDS:
        return None
    given = sum(array.num_bytes for x in computation.operands(instruction) for array in x.arrays)
    # On TPUs a fusion of an all-reduce and a slice is a reduction of which each device keeps a part.
    if kind == "all-reduce" and computation.root.opcode == "dynamic-slice":
        kind = "reduce-scatter"
    others = group_size(instruction, module.num_devices) - 1
    share = {
        "all-gather": others,
        "all-reduce": 2 * others / (others + 1),
        "all-to-all": others / (others + 1),
        "collective-permute": 1,
        "reduce-scatter": others / (others + 1),
    }[kind]
    return Exchange(kind, given * share)


def group_size(instruction: Instruction, num_devices: int) -> int:
    """Returns how many devices exchange data with each other, from any form of ``replica_groups`` that XLA writes."""
    groups = instruction.attribute(r"replica_groups=(\{\{[\d,]+\}|\[[\d,]+\]|mesh\[[^\]]*\] ?\{[^}]*\})")
    if groups is None:
        return num_devices
    if groups.startswith("{"):
        return groups.count(",") + 1
    if groups.startswith("["):
        return int(groups[1:-1].split(",")[-1])
    mesh, axes = groups.removeprefix("mesh[").split("]")
    sizes = dict(re.findall(r"'([^']+)'=(\d+)", mesh))
    # An axis may be used in part: 'x':(2)4 is four consecutive devices out of two times four.
    return math.prod(int(part or sizes[axis]) for axis, part in re.findall(r"'([^']+)'(?::\(\d+\)(\d+))?", axes))


def _channel(instruction: Instruction) -> str | None:
    return instruction.attribute(r"channel_id=(\d+)")
