"""The compiled program that reads prompts: one chunk of some slots at a time.

Letters: ``B`` slots, ``R`` rows of a chunk (one slot each), ``C`` tokens of a chunk, ``M`` pages a slot may have, ``D``
model width, ``V`` vocabulary.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array, Bool, Float, Float32, Int

from qwen35_jax.inference.distribution import PROMPT, log_probabilities
from qwen35_jax.inference.memory import Memory
from qwen35_jax.model import Qwen35
from qwen35_jax.state import PagedState, SlotDelta
from qwen35_jax.state.paged import at_slots
from qwen35_jax.vision.placing import Embedded
from qwen35_jax.vision.tower import VisionFeatures

# Positions of a prompt whose logits are held at once: 64 times 248,320 float32 are 64 MB.
_POSITIONS_AT_ONCE = 64


class Chunk(NamedTuple):
    """One chunk of a prompt in each row.

    Attributes:
      slots: the slot of each row, which lies in the data shard of the row; -1 for a row without one.
      ids: its tokens.
      next_ids: the token after each, which the MTP head reads.
      segment_ids: 1 for tokens, then 0 for padding.
      table: the pages of each row.
      lengths: tokens of the slot before this chunk, a multiple of ``C``. A chunk from 0 forgets what the slot held.
    """

    slots: Int[Array, " R"]
    ids: Int[Array, "R C"]
    next_ids: Int[Array, "R C"]
    segment_ids: Int[Array, "R C"]
    table: Int[Array, "R M"]
    lengths: Int[Array, " R"]


class ChunkVision(NamedTuple):
    """What a chunk with images and videos, or after them, needs besides. Letter: ``N = C + 1`` vectors.

    Attributes:
      vectors: of the pads of each row, those of the chunk and of the token after it, from the first one on.
      position_ids: of the chunk's tokens.
    """

    vectors: VisionFeatures
    position_ids: Int[Array, "3 R C"]


class ChunkScores(NamedTuple):
    """What the model says of the token after each position.

    Attributes:
      log_probabilities: of that token.
      greedy: whether it is the most likely one.
    """

    log_probabilities: Float32[Array, "R C"]
    greedy: Bool[Array, "R C"]


@functools.partial(jax.jit, static_argnames=("graph", "scored"), donate_argnames=("memory", "seen"))
def prefill(
    graph: nnx.GraphDef,
    weights: nnx.State,
    memory: Memory,
    seen: Int[Array, "B V"],
    chunk: Chunk,
    vision: ChunkVision | None = None,
    *,
    scored: bool,
) -> tuple[Memory, Int[Array, "B V"], ChunkScores | None]:
    """Reads one chunk of some prompts.

    Args:
      seen: as in ``Slots``.
      vision: None for a program that reads text alone.
      scored: whether the scores of ``chunk.next_ids`` are returned.
    """
    model = nnx.merge(graph, weights)
    slots, ids, next_ids, segment_ids, table, lengths = chunk
    begins = lengths == 0
    taken = tuple(
        _from_zero(x.take(slots, by_shard=True), begins) if isinstance(x, SlotDelta) else x for x in memory.layers
    )
    none = jnp.zeros_like(lengths)
    position_ids = None if vision is None else vision.position_ids
    embedded, next_embedded = (None, None) if vision is None else _embed(model, ids, next_ids, vision.vectors)
    state = PagedState(taken, table, lengths, none, on_grid=True)
    hidden, state = model.forward(ids, segment_ids, position_ids, state, embedded=embedded)
    layers = tuple(
        old.put(slots, new, by_shard=True) if isinstance(old, SlotDelta) else new
        for old, new in zip(memory.layers, state.layers, strict=True)
    )
    mtp = memory.mtp
    if mtp is not None:
        state = PagedState((mtp,), table, lengths, none, on_grid=True)
        _, drafting = model.draft_forward(
            hidden, next_ids, segment_ids, state, position_ids=position_ids, embedded=next_embedded
        )
        (mtp,) = drafting.layers
    seen = _see(seen, chunk)
    scores = _scores(model, hidden, next_ids) if scored else None
    return Memory(layers, mtp).split(), seen, scores


def _embed(
    model: Qwen35, ids: Int[Array, "R C"], next_ids: Int[Array, "R C"], vectors: VisionFeatures
) -> tuple[Embedded, Embedded]:
    """Returns what the decoder reads, and what the MTP head reads: the token after each."""
    both = model.embed(jnp.concatenate([ids[:, :1], next_ids], axis=1), vectors)
    deep = None if both.deep is None else both.deep[:, :, :-1]
    return Embedded(both.values[:, :-1], deep), Embedded(both.values[:, 1:])


def _see(seen: Int[Array, "B V"], chunk: Chunk) -> Int[Array, "B V"]:
    """Marks the tokens of a chunk as seen by its slots; those that begin forget what they had seen."""

    def local(places, seen, begins, ids, next_ids, segment_ids):
        rows = jnp.arange(places.shape[0])[:, None]
        kept = jnp.where(begins[:, None], 0, seen.at[places].get(mode="clip"))
        for tokens in (ids, next_ids):
            kept = kept.at[rows, jnp.where(segment_ids > 0, tokens, seen.shape[1])].max(PROMPT, mode="drop")
        return seen.at[places].set(kept, mode="drop")

    row, rows = ("batch",), ("batch", None)
    args = (seen, chunk.lengths == 0, chunk.ids, chunk.next_ids, chunk.segment_ids)
    return at_slots(local, chunk.slots, *args, in_axes=(rows, row, rows, rows, rows), out_axes=rows, by_shard=True)


def _from_zero(states, begins: Bool[Array, " R"]):
    """Zeroes the states of slots that begin; what they held may be anything."""
    return jax.tree.map(lambda x: jnp.where(begins.reshape(1, -1, *(1,) * (x.ndim - 2)), 0, x), states)


def _scores(model: Qwen35, hidden: Float[Array, "R C D"], tokens: Int[Array, "R C"]) -> ChunkScores:
    """Returns what the model says of each token, some positions at a time."""

    def of_position(part):
        hidden, tokens = part
        logits = model.head_logits(hidden)
        return log_probabilities(logits, tokens, 0)[0], jnp.argmax(logits, axis=-1) == tokens

    by_position = (jnp.moveaxis(hidden, 1, 0), jnp.moveaxis(tokens, 1, 0))
    scores = lax.map(of_position, by_position, batch_size=_POSITIONS_AT_ONCE)
    return ChunkScores(*(jnp.moveaxis(x, 0, 1) for x in scores))
