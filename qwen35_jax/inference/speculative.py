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


def acceptance_by_completion(
    model: Qwen35, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]], *, max_batch: int = 8
) -> list[tuple[int, int]]:
    """Counts, for each completion, the drafts of one MTP step that greedy verification would accept, and all drafts.

    The token that verification would choose is the one in the text. At every position ``i`` whose next token belongs to
    the completion the head drafts token ``i + 2``; it is proposed if that token is of the completion too, so a
    completion of ``n`` tokens has ``n - 1`` proposals. Real speculative decoding drafts at a subset of these positions
    (it skips the ones it has just accepted).

    Args:
      prompts: token ids.
      completions: what the same model wrote greedily after each prompt.
      max_batch: most sequences at once; long ones are fewer at once.

    Raises:
      ValueError: the model has no MTP head.
    """
    texts = [[*prompt, *completion] for prompt, completion in zip(prompts, completions, strict=True)]
    by_length = sorted(range(len(texts)), key=lambda number: len(texts[number]))
    counts = [(0, 0)] * len(texts)
    mesh = mesh_of(model.head_weight())
    split = 1 if mesh is None else num_shards("batch", mesh)
    graph, weights = nnx.split(model)
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
        arrays = map(jnp.asarray, (token_ids, segment_ids, completion_mask))
        with contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh):
            accepted, proposed = map(to_host, _count(graph, weights, *arrays))
        for place, number in enumerate(numbers):
            counts[number] = int(accepted[place]), int(proposed[place])
    return counts


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
