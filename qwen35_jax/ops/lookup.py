"""Looks up token ids in a table that may be split over a mesh.

Letters: B batch, T tokens, V vocabulary, D width.
"""

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from qwen35_jax.sharding import gather_over, is_split, mesh_axes, over_mesh


def take_rows(table: Float[Array, "V D"], ids: Int[Array, "B T"], *, dtype: DTypeLike) -> Float[Array, "B T D"]:
    """Returns ``table[ids]`` in ``dtype``; ids out of range take the first or last entry.

    Over a mesh a device holds some columns of the table. It looks up the tokens of all devices that hold the other
    columns, and sends each device its own. The compiler alone would add up whole entries, mostly zeros, from every
    device.
    """
    if not is_split(batch=ids.shape[0], embed=table.shape[1]):
        return _take(table, ids, dtype)

    axes = mesh_axes("embed")

    def local(table, ids):
        columns = _take(table, gather_over(axes, ids, axis=0), dtype)
        return jax.lax.all_to_all(columns, axes, split_axis=0, concat_axis=2, tiled=True)

    tokens = ("batch", "length")
    return over_mesh(local, table, ids, in_axes=((None, "embed"), tokens), out_axes=(*tokens, None))


def _take(table, ids, dtype):
    # Clipped, because an id out of range gives NaN otherwise, also where its token does not count.
    return jnp.take(table, ids, axis=0, mode="clip").astype(dtype)
