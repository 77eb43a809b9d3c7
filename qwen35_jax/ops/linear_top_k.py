"""The most likely tokens of a linear head, computed chunk by chunk, so that the logits never exist at once.

Letters: B batch, T tokens, E width, V vocabulary, K most likely tokens, C positions in a chunk, M chunks.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from qwen35_jax.ops.linear_cross_entropy import VocabularyShard
from qwen35_jax.sharding import gather_over, is_split, mesh_axes, over_mesh


class LinearTopK(NamedTuple):
    """The ``K`` most likely tokens at each position, and what is left for all others."""

    ids: Int[Array, "B T K"]
    """The most likely first; of equally likely ones the lower id first."""
    log_probs: Float[Array, "B T K"]
    """Their natural log-probabilities in float32."""
    tail: Float[Array, "B T"]
    """The probability of all other tokens together, in float32; exactly 0 if there are none."""


def linear_top_k(hidden: Float[Array, "B T E"], head: Float[Array, "V E"], k: int, *, chunk_tokens: int) -> LinearTopK:
    """Finds the ``k`` most likely tokens by ``softmax(hidden @ head.T)``.

    The product runs in the dtype of ``hidden`` with float32 accumulation, as in the losses. Over a mesh every device
    searches its own shard of the vocabulary. The tail is the sum over the other tokens, not one minus the sum over
    these, which would cancel.

    Args:
      chunk_tokens: positions of each sequence whose logits exist at once; T need not be a multiple.

    Raises:
      ValueError: ``k`` is not from 1 to V, or ``chunk_tokens`` is not positive.
    """
    if not 1 <= k <= head.shape[0]:
        raise ValueError(f"k={k} must be at least 1 and at most the {head.shape[0]} tokens of the vocabulary.")
    if chunk_tokens < 1:
        raise ValueError(f"chunk_tokens={chunk_tokens} must be at least 1; 256 is a good start.")
    divides = is_split(batch=hidden.shape[0], length=hidden.shape[1], vocab_shards=head.shape[0])
    run = partial(_scan_chunks, k, chunk_tokens, split=divides)
    if not divides:
        return LinearTopK(*run(hidden, head))
    tokens = ("batch", "length", None)
    in_axes, out_axes = (tokens, ("vocab_shards", None)), (tokens, tokens, ("batch", "length"))
    return LinearTopK(*over_mesh(run, hidden, head, in_axes=in_axes, out_axes=out_axes))


def _scan_chunks(
    k: int, chunk_tokens: int, hidden: Float[Array, "B T E"], head: Float[Array, "V E"], *, split: bool
) -> tuple[Int[Array, "B T K"], Float[Array, "B T K"], Float[Array, "B T"]]:
    """Does the work on one device. ``split``: the vocabulary and the tokens are split over the mesh."""
    over_vocab = mesh_axes("vocab_shards") if split else ()
    # Devices along these axes hold other shards of the vocabulary and other sequences: each needs those of all.
    shared = tuple(axis for axis in mesh_axes("batch") if axis in over_vocab)
    shard = VocabularyShard(jax.lax.axis_index(over_vocab) * head.shape[0] if split else 0, over_vocab)
    weight = head.astype(hidden.dtype)
    B, T = hidden.shape[:2]

    def chunk_top_k(hidden_BCE):
        gathered = gather_over(shared, hidden_BCE, axis=0)
        logits = jnp.einsum("BCE,VE->BCV", gathered, weight, preferred_element_type=jnp.float32)
        found = _top_k(logits, k, shard)
        if not shared:
            return found
        # Every device knows the result for all sequences, and keeps its own.
        own = jax.lax.axis_index(shared) * B
        return tuple(jax.lax.dynamic_slice_in_dim(each, own, B) for each in found)

    chunk = min(chunk_tokens, T)
    padded = jnp.pad(hidden, ((0, 0), (0, -T % chunk), (0, 0)))
    chunks_MBCE = jnp.moveaxis(padded.reshape(B, -1, chunk, hidden.shape[2]), 1, 0)
    found = jax.lax.map(chunk_top_k, chunks_MBCE)
    ids, log_probs, tail = (jnp.moveaxis(each, 0, 1).reshape(B, -1, *each.shape[3:])[:, :T] for each in found)
    return ids, log_probs, tail


def _top_k(
    logits: Float[Array, "B C V"], k: int, shard: VocabularyShard
) -> tuple[Int[Array, "B C K"], Float[Array, "B C K"], Float[Array, "B C"]]:
    """Finds the largest of all logits, of which a device has those of its shard."""
    values, ids = shard.top_k(logits, k)
    largest, last = values[..., :1], values[..., -1:]
    # Of those that equal the last one found, the found ones have the lowest ids.
    last_id = jnp.max(jnp.where(values == last, ids, -1), axis=-1, keepdims=True)
    is_found = (logits > last) | ((logits == last) & (shard.ids(logits) <= last_id))
    weights = jnp.exp(logits - largest)
    total, rest = shard.sum((weights, jnp.where(is_found, 0.0, weights)))
    return ids.astype(jnp.int32), values - largest - jnp.log(total)[..., None], rest / total
