"""Attention within documents (causal, grouped queries) and within frames, in two forms that give the same numbers.

``sharded.py`` runs a form over a mesh; layers and states call that.

Letters: ``B`` batch, ``T`` tokens of this call, ``S`` key slots, ``K`` key heads, ``N`` query heads, ``H`` head width.
Vision: ``R`` rows, ``P`` and ``S`` patches as queries and keys, ``N`` heads.
"""

from typing import Literal

from jaxtyping import Array, Float, Int

from qwen35_jax.ops.attention import splash
from qwen35_jax.ops.attention.frames import plain_frame_attention
from qwen35_jax.ops.attention.plain import plain_attention
from qwen35_jax.sharding import current_platform

__all__ = ["attention", "frame_attention", "pick", "plain_attention", "splash"]

Form = Literal["plain", "splash"]


def pick(num_queries: int, num_slots: int, *, num_shards: int = 1) -> Form:
    """Chooses the form for this many queries and key slots: the one choice of training, prefill and decoding.

    Args:
      num_shards: number of devices that share a sequence.
    """
    on_tpu = current_platform() == "tpu"
    return "splash" if on_tpu and splash.fits(num_queries, num_slots, num_shards=num_shards) else "plain"


def attention(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
    *,
    query_slots: Int[Array, "#B T"] | None = None,
    segment_ids: Int[Array, "B T"] | None = None,
    key_segment_ids: Int[Array, "B S"] | None = None,
    form: Form | None = None,
) -> Float[Array, "B T N H"]:
    """Lets each token attend to the slots before and at its own that belong to its document.

    Scores are scaled by ``H ** -0.5`` and normalised in float32.

    Args:
      query_slots: slot of each query; by default query ``i`` is at slot ``i``, and there are as many slots as queries.
      segment_ids, key_segment_ids: documents of queries and slots, 0 for padding, both or neither. A token without
        any slot to attend to (padding) gets a meaningless but finite value.
      form: how it is computed, by default as ``pick`` says.

    Returns:
      The outputs in the dtype of ``v``.

    Raises:
      ValueError: one of ``segment_ids`` and ``key_segment_ids`` is missing.
    """
    if (segment_ids is None) != (key_segment_ids is None):
        raise ValueError("attention needs segment_ids and key_segment_ids together; give both or neither.")
    form = form or pick(q.shape[1], k.shape[1])
    if form == "plain":
        return plain_attention(
            q, k, v, query_slots=query_slots, segment_ids=segment_ids, key_segment_ids=key_segment_ids
        )
    if query_slots is None:
        kernel = splash.make_kernel(q.shape[1], num_heads=q.shape[2])
        return splash.splash_attention(kernel, q, k, v, segment_ids, key_segment_ids)
    assert segment_ids is not None and key_segment_ids is not None, "a state knows the documents of its slots"
    return splash.splash_attention_at(query_slots, q, k, v, segment_ids, key_segment_ids)


def frame_attention(
    q: Float[Array, "R P N H"],
    k: Float[Array, "R S N H"],
    v: Float[Array, "R S N H"],
    frames: Int[Array, "R P"],
    key_frames: Int[Array, "R S"],
    *,
    form: Form | None = None,
) -> Float[Array, "R P N H"]:
    """Lets each patch attend to all patches of its frame.

    Scores are scaled by ``H ** -0.5`` and normalised in float32.

    Args:
      frames, key_frames: frames of queries and keys: 1, 2, ... in ascending order, then 0 for padding. A padding patch
        gets a meaningless but finite value.
      form: how it is computed, by default as ``pick`` says.

    Returns:
      The outputs in the dtype of ``v``.
    """
    form = form or pick(q.shape[1], k.shape[1])
    attend = plain_frame_attention if form == "plain" else splash.frame_splash_attention
    return attend(q, k, v, frames, key_frames)
