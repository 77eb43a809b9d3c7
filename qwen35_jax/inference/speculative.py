"""Counts how many of the model's next tokens the MTP head drafts correctly: the gain of speculative decoding.

Letters: ``B`` sequences, ``T`` tokens, ``D`` model width, ``V`` vocabulary.
"""

import contextlib
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int

from qwen35_jax.distributed import to_host
from qwen35_jax.model import Qwen35
from qwen35_jax.ops.positions import shift_left
from qwen35_jax.sharding import mesh_of, num_shards

# Positions whose logits are held at once: 256 times 248,320 float32 are 254 MB.
_POSITIONS_AT_ONCE = 256
# Most tokens of a batch, padding included; a single longer sequence is a batch of its own.
_TOKENS_AT_ONCE = 65536
# Lengths are rounded up to this many tokens, so that few programs are compiled.
_LENGTH_MULTIPLE = 64


def draft_acceptance(
    model: Qwen35, token_ids: ArrayLike, segment_ids: ArrayLike, completion_mask: ArrayLike
) -> tuple[int, int]:
    """Counts the drafts of one MTP step that greedy verification would accept.

    The text must have been generated greedily by the same model. Then the token that verification
    would choose is the one in the text. At every position ``i`` whose next
    token belongs to the completion the head drafts token ``i + 2``; it is proposed if that token is of
    the completion too, so a completion of ``n`` tokens has ``n - 1`` proposals. Real speculative
    decoding drafts at a subset of these positions (it skips the ones it has just accepted).

    Args:
      token_ids: [B, T], prompts with their completions.
      segment_ids: [B, T], 0 for padding and 1, 2, ... for the documents of a sequence.
      completion_mask: [B, T], true at generated tokens.

    Returns:
      Accepted and proposed drafts.

    Raises:
      ValueError: the model has no MTP head, or the shapes differ.
    """
    shapes = [np.shape(x) for x in (token_ids, segment_ids, completion_mask)]
    if len(shapes[0]) != 2 or len(set(shapes)) > 1:
        raise ValueError(
            f"token_ids, segment_ids and completion_mask have shapes {shapes}; give three arrays of one shape [B, T]."
        )
    accepted, proposed = _count_drafts(model, token_ids, segment_ids, completion_mask)
    return int(accepted.sum()), int(proposed.sum())


def completion_acceptance(
    model: Qwen35, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]], *, max_batch: int = 8
) -> tuple[int, int]:
    """Counts as ``draft_acceptance`` does over lists of prompts and their greedy completions."""
    counts = acceptance_by_completion(model, prompts, completions, max_batch=max_batch)
    return sum(accepted for accepted, _ in counts), sum(proposed for _, proposed in counts)


def acceptance_by_completion(
    model: Qwen35, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]], *, max_batch: int = 8
) -> list[tuple[int, int]]:
    """Counts the accepted and the proposed drafts of each greedy completion, in padded batches.

    Args:
      prompts: token ids.
      completions: what the same model wrote after each prompt.
      max_batch: most sequences at once; long ones are fewer at once.

    Raises:
      ValueError: the model has no MTP head.
    """
    texts = [[*prompt, *completion] for prompt, completion in zip(prompts, completions, strict=True)]
    by_length = sorted(range(len(texts)), key=lambda number: len(texts[number]))
    counts = [(0, 0)] * len(texts)
    split = _batch_split(model)
    while by_length:
        # The longest sequence sets the length of its batch, and the length how many sequences fit.
        length = -(-len(texts[by_length[-1]]) // _LENGTH_MULTIPLE) * _LENGTH_MULTIPLE
        size = min(max_batch, max(1, _TOKENS_AT_ONCE // length))
        numbers, by_length = by_length[-size:], by_length[:-size]
        size = -(-size // split) * split
        token_ids, segment_ids = np.zeros((2, size, length), np.int32)
        completion_mask = np.zeros((size, length), bool)
        for place, number in enumerate(numbers):
            end = len(texts[number])
            token_ids[place, :end] = texts[number]
            segment_ids[place, :end] = 1
            completion_mask[place, len(prompts[number]) : end] = True
        accepted, proposed = _count_drafts(model, token_ids, segment_ids, completion_mask)
        for place, number in enumerate(numbers):
            counts[number] = int(accepted[place]), int(proposed[place])
    return counts


def _batch_split(model: Qwen35) -> int:
    """Returns over how many devices a batch is split."""
    mesh = mesh_of(model.head_weight())
    return 1 if mesh is None else num_shards("batch", mesh)


def _count_drafts(
    model: Qwen35, token_ids: ArrayLike, segment_ids: ArrayLike, completion_mask: ArrayLike
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the accepted and the proposed drafts of each sequence, each of shape [B]."""
    mesh = mesh_of(model.head_weight())
    on_mesh = contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh)
    graph, weights = nnx.split(model)
    with on_mesh:
        counts = _count(
            graph, weights, jnp.asarray(token_ids), jnp.asarray(segment_ids), jnp.asarray(completion_mask, bool)
        )
    accepted, proposed = counts
    return to_host(accepted), to_host(proposed)


@functools.partial(jax.jit, static_argnames="graph")
def _count(
    graph: nnx.GraphDef,
    weights: nnx.State,
    token_ids: Int[Array, "B T"],
    segment_ids: Int[Array, "B T"],
    completion_mask: Bool[Array, "B T"],
) -> tuple[Int[Array, " B"], Int[Array, " B"]]:
    model = nnx.merge(graph, weights)
    hidden, _ = model.forward(token_ids, segment_ids)
    (ahead,) = model.mtp_forward(hidden, token_ids, segment_ids)
    written = jnp.where(completion_mask, segment_ids, 0)
    proposed = (segment_ids > 0) & (shift_left(written, 1) == segment_ids) & (shift_left(written, 2) == segment_ids)
    accepted = proposed & (_most_likely(model, ahead) == shift_left(token_ids, 2))
    return jnp.sum(accepted, axis=1), jnp.sum(proposed, axis=1)


def _most_likely(model: Qwen35, hidden: Float[Array, "B T D"]) -> Int[Array, "B T"]:
    """Takes the argmax over the vocabulary without holding the logits of all positions."""
    flat = hidden.reshape(-1, hidden.shape[-1])
    head = model.head_weight().astype(hidden.dtype)

    def most_likely(x: Float[Array, " D"]) -> Int[Array, ""]:
        return jnp.argmax(jnp.einsum("D,VD->V", x, head, preferred_element_type=jnp.float32))

    return jax.lax.map(most_likely, flat, batch_size=_POSITIONS_AT_ONCE).reshape(hidden.shape[:-1])
