"""Puts the arrays of a parameter together from the tensors of a checkpoint, and cuts them into these again.

Each tensor has a box in its array (``TensorSpec.box``). The boxes of an array's tensors are disjoint and cover it.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from qwen35_jax.hf.names import Index, Place, TensorSpec, TreePath
from qwen35_jax.hf.safetensors import Stored


def by_array(specs: Iterable[TensorSpec]) -> dict[TreePath, list[TensorSpec]]:
    """Groups tensors by the array they belong to; copies are left out."""
    groups: dict[TreePath, list[TensorSpec]] = {}
    for spec in specs:
        if not spec.is_copy:
            groups.setdefault(spec.path, []).append(spec)
    return groups


def arrays_of(path: TreePath, variable: nnx.Variable) -> Iterator[tuple[TreePath, Any]]:
    """Yields the arrays of a parameter with their paths: a single one, or the components of a dataclass."""
    for keys, array in jax.tree_util.tree_leaves_with_path(variable.get_value()):
        yield (*path, *(key.name for key in keys)), array


def take(array: Any, index: Place) -> Any:
    """Returns ``array[index]``; the array itself, not a copy, if the index is empty."""
    return array[index] if index else array


def shape_of(specs: Sequence[TensorSpec]) -> tuple[int, ...]:
    """Returns the shape of the array that these tensors make up."""
    return tuple(max(cut.stop for cut in cuts) for cuts in zip(*(spec.box for spec in specs), strict=True))


def check_cover(specs: Sequence[TensorSpec], shape: tuple[int, ...]) -> None:
    """Asserts that the boxes of these tensors are disjoint and cover an array of this shape."""
    boxes = [spec.box for spec in specs]
    path = ".".join(map(str, specs[0].path))
    assert shape_of(specs) == shape, f"the name table gives {path} the shape {shape_of(specs)}, the model {shape}"
    # All positions between two neighbouring edges belong to the same tensors, so one cell stands for them.
    edges = [
        sorted({0, *(cut.start for cut in cuts), *(cut.stop for cut in cuts)}) for cuts in zip(*boxes, strict=True)
    ]
    cells = [{edge: number for number, edge in enumerate(axis_edges)} for axis_edges in edges]
    held = np.zeros([len(axis_edges) - 1 for axis_edges in edges], np.int32)
    for box in boxes:
        held[tuple(slice(cell[cut.start], cell[cut.stop]) for cell, cut in zip(cells, box, strict=True))] += 1
    if np.all(held == 1):
        return
    position = [axis_edges[number] for axis_edges, number in zip(edges, np.argwhere(held != 1)[0], strict=True)]
    names = [spec.name for spec, box in zip(specs, boxes, strict=True) if _holds(box, position)]
    raise AssertionError(f"the name table fills {path} at {position} from {names or 'no tensor'}, not from one")


def _holds(box: Index, position: Sequence[int]) -> bool:
    return all(cut.start <= place < cut.stop for cut, place in zip(box, position, strict=True))


def read_part(
    specs: Sequence[TensorSpec], stored: Mapping[str, Stored], part: Index, shape: tuple[int, ...], dtype: DTypeLike
) -> np.ndarray:
    """Reads a part of an array from the files, and nothing besides it.

    Args:
      specs: the tensors that make up the array.
      part: a slice for each axis of the array.
      shape: that of the whole array.
    """
    wanted = [slice(*cut.indices(size)[:2]) for cut, size in zip(part, shape, strict=True)]
    out = None
    for spec in specs:
        box = spec.box
        common = [
            slice(max(cut.start, want.start), min(cut.stop, want.stop)) for cut, want in zip(box, wanted, strict=True)
        ]
        if any(cut.start >= cut.stop for cut in common):
            continue
        is_position = [isinstance(entry, int) for entry in spec.index] + [False] * (len(box) - len(spec.index))
        inside = [
            _moved(cut, -own.start) for cut, own, single in zip(common, box, is_position, strict=True) if not single
        ]
        values = spec.to_ours(stored[spec.name].read(spec.index_in_file(tuple(inside)), dtype))
        values = np.expand_dims(values, [axis for axis, single in enumerate(is_position) if single])
        if common == wanted:
            return values  # The whole part. So a large array that is one tensor is never held twice.
        if out is None:
            out = np.empty([want.stop - want.start for want in wanted], dtype)
        out[tuple(_moved(cut, -want.start) for cut, want in zip(common, wanted, strict=True))] = values
    assert out is not None, "the boxes cover the array"
    return out


def _moved(cut: slice, by: int) -> slice:
    return slice(cut.start + by, cut.stop + by)
