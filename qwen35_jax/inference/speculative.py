"""How many of its own next tokens the MTP head drafts correctly: what speculative decoding would gain.

Letters: ``B`` rows, ``T`` tokens, ``D`` model width, ``N`` positions in one flat list.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int

from qwen35_jax.model import Qwen35
from qwen35_jax.ops.positions import shift_left

# Positions whose logits are held at once: 256 rows of 248,320 float32 are 254 MB.
_POSITIONS_AT_ONCE = 256
# Lengths are rounded up to this many tokens, so that few programs are compiled.
_LENGTH_MULTIPLE = 64


def draft_acceptance(
    model: Qwen35, token_ids: ArrayLike, segment_ids: ArrayLike, completion_mask: ArrayLike
) -> tuple[int, int]:
    """Counts the drafts of one MTP step that greedy verification would accept.

    The text is teacher-forced and must have been generated greedily by the same model: then the token
    that verification would choose is the token that stands there. At every position ``i`` whose next
    token belongs to the completion the head drafts token ``i + 2``; it is proposed if that token is of
    the completion too, so a completion of ``n`` tokens has ``n - 1`` proposals. Real speculative
    decoding drafts at a subset of these positions (it skips the ones it has just accepted).

    Args:
      token_ids: (B, T) prompts with their completions.
      segment_ids: (B, T), 0 for padding and 1, 2, ... for the documents of a row.
      completion_mask: (B, T), true at generated tokens.

    Returns:
      Accepted and proposed drafts.

    Raises:
      ValueError: the model has no MTP head, or the shapes differ.
    """
    shapes = [np.shape(x) for x in (token_ids, segment_ids, completion_mask)]
    if len(shapes[0]) != 2 or len(set(shapes)) > 1:
        raise ValueError(
            f"token_ids, segment_ids and completion_mask have shapes {shapes}; give three arrays of one (B, T)."
        )
    graph, weights = nnx.split(model)
    accepted, proposed = _count(
        graph, weights, jnp.asarray(token_ids), jnp.asarray(segment_ids), jnp.asarray(completion_mask, bool)
    )
    return int(accepted), int(proposed)


def completion_acceptance(
    model: Qwen35,
    prompts: Sequence[Sequence[int]],
    completions: Sequence[Sequence[int]],
    *,
    rows_per_batch: int = 8,
) -> tuple[int, int]:
    """Counts as ``draft_acceptance`` over lists of prompts and their greedy completions, in padded batches."""
    accepted = proposed = 0
    pairs = sorted(zip(prompts, completions, strict=True), key=lambda pair: len(pair[0]) + len(pair[1]))
    for start in range(0, len(pairs), rows_per_batch):
        batch = pairs[start : start + rows_per_batch]
        length = -(-max(len(p) + len(c) for p, c in batch) // _LENGTH_MULTIPLE) * _LENGTH_MULTIPLE
        token_ids, segment_ids = np.zeros((2, rows_per_batch, length), np.int32)
        completion_mask = np.zeros((rows_per_batch, length), bool)
        for row, (prompt, completion) in enumerate(batch):
            end = len(prompt) + len(completion)
            token_ids[row, :end] = [*prompt, *completion]
            segment_ids[row, :end] = 1
            completion_mask[row, len(prompt) : end] = True
        counts = draft_acceptance(model, token_ids, segment_ids, completion_mask)
        accepted, proposed = accepted + counts[0], proposed + counts[1]
    return accepted, proposed


@functools.partial(jax.jit, static_argnames="graph")
def _count(
    graph: nnx.GraphDef,
    weights: nnx.State,
    token_ids: Int[Array, "B T"],
    segment_ids: Int[Array, "B T"],
    completion_mask: Bool[Array, "B T"],
) -> tuple[Int[Array, ""], Int[Array, ""]]:
    model = nnx.merge(graph, weights)
    hidden, _ = model.forward(token_ids, segment_ids)
    (ahead,) = model.mtp_forward(hidden, token_ids, segment_ids)
    written = jnp.where(completion_mask, segment_ids, 0)
    proposed = (segment_ids > 0) & (shift_left(written, 1) == segment_ids) & (shift_left(written, 2) == segment_ids)
    accepted = proposed & (_most_likely(model, ahead) == shift_left(token_ids, 2))
    return jnp.sum(accepted), jnp.sum(proposed)


def _most_likely(model: Qwen35, hidden: Float[Array, "B T D"]) -> Int[Array, "B T"]:
    """Takes the argmax over the vocabulary without holding the logits of all positions."""
    flat = hidden.reshape(-1, hidden.shape[-1])
    head = model.head_weight().astype(hidden.dtype)

    def most_likely(x: Float[Array, " D"]) -> Int[Array, ""]:
        return jnp.argmax(jnp.einsum("D,VD->V", x, head, preferred_element_type=jnp.float32))

    return jax.lax.map(most_likely, flat, batch_size=_POSITIONS_AT_ONCE).reshape(hidden.shape[:-1])
