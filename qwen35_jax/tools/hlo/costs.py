"""What one run of a compiled program costs a device: operations, cycles, memory traffic, communication."""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from qwen35_jax.tools.devices import Device
from qwen35_jax.tools.hlo.collectives import KINDS, exchange, find_continued
from qwen35_jax.tools.hlo.loops import count_runs
from qwen35_jax.tools.hlo.products import product_flops
from qwen35_jax.tools.hlo.text import Computation, Instruction, Module, array_types, parse_module
from qwen35_jax.tools.hlo.traffic import Traffic, is_mark


@dataclass(frozen=True)
class Collective:
    """All collectives of one kind ("all-gather", ...).

    Attributes:
      count: how many run.
      bytes: what each device sends, and receives, in all of them when the data takes the shortest way round a ring of
        ``n`` devices: for an all-gather ``(n - 1) / n`` of its result, for a reduce-scatter or an all-to-all as much
        of its operand, for an all-reduce twice as much, for a collective-permute the operand.
    """

    kind: str
    count: int
    bytes: float


class Piece(NamedTuple):
    """An instruction outside fusions that runs ``times`` times, each time with these operations and bytes."""

    times: int
    flops: int
    bytes: int


@dataclass(frozen=True)
class Costs:
    """What one device does in one run of a program. Loops count as often as they run, branches always.

    Attributes:
      pieces: the operations and the memory traffic, instruction by instruction.
      cycles: the compiler's own estimates, added up. Only for a TPU does it make any; waiting for collectives and for
        asynchronous copies is not in them.
      without_cycles: the custom calls (Pallas kernels) and custom fusions (gathers, scatters) that run without an
        estimate, by name, with how often they run. Collectives are not listed.
      collectives: by kind.
      unknown_loops: loops whose trip count depends on data; they count as if they ran once.
    """

    pieces: tuple[Piece, ...] = field(repr=False)
    cycles: int
    without_cycles: dict[str, int]
    collectives: list[Collective]
    unknown_loops: tuple[str, ...]

    @property
    def flops(self) -> int:
        """Operations of ``dot`` and ``convolution``; a multiplication and an addition are two.

        A Pallas kernel hides its products.
        """
        return sum(piece.times * piece.flops for piece in self.pieces)

    @property
    def bytes(self) -> int:
        """Bytes read from and written to the main memory: an estimate, see ``Traffic``."""
        return sum(piece.times * piece.bytes for piece in self.pieces)

    def least_seconds(self, device: Device) -> float:
        """Returns the time in which a device could do this at its peak figures, one instruction after the other.

        Each instruction takes as long as the longer of its products and its memory traffic. Communication is taken to
        hide behind them. Pallas kernels count by their traffic alone.
        """
        return sum(
            piece.times * max(piece.flops / device.peak_flops, piece.bytes / device.hbm_bytes_per_second)
            for piece in self.pieces
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
    pieces, cycles, without_cycles, counts, sent = [], 0, Counter(), Counter(), Counter()
    for name in runs.times.keys() - runs.fused:
        computation, times = module.computations[name], runs.times[name]
        for instruction in computation.instructions.values():
            flops, exchanges, communicates = 0, [], False
            for scope, inner in _with_inside(module, computation, instruction):
                flops += product_flops(scope, inner)
                if found := exchange(module, scope, inner):
                    communicates = True
                    exchanges += [] if (scope.name, inner.name) in continued else [found]
            for found in exchanges:
                counts[found.kind] += times
                sent[found.kind] += times * found.bytes
            if (moved := traffic(computation, instruction)) or flops:
                pieces.append(Piece(times, flops, moved))
            if estimate := instruction.attribute(r'"estimated_cycles":"(\d+)"'):
                cycles += times * int(estimate)
            elif not communicates and _works_unestimated(instruction):
                without_cycles[re.sub(r"[\d.]+$", "", instruction.name)] += times
    collectives = [Collective(kind, counts[kind], sent[kind]) for kind in KINDS if counts[kind]]
    return Costs(tuple(pieces), cycles, dict(without_cycles), collectives, runs.unknown_loops)


def _with_inside(
    module: Module, computation: Computation, instruction: Instruction
) -> Iterator[tuple[Computation, Instruction]]:
    """Yields an instruction and, if it is a fusion, all those that run inside it, with the computation of each."""
    yield computation, instruction
    if instruction.opcode == "fusion":
        inside = module.computations[instruction.called("calls")]
        for inner in inside.instructions.values():
            yield from _with_inside(module, inside, inner)


def array_shapes(text: str) -> set[tuple[str, tuple[int, ...]]]:
    """Returns dtype and shape of every array that a compiled program stores in any memory.

    Values inside a fusion are left out, for they only ever exist in part; so are those inside a Pallas kernel, which
    the text does not show. Shapes are those of one device.

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


def _works_unestimated(instruction: Instruction) -> bool:
    if instruction.opcode == "custom-call":
        return not is_mark(instruction)
    return instruction.opcode == "fusion" and "kind=kCustom" in instruction.attributes
