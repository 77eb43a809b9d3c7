"""Batches of image patches, made on the host: which frame each patch is of, and where it lies in it.

Letters: ``P`` patches, ``C`` values of a patch, ``R`` rows of a batch.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int, Int64, UInt8

from qwen35_jax.config_vision import VisionConfig

# Every size is a multiple of this: 64 tokens of 4 patches each, which TPU kernels cut without a rest.
_STEP = 4 * 64


class Patches(NamedTuple):
    """Patches of images and videos, as the tower reads them: numpy arrays, or JAX arrays on a device.

    Row ``r`` of ``R`` holds the patches of sequences ``r B / R`` to ``(r + 1) B / R - 1`` of a batch of ``B``, in
    reading order. Within a frame they lie in merge-block order: the patches that become one token are neighbours.

    Attributes:
      pixels: [R, P, C], where ``C`` is channels x frames of a patch x side x side, in that order: uint8 from 0 to 255,
        or the normalised values (from -1 to 1) in a float type.
      frames: int32 [R, P]: 0 for padding, then 1, 2, ...: the frame (of two pictures in a video) that a patch is of.
        Patches attend to their own frame.
      places: int32 [R, P, 4]: row and column of the patch in the grid of its frame, then the grid's rows and columns.
    """

    pixels: Any
    frames: Any
    places: Any


def patch_places(
    grids: Int[np.ndarray, "n 3"], merge_size: int = 2
) -> tuple[Int[np.ndarray, " P"], Int[np.ndarray, "P 4"]]:
    """Returns ``Patches.frames`` and ``Patches.places`` of images and videos that follow each other.

    Args:
      grids: for each of them its frames, rows and columns in patches; 1 frame for an image.
      merge_size: side of the square of patches that become one token.

    Raises:
      ValueError: a grid is empty, or its rows or columns are not multiples of ``merge_size``.
    """
    grids = checked_grids(grids, merge_size)
    sizes = np.repeat(grids[:, 1:], grids[:, 0], axis=0)
    frames = np.repeat(np.arange(1, len(sizes) + 1, dtype=np.int32), sizes.prod(axis=1))
    places = [np.zeros((0, 4), np.int32)]
    for count, rows, columns in grids.tolist():
        places.append(np.tile(_frame_places(rows, columns, merge_size), (count, 1)))
    return frames, np.concatenate(places)


def checked_grids(grids: Int[np.ndarray, "n 3"], merge_size: int) -> Int64[np.ndarray, "n 3"]:
    """Returns grids in 64 bits, in which their products do not overflow.

    Raises:
      ValueError: as ``patch_places`` does.
    """
    grids = np.asarray(grids, np.int64).reshape(-1, 3)
    wrong = (grids < 1).any(axis=1) | (grids[:, 1:] % merge_size).any(axis=1)
    if wrong.any():
        raise ValueError(
            f"the grid {grids[wrong][0].tolist()} (frames, rows, columns) does not fit; rows and columns must be "
            f"multiples of {merge_size}. Take the grids that the processor made."
        )
    return grids


def check_patches(pixels: np.ndarray, grids: np.ndarray, config: VisionConfig) -> None:
    """Checks what somebody hands over as the output of a processor.

    Raises:
      ValueError: a shape or a type is wrong, or the pixels are not those of the grids.
    """
    width = config.in_channels * config.temporal_patch_size * config.patch_size**2
    if pixels.ndim != 2 or pixels.shape[1] != width:
        raise ValueError(f"pixels has shape {pixels.shape}; expected (patches, {width}).")
    # To numpy bfloat16 is of the kind V.
    if pixels.dtype != np.uint8 and pixels.dtype.kind not in "fV":
        raise ValueError(f"pixels has type {pixels.dtype}; expected uint8, or normalised values as floats.")
    if grids.ndim != 2 or grids.shape[1] != 3 or not np.issubdtype(grids.dtype, np.integer):
        raise ValueError(
            f"grids has shape {grids.shape} and type {grids.dtype}; expected integers of shape (images and videos, 3): "
            "frames, rows, columns."
        )
    made = int(checked_grids(grids, config.spatial_merge_size).prod(axis=1).sum())
    if made != len(pixels):
        raise ValueError(f"there are {len(pixels)} patches, but the grids make {made}; give both of one processor.")


def pack_patches(
    rows: Sequence[tuple[Float[np.ndarray, "_ C"] | UInt8[np.ndarray, "_ C"], Int[np.ndarray, "_ 3"]]],
    *,
    capacity: int | None = None,
    merge_size: int = 2,
) -> Patches:
    """Joins the patches of each row, pads the rows to one length, and says where every patch lies.

    Args:
      rows: for each row the patches of its images and videos in reading order, and their grids. A row without any has
        arrays of length 0.
      capacity: patches of a row, a multiple of ``merge_size ** 2``; by default ``bucket_size`` of the largest row.

    Raises:
      ValueError: a row has more patches than ``capacity`` or other patches than its grids say, or the rows have bytes
        and normalised values.
    """
    if not rows:
        raise ValueError("there are no rows to pack; give at least one, which may hold no patch.")
    longest = max(len(pixels) for pixels, _ in rows)
    capacity = bucket_size(longest) if capacity is None else capacity
    if longest > capacity or capacity % merge_size**2:
        raise ValueError(
            f"capacity={capacity} does not fit: the largest row has {longest} patches, and the capacity must be a "
            f"multiple of {merge_size**2}."
        )
    placed = [(np.asarray(pixels), *patch_places(grids, merge_size)) for pixels, grids in rows]
    for row, (pixels, frames, _) in enumerate(placed):
        if len(pixels) != len(frames):
            raise ValueError(f"row {row} has {len(pixels)} patches, but its grids make {len(frames)}.")
    kinds = {(pixels.dtype.name, pixels.shape[1:]) for pixels, *_ in placed}
    if len(kinds) > 1:
        raise ValueError(f"the rows have patches of several kinds, {sorted(kinds)}; make them by one processor.")
    packed = Patches(*(np.zeros((len(rows), capacity, *array.shape[1:]), array.dtype) for array in placed[0]))
    for row, arrays in enumerate(placed):
        for whole, part in zip(packed, arrays, strict=True):
            whole[row, : len(part)] = part
    return packed


def bucket_size(num_patches: int) -> int:
    """Returns the smallest size that holds so many patches: 256, 512, 768, 1024, 1536, 2048, 3072, ...

    A program is compiled for each size, so there are two for each doubling; at most a third of a row is padding
    above 512.
    """
    size = _STEP
    while size < num_patches:
        size *= 2
    three_quarters = size // 4 * 3
    return three_quarters if size >= 4 * _STEP and num_patches <= three_quarters else size


def _frame_places(rows: int, columns: int, merge_size: int) -> Int[np.ndarray, "P 4"]:
    """Lists the places of one frame in merge-block order: block row, block column, row and column in the block."""
    row, column = np.indices((rows, columns), dtype=np.int32)
    place = np.stack([row, column, np.full_like(row, rows), np.full_like(row, columns)], axis=-1)
    blocks = place.reshape(rows // merge_size, merge_size, columns // merge_size, merge_size, 4)
    return blocks.swapaxes(1, 2).reshape(-1, 4)
