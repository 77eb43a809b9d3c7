"""Positions of tokens within their documents. Letters: ``B`` batch, ``T`` tokens."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Shaped


def count_positions(
    segment_ids: Int[Array, "B T"],
    last_segment_ids: Int[Array, " B"] | None = None,
    next_position: Int[Array, " B"] | None = None,
) -> Int[Array, "B T"]:
    """Counts from 0 in each document, a contiguous run of one segment id; padding counts as a run of its own.

    Args:
      last_segment_ids, next_position: the document that a previous call ended in, and where it goes on.
    """
    index = jnp.broadcast_to(jnp.arange(segment_ids.shape[1]), segment_ids.shape)
    begins = jnp.concatenate([jnp.ones_like(segment_ids[:, :1], bool), segment_ids[:, 1:] != segment_ids[:, :-1]], 1)
    positions = index - jax.lax.cummax(jnp.where(begins, index, 0), axis=1)
    if last_segment_ids is None:
        return positions
    assert next_position is not None
    continues = (segment_ids == last_segment_ids[:, None]) & (segment_ids > 0)
    return positions + jnp.where(continues, next_position[:, None], 0)


def shift_left(x: Shaped[Array, "B T *rest"], steps: int) -> Shaped[Array, "B T *rest"]:
    """Moves what is at token ``i + steps`` to position ``i``; the last ``steps`` positions become 0."""
    return jnp.pad(x[:, steps:], ((0, 0), (0, min(steps, x.shape[1])), *((0, 0),) * (x.ndim - 2)))
