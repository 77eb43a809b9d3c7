"""Bicubic resizing with antialias, equal bit for bit to what torch does to pictures of bytes.

Each output row (and then each column) is a weighted sum of a few input rows. The weights are whole numbers of 16 bits
over a power of two, and the sum is rounded to a byte. Products and sums of such numbers are exact in floating point, in
any order, so matrix products can compute them: 16 outputs at a time, from the inputs that these need.

Pillow rounds its weights to other digits. Its results differ from torch's by one in some bytes of a thousand.

Letters: ``H`` rows and ``W`` columns of a picture.

Source: ``upsample_bicubic2d`` with ``antialias=True`` of torch 2.13, for uint8 on a CPU; what torchvision's ``resize``
calls. The kernel is Keys', with a = -0.5.
"""

import functools
import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, Int64, UInt8

from qwen35_jax.processing.threads import in_shares

# Outputs of one matrix product. More would multiply by more zeros.
_BLOCK = 16
# Rows or columns in one go: what the two passes touch stays in a core's cache, and a product stays small enough for the
# BLAS to run it in the calling thread.
_TILE = 128
_COLUMNS = 512
# Weights are below 2**15, and are scaled up by at most 2**22.
_WEIGHT_BITS, _MOST_BITS = 15, 22


class _Block(NamedTuple):
    """Outputs ``[start, stop)`` as ``matrix`` times the inputs ``[first, last)``."""

    start: int
    stop: int
    first: int
    last: int
    matrix: np.ndarray


def resize_bicubic(image: UInt8[np.ndarray, "H W 3"], height: int, width: int) -> UInt8[np.ndarray, "3 h w"]:
    """Resizes a picture.

    Returns:
      One plane for each colour, which is the order that patches need.
    """
    planes = _resize_columns(image, width)
    return planes if height == planes.shape[1] else _resize_rows(planes, height)


def _resize_columns(image: UInt8[np.ndarray, "H W 3"], width: int) -> UInt8[np.ndarray, "3 H w"]:
    rows, old_width = image.shape[:2]
    out = np.empty((3, rows, width), np.uint8)
    if width == old_width:
        out[...] = image.transpose(2, 0, 1)
        return out
    blocks = _blocks(old_width, width)
    dtype = blocks[0].matrix.dtype

    def resize(tops: range) -> None:
        read, sums = np.empty(3 * _TILE * old_width, dtype), np.empty(3 * _TILE * width, dtype)
        for top in tops:
            lines = 3 * min(_TILE, rows - top)
            inputs = read[: lines * old_width].reshape(lines, old_width)
            outputs = sums[: lines * width].reshape(lines, width)
            inputs.reshape(3, -1, old_width)[...] = image[top : top + _TILE].transpose(2, 0, 1)
            for start, stop, first, last, matrix in blocks:
                np.matmul(inputs[:, first:last], matrix.T, out=outputs[:, start:stop])
            _round_into(out[:, top : top + _TILE], outputs.reshape(3, -1, width))

    in_shares(resize, range(0, rows, _TILE))
    return out


def _resize_rows(planes: UInt8[np.ndarray, "3 H W"], height: int) -> UInt8[np.ndarray, "3 h W"]:
    columns = planes.shape[2]
    out = np.empty((3, height, columns), np.uint8)
    blocks = _blocks(planes.shape[1], height)

    def resize(lefts: range) -> None:
        for left in lefts:
            part = slice(left, left + _COLUMNS)
            for start, stop, first, last, matrix in blocks:
                _round_into(out[:, start:stop, part], matrix @ planes[:, first:last, part].astype(matrix.dtype))

    in_shares(resize, range(0, columns, _COLUMNS))
    return out


def _round_into(out: np.ndarray, sums: np.ndarray) -> None:
    """Rounds halves up, as the added half and the shift of whole numbers do."""
    sums += 0.5
    np.clip(sums, 0, 255, out=sums)
    np.copyto(out, sums, casting="unsafe")


@functools.lru_cache(maxsize=64)
def _blocks(size: int, new_size: int) -> tuple[_Block, ...]:
    """Returns the matrices that turn ``size`` inputs into ``new_size`` outputs, in the type in which all is exact."""
    first, weights = _weights(size, new_size)
    bits = _precision(weights)
    scaled = weights * 2.0**bits
    whole = np.trunc(scaled + np.copysign(0.5, scaled))
    # Exact in float32 while no sum, with the half that rounds, needs more than 24 bits.
    exact = np.abs(whole).sum(axis=1).max() * 255 + 2.0 ** (bits - 1) < 2**24
    whole = (whole / 2.0**bits).astype(np.float32 if exact else np.float64)
    taps = np.arange(weights.shape[1])
    blocks = []
    for start in range(0, new_size, _BLOCK):
        stop = min(start + _BLOCK, new_size)
        begin, end = int(first[start]), min(int(first[stop - 1]) + len(taps), size)
        columns = first[start:stop, None] - begin + taps
        # Weights beyond the last input are zero; they get columns that are cut off.
        matrix = np.zeros((stop - start, columns.max() + 1), whole.dtype)
        matrix[np.arange(stop - start)[:, None], columns] = whole[start:stop]
        blocks.append(_Block(start, stop, begin, end, np.ascontiguousarray(matrix[:, : end - begin])))
    return tuple(blocks)


def _weights(size: int, new_size: int) -> tuple[Int64[np.ndarray, " h"], Float64[np.ndarray, "h taps"]]:
    """Returns for each output its first input, and the weights of that and the following ones; they sum to 1."""
    scale = size / new_size
    support = 2 * max(scale, 1.0)
    taps = np.arange(math.ceil(support) * 2 + 1)
    centre = scale * (np.arange(new_size) + 0.5)
    first = np.maximum((centre - support + 0.5).astype(np.int64), 0)
    count = np.minimum((centre + support + 0.5).astype(np.int64), size) - first
    weights = _keys((taps + first[:, None] - centre[:, None] + 0.5) * (1 / max(scale, 1.0)))
    weights[taps >= count[:, None]] = 0
    # One after the other, as torch adds them: another order would round differently.
    return first, weights / weights.cumsum(axis=1)[:, -1:]


def _keys(x: Float64[np.ndarray, "h taps"]) -> Float64[np.ndarray, "h taps"]:
    x, a = np.abs(x), -0.5
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))


def _precision(weights: Float64[np.ndarray, "h taps"]) -> int:
    """Returns how many bits after the point leave the largest weight below ``2**15``."""
    bits = 0
    while bits < _MOST_BITS and int(0.5 + weights.max() * 2 ** (bits + 1)) < 2**_WEIGHT_BITS:
        bits += 1
    return bits
