"""Attention over a mesh: each device works on its sequences, its heads and its stretch of every sequence.

Where the mesh splits sequences, a device gathers keys and values, of which there are few heads. Stretches further
right see more of them. So each device swaps the second half of its queries with the device that mirrors it. Then all
have the same work.

Letters: ``B`` batch, ``T`` tokens, ``S`` key slots, ``N`` query heads, ``K`` key heads, ``H`` head width.
Vision: ``R`` rows, ``P`` patches.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from qwen35_jax.ops.attention import attention, frame_attention, pick, splash
from qwen35_jax.sharding import gather_shards, num_shards, over_mesh, send_shards, sequence_shards, shard_index

_TOKENS = ("batch", "length")
_HEADS = (*_TOKENS, "heads", None)
_SLOTS = ("batch", None)
_SLOT_HEADS = (*_SLOTS, "heads", None)


def attention_sharded(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B T K H"],
    v: Float[Array, "B T K H"],
    segment_ids: Int[Array, "B T"] | None = None,
) -> Float[Array, "B T N H"]:
    """Lets each token attend to the tokens before it in its document; see ``ops.attention.attention``."""
    T, shards = q.shape[1], sequence_shards(q.shape[1])
    k, v = _copied_heads(k, v)
    form, whole_kernel = pick(T, T, num_shards=shards), None
    if form == "splash":
        whole_kernel = splash.make_kernel(T, num_heads=q.shape[2] // num_shards("heads"), num_shards=shards)
    leaves, structure = jax.tree.flatten(whole_kernel)

    def local(q, k, v, segment_ids, *leaves):
        slots, key_segment_ids = None, segment_ids
        if shards > 1:
            keys = (k, v, segment_ids)
            k, v, key_segment_ids = jax.tree.map(lambda x: gather_shards(x, "length", along=1), keys)
            slots = _swap_second_halves(_own_slots(q.shape[1])[None], shards)
            q, segment_ids = (_swap_second_halves(x, shards) for x in (q, segment_ids))
        if form == "plain":
            documents = {"segment_ids": segment_ids, "key_segment_ids": key_segment_ids}
            out = attention(q, k, v, query_slots=slots, **documents, form=form)
        else:
            kernel = jax.tree.unflatten(structure, leaves)
            out = splash.splash_attention(kernel, q, k, v, segment_ids, key_segment_ids)
        return out if shards == 1 else _swap_second_halves(out, shards)

    leaf_axes = [("length",) if leaf.ndim == 1 else (None, "length", None) for leaf in leaves]
    axes = (_HEADS, _HEADS, _HEADS, _TOKENS, *leaf_axes)
    return over_mesh(local, q, k, v, segment_ids, *leaves, in_axes=axes, out_axes=_HEADS)


def attention_to_slots_sharded(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
    *,
    query_slots: Int[Array, "B T"],
    segment_ids: Int[Array, "B T"],
    key_segment_ids: Int[Array, "B S"],
) -> Float[Array, "B T N H"]:
    """Lets the tokens of a call attend to the slots of a state, their own among them."""
    k, v = _copied_heads(k, v)

    def local(q, k, v, query_slots, segment_ids, key_segment_ids):
        return attention(q, k, v, query_slots=query_slots, segment_ids=segment_ids, key_segment_ids=key_segment_ids)

    axes = (_HEADS, _SLOT_HEADS, _SLOT_HEADS, _TOKENS, _TOKENS, _SLOTS)
    return over_mesh(local, q, k, v, query_slots, segment_ids, key_segment_ids, in_axes=axes, out_axes=_HEADS)


def frame_attention_sharded(
    q: Float[Array, "R P N H"], k: Float[Array, "R P N H"], v: Float[Array, "R P N H"], frames: Int[Array, "R P"]
) -> Float[Array, "R P N H"]:
    """Lets each patch attend to its frame; see ``ops.attention.frame_attention``.

    Where the mesh splits sequences it splits the patches of a row too, and each device gathers all keys and values.
    """
    is_shared = num_shards("length") > 1 and q.shape[1] % num_shards("length") == 0

    def local(q, k, v, frames):
        key_frames = frames
        if is_shared:
            k, v, key_frames = (gather_shards(x, "length", along=1) for x in (k, v, frames))
        return frame_attention(q, k, v, frames, key_frames)

    return over_mesh(local, q, k, v, frames, in_axes=(_HEADS, _HEADS, _HEADS, _TOKENS), out_axes=_HEADS)


def _copied_heads(k: Array, v: Array) -> tuple[Array, Array]:
    """Repeats key heads until every device that shares out the heads has one."""
    copies = max(num_shards("heads") // k.shape[2], 1)
    return jnp.repeat(k, copies, axis=2), jnp.repeat(v, copies, axis=2)


def _own_slots(num_tokens: int) -> Int[Array, " T"]:
    return shard_index("length") * num_tokens + jnp.arange(num_tokens)


def _swap_second_halves(x: Array | None, shards: int) -> Array | None:
    """Swaps the second half of each shard with that of its mirror image. Two swaps restore the order."""
    if x is None:
        return None
    first, second = jnp.split(x, 2, axis=1)
    mirrored = send_shards(second, "length", [(i, shards - 1 - i) for i in range(shards)])
    return jnp.concatenate([first, mirrored], axis=1)
