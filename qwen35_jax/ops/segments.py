"""Gives padding the document before it, as the recurrent ops need packed sequences.

Letters: ``B`` batch, ``T`` tokens of this call.
"""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Int


def fill_padding(
    segment_ids: Int[Array, "B T"], state_segment_ids: Int[Array, " B"] | None = None
) -> tuple[Int[Array, "B T"], Int[Array, " B"]]:
    """Gives each padding token the document before it, so that every document is one unbroken run.

    A state can then pass through padding, and two neighbours differ exactly where a document begins.

    Args:
      segment_ids: 0 for padding, else the token's document; not decreasing apart from padding.
      state_segment_ids: the document that the carried state belongs to; by default the
        document of the first token that is not padding.

    Returns:
      The document of each token, where padding before the first document counts as the state's; the
      document of the state.
    """
    running = lax.cummax(segment_ids, axis=1)
    if state_segment_ids is None:
        nowhere = jnp.iinfo(segment_ids.dtype).max
        state_segment_ids = jnp.min(jnp.where(segment_ids == 0, nowhere, segment_ids), axis=1)
    state_segment_ids = state_segment_ids.astype(segment_ids.dtype)
    return jnp.where(running == 0, state_segment_ids[:, None], running), state_segment_ids
