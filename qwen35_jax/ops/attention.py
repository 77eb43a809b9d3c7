"""Causal grouped-query attention within documents, with memory linear in the number of tokens.

Letters: ``B`` batch, ``T`` tokens of this call, ``S`` key slots, ``K`` key heads, ``G`` query heads per key head,
``N = K G`` query heads, ``H`` head width, ``Q`` queries of one block, ``M`` blocks.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

QUERY_BLOCK = 512


def attention(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
    *,
    query_offset: Int[Array, ""] | int = 0,
    segment_ids: Int[Array, "B T"] | None = None,
    key_segment_ids: Int[Array, "B S"] | None = None,
) -> Float[Array, "B T N H"]:
    """Lets each token attend to the slots before and at its own that belong to its document.

    Scores are scaled by ``H ** -0.5`` and normalised in float32. More than ``QUERY_BLOCK`` queries are computed block
    by block, and the backward pass computes each block's scores again, so that no (T, S) array outlives its block.

    Args:
      query_offset: slot of the first query; 0 unless keys come from a cache.
      segment_ids, key_segment_ids: documents of queries and slots, 0 for padding, both or neither. A token without
        any slot to attend to (padding) gets a meaningless but finite value.

    Returns:
      The outputs in the dtype of ``v``.
    """
    if (segment_ids is None) != (key_segment_ids is None):
        raise ValueError("attention needs segment_ids and key_segment_ids together; give both or neither.")
    B, T, N, H = q.shape
    S, K = k.shape[1:3]
    q = q.reshape(B, T, K, N // K, H)

    def block(q_BQKGH, slots_Q, segments_BQ):
        visible = (slots_Q[:, None] >= jnp.arange(S))[None]
        if segments_BQ is not None:
            same = segments_BQ[:, :, None] == key_segment_ids[:, None, :]
            visible = visible & same & (key_segment_ids > 0)[:, None, :]
        return _softmax_attention(q_BQKGH, k, v, visible)

    slots = query_offset + jnp.arange(T)
    if T <= QUERY_BLOCK:
        return block(q, slots, segment_ids).reshape(B, T, N, H)

    def blocks(x, axis):
        """Splits the token axis into a leading axis of M blocks, padding the last one."""
        padding = [(0, -T % QUERY_BLOCK if i == axis else 0) for i in range(x.ndim)]
        x = jnp.pad(x, padding)
        return jnp.moveaxis(x.reshape(*x.shape[:axis], -1, QUERY_BLOCK, *x.shape[axis + 1 :]), axis, 0)

    segments = None if segment_ids is None else blocks(segment_ids, 1)
    out = jax.lax.map(jax.checkpoint(lambda args: block(*args)), (blocks(q, 1), blocks(slots, 0), segments))
    return jnp.moveaxis(out, 0, 1).reshape(B, -1, N, H)[:, :T]


def _softmax_attention(
    q: Float[Array, "B Q K G H"], k: Float[Array, "B S K H"], v: Float[Array, "B S K H"], visible: Bool[Array, "#B Q S"]
) -> Float[Array, "B Q K G H"]:
    scores = jnp.einsum("BQKGH,BSKH->BKGQS", q, k, preferred_element_type=jnp.float32) * q.shape[-1] ** -0.5
    # A finite floor: a row without a visible slot becomes uniform instead of NaN.
    scores = jnp.where(visible[:, None, None], scores, -1e30)
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    return jnp.einsum("BKGQS,BSKH->BQKGH", weights, v)
