"""Rows of a table by token id, from a table that is split over a mesh. Letters: B batch, T tokens, V rows, D width."""

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from qwen35_jax.sharding import is_split, over_mesh


def take_rows(table: Float[Array, "V D"], ids: Int[Array, "B T"], *, dtype: DTypeLike) -> Float[Array, "B T D"]:
    """Returns the rows that ``ids`` name, in ``dtype``; ids out of range take the first or last row.

    Over a mesh a device that holds some columns of the table looks up the tokens of all that hold the others, and
    sends each its own. Left to itself the compiler adds up whole rows, mostly zeros, from every device.
    """
    if not is_split(batch=ids.shape[0], embed=table.shape[1]):
        return _take(table, ids, dtype)

    def local(table, ids):
        everyones = jax.lax.all_gather(ids, "fsdp", axis=0, tiled=True)
        return jax.lax.all_to_all(_take(table, everyones, dtype), "fsdp", split_axis=0, concat_axis=2, tiled=True)

    tokens = ("batch", "length")
    return over_mesh(local, table, ids, in_axes=((None, "embed"), tokens), out_axes=(*tokens, None))


def _take(table, ids, dtype):
    # Clipped, because an id out of range gives NaN otherwise, also where its token does not count.
    return jnp.take(table, ids, axis=0, mode="clip").astype(dtype)
