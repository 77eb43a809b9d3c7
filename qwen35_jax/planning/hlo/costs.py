"""Adds up what one run of a compiled program costs a device: operations, cycles, memory traffic, communication."""

import re
from collections import Counter
from dataclasses import dataclass

from qwen35_jax.planning.hlo.collectives import KINDS, exchange, find_continued
from qwen35_jax.planning.hlo.loops import count_runs
from qwen35_jax.planning.hlo.matmul_flops import product_flops
from qwen35_jax.planning.hlo.text import Instruction, Module, array_types, parse_module
from qwen35_jax.planning.hlo.traffic import Traffic, is_mark


@dataclass(frozen=True)
class Collective:
    """All collectives of one kind ("all-gather", ...).

    Attributes:
      count: how many run.
      bytes: what each device sends, and receives, in all of them together, if the data takes the shortest way round a
        ring of ``n`` devices. An all-gather sends ``(n - 1) / n`` of its result, a reduce-scatter or an all-to-all as
        much of its operand, an all-reduce twice as much, and a collective-permute its operand.
    """

    kind: str
    count: int
    bytes: float


@dataclass(frozen=True)
class Costs:
    """What one device does in one run of a program. A loop counts as often as it runs, and every branch counts.

    Attributes:
      flops: operations of ``dot`` and ``convolution``, in fusions too; a multiplication and an addition are two. The
        text does not show the products of a Pallas kernel.
      bytes: what instructions outside fusions read from and write to the main memory, without the padding of layouts.
        This estimates the HBM traffic.
      cycles: the sum of the compiler's own estimates, which it makes for TPUs only. They leave out waiting for
        collectives and for asynchronous copies. They are high: for whole training steps on v5e 1.6 to 2 times what the
        scheduled bundles of each instruction, or its traffic where that is longer, would take.
      without_cycles: how often custom calls (Pallas kernels) and custom fusions (gathers, scatters) run that have no
        estimate, by name. Collectives are not listed.
      collectives: by kind.
      unknown_loops: loops whose trip count depends on data; they count as if they ran once.
    """

    flops: float
    bytes: float
    cycles: int
    without_cycles: dict[str, int]
    collectives: list[Collective]
    unknown_loops: tuple[str, ...]

    def __add__(self, other: "Costs") -> "Costs":
        """Returns the costs of two programs that run one after the other."""
        kinds = {}
        for each in (*self.collectives, *other.collectives):
            before = kinds.get(each.kind, Collective(each.kind, 0, 0))
            kinds[each.kind] = Collective(each.kind, before.count + each.count, before.bytes + each.bytes)
        return Costs(
            self.flops + other.flops,
            self.bytes + other.bytes,
            self.cycles + other.cycles,
            dict(Counter(self.without_cycles) + Counter(other.without_cycles)),
            list(kinds.values()),
            (*self.unknown_loops, *other.unknown_loops),
        )


def read_costs(text: str) -> Costs:
    """Adds up the costs of a compiled program.

    Args:
      text: ``compiled.as_text()``.

    Raises:
      ValueError: it is not the text of an HLO module.
    """
    module = parse_module(text)
    runs = count_runs(module)
    continued = find_continued(module, runs.fused)
    traffic = Traffic(module, continued)
    flops = moved = cycles = 0
    without_cycles: Counter[str] = Counter()
    counts: Counter[str] = Counter()
    sent: dict[str, float] = {}
    for name, times in runs.times.items():
        computation = module.computations[name]
        for instruction in computation.instructions.values():
            flops += times * product_flops(computation, instruction)
            found = None if (name, instruction.name) in continued else exchange(module, computation, instruction)
            if found is not None:
                counts[found.kind] += times
                sent[found.kind] = sent.get(found.kind, 0) + times * found.bytes
            if name in runs.fused:
                continue
            moved += times * traffic(computation, instruction)
            if estimate := _estimated_cycles(instruction):
                cycles += times * estimate
            elif _works_unestimated(instruction) and not _communicates(module, instruction):
                without_cycles[re.sub(r"[\d.]+$", "", instruction.name)] += times
    collectives = [Collective(kind, counts[kind], sent[kind]) for kind in KINDS if counts[kind]]
    return Costs(flops, moved, cycles, dict(without_cycles), collectives, runs.unknown_loops)


def array_shapes(text: str) -> set[tuple[str, tuple[int, ...]]]:
    """Returns dtype and shape of every array that a compiled program stores in any memory.

    Values inside a fusion are left out, because they never exist as a whole. Those inside a Pallas kernel are left out
    too, because the text does not show them. Shapes are those of one device.

    Args:
      text: ``compiled.as_text()``.

    Raises:
      ValueError: it is not the text of an HLO module.
    """
    module = parse_module(text)
    runs = count_runs(module)
    types = {
        instruction.type
        for name in runs.times.keys() - runs.fused for instruction in module.computations[name].instructions.values()
    }  # fmt: skip
    return {(array.dtype, array.shape) for type_ in types for array in array_types(type_)}


def _estimated_cycles(instruction: Instruction) -> int:
    return int(instruction.attribute(r'"estimated_cycles":"(\d+)"') or 0)


def _works_unestimated(instruction: Instruction) -> bool:
    if instruction.opcode == "custom-call":
        return not is_mark(instruction)
    return instruction.opcode == "fusion" and "kind=kCustom" in instruction.attributes


def _communicates(module: Module, instruction: Instruction) -> bool:
    if instruction.opcode != "fusion":
        return False
    inner = module.computations[instruction.called("calls")]
    return any(x.opcode in KINDS for x in inner.instructions.values())
