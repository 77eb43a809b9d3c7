"""Counts the operations of a matrix product, which is a ``dot`` or, in most TPU programs, a ``convolution``."""

import functools
import math
import re

import numpy as np

from qwen35_jax.planning.hlo.text import Computation, Instruction


def product_flops(computation: Computation, instruction: Instruction) -> int:
    """Returns twice the multiplications of a matrix product, and 0 for any other instruction."""
    if instruction.opcode == "dot":
        left = computation.instructions[instruction.operand_names[0]].arrays[0]
        contracted = _numbers(instruction.attribute(r"lhs_contracting_dims=\{([\d,]*)\}") or "", ",")
        return 2 * instruction.arrays[0].size * math.prod(left.shape[axis] for axis in contracted)
    if instruction.opcode == "convolution":
        return _convolution_flops(computation, instruction)
    return 0


def _convolution_flops(computation: Computation, instruction: Instruction) -> int:
    """Counts the pairs of an input element and a kernel element that are multiplied, without padding and dilation.

    The TPU compiler writes the batch axes of a product as spatial axes. It dilates them, so that each entry of one
    factor meets only its own entry of the other.
    """
    inputs, kernel = (x.arrays[0].shape for x in computation.operands(instruction))
    input_labels, kernel_labels, labels = re.split("_|->", instruction.required(r"dim_labels=(\S+?)(?:,|$)"))
    result = instruction.arrays[0].shape
    window = instruction.attribute(r"window=\{([^}]*)\}") or ""
    options = dict(part.split("=") for part in window.split())
    multiplications = result[labels.index("b")] * result[labels.index("f")] * kernel[kernel_labels.index("i")]
    for axis in range(len(labels) - 2):
        label = str(axis)
        multiplications *= _meetings(
            inputs[input_labels.index(label)], kernel[kernel_labels.index(label)], result[labels.index(label)],
            _option(options, "stride", axis, 1), _low_padding(options, axis),
            _option(options, "lhs_dilate", axis, 1), _option(options, "rhs_dilate", axis, 1),
        )  # fmt: skip
    return 2 * multiplications


@functools.lru_cache(maxsize=4096)
def _meetings(size: int, window: int, results: int, stride: int, pad: int, dilation: int, window_dilation: int) -> int:
    """Counts, along one spatial axis, the pairs (result, window position) that fall on an element of the input."""
    position = np.arange(results)[:, None] * stride + np.arange(window) * window_dilation - pad
    return int(np.sum((position >= 0) & (position <= (size - 1) * dilation) & (position % dilation == 0)))


def _option(options: dict[str, str], name: str, axis: int, default: int) -> int:
    return _numbers(options[name], "x")[axis] if name in options else default


def _low_padding(options: dict[str, str], axis: int) -> int:
    return int(options["pad"].split("x")[axis].split("_")[0]) if "pad" in options else 0


def _numbers(text: str, separator: str) -> list[int]:
    return [int(number) for number in text.split(separator) if number]
