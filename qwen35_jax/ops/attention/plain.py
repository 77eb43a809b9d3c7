"""Causal grouped-query attention in plain XLA, with memory linear in the number of tokens.

Letters: ``B`` batch, ``T`` tokens of this call, ``S`` key slots, ``K`` key heads, ``G`` query heads per key head,
``N = K G`` query heads, ``H`` head width, ``Q`` queries of one block, ``M`` blocks.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

QUERY_BLOCK = 512

# A sequence of many blocks is cut into this many stretches, each of which computes only the slots up to its own end:
# 5/8 of the square instead of all of it. Every stretch is a program of its own: more of them compile longer and gain
# less.
_STRETCHES = 4


def plain_attention(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
    *,
    query_slots: Int[Array, "#B T"] | None = None,
    segment_ids: Int[Array, "B T"] | None = None,
    key_segment_ids: Int[Array, "B S"] | None = None,
) -> Float[Array, "B T N H"]:
    """Computes ``attention`` in blocks of ``QUERY_BLOCK`` queries.

    The backward pass computes each block's scores again, so that no [T, S] array outlives its block.
    """
    B, T, N, H = q.shape
    K = k.shape[2]
    q = q.reshape(B, T, K, N // K, H)
    keys = (k, v, key_segment_ids)
    if query_slots is not None or T < _STRETCHES * QUERY_BLOCK:
        slots = jnp.arange(T)[None] if query_slots is None else query_slots
        return _by_blocks(q, slots, segment_ids, keys).reshape(B, T, N, H)
    length = -(-T // (_STRETCHES * QUERY_BLOCK)) * QUERY_BLOCK
    outputs = []
    for start in range(0, T, length):
        mine, seen = slice(start, start + length), slice(start + length)
        segments = None if segment_ids is None else segment_ids[:, mine]
        keys = (k[:, seen], v[:, seen], None if key_segment_ids is None else key_segment_ids[:, seen])
        outputs.append(_by_blocks(q[:, mine], jnp.arange(T)[None, mine], segments, keys))
    return jnp.concatenate(outputs, axis=1).reshape(B, T, N, H)


def _by_blocks(
    q: Float[Array, "B T K G H"],
    slots: Int[Array, "#B T"],
    segment_ids: Int[Array, "B T"] | None,
    keys: tuple[Float[Array, "B S K H"], Float[Array, "B S K H"], Int[Array, "B S"] | None],
) -> Float[Array, "B T K G H"]:
    T = q.shape[1]
    k, v, key_segment_ids = keys

    def block(q_BQKGH, slots_BQ, segments_BQ):
        visible = slots_BQ[..., None] >= jnp.arange(k.shape[1])
        if segments_BQ is not None:
            assert key_segment_ids is not None
            same = segments_BQ[:, :, None] == key_segment_ids[:, None, :]
            visible = visible & same & (key_segment_ids > 0)[:, None, :]
        return _softmax_attention(q_BQKGH, k, v, visible)

    if T <= QUERY_BLOCK:
        return block(q, slots, segment_ids)

    def blocks(x, axis):
        """Splits the token axis into a leading axis of M blocks, padding the last one."""
        padding = [(0, -T % QUERY_BLOCK if i == axis else 0) for i in range(x.ndim)]
        x = jnp.pad(x, padding)
        return jnp.moveaxis(x.reshape(*x.shape[:axis], -1, QUERY_BLOCK, *x.shape[axis + 1 :]), axis, 0)

    segments = None if segment_ids is None else blocks(segment_ids, 1)
    out = jax.lax.map(jax.checkpoint(lambda args: block(*args)), (blocks(q, 1), blocks(slots, 1), segments))
    return jnp.moveaxis(out, 0, 1).reshape(q.shape[0], -1, *q.shape[2:])[:, :T]


def _softmax_attention(
    q: Float[Array, "B Q K G H"], k: Float[Array, "B S K H"], v: Float[Array, "B S K H"], visible: Bool[Array, "#B Q S"]
) -> Float[Array, "B Q K G H"]:
    scores = jnp.einsum("BQKGH,BSKH->BKGQS", q, k, preferred_element_type=jnp.float32) * q.shape[-1] ** -0.5
    # A finite floor: a query without a visible slot gets a mean of all slots instead of NaN.
    scores = jnp.where(visible[:, None, None], scores, -1e30)
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    return jnp.einsum("BKGQS,BSKH->BQKGH", weights, v)
