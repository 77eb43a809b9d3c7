"""The gated delta rule over a mesh: each device works on its sequences, its heads and its stretch of every sequence.

Where the mesh splits sequences, a device folds its stretch into one affine map of the state before it (README.md). The
maps of all stretches give each its initial state. So what is sent does not depend on the number of tokens.

Letters: ``B`` batch, ``T`` tokens, ``N`` value heads, ``K`` key width, ``V`` value width.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int

from qwen35_jax.ops.gated_delta import DeltaRule, affine_map, gated_delta, pick
from qwen35_jax.sharding import gather_shards, over_mesh, sequence_shards, shard_index

_TOKENS = ("batch", "length")
_HEADS = (*_TOKENS, "heads", None)
_GATES = (*_TOKENS, "heads")
_STATE = ("batch", "heads", None, None)


def gated_delta_sharded(
    q: Float[Array, "B T N K"],
    k: Float[Array, "B T N K"],
    v: Float[Array, "B T N V"],
    log_decay: Float[Array, "B T N"],
    beta: Float[Array, "B T N"],
    state: Float32[Array, "B N K V"] | None = None,
    segment_ids: Int[Array, "B T"] | None = None,
    state_segment_ids: Int[Array, " B"] | None = None,
    *,
    delta_rule: DeltaRule = "auto",
) -> tuple[Float[Array, "B T N V"], Float32[Array, "B N K V"] | None]:
    """Runs ``gated_delta`` in the form that ``pick`` chooses; its docstring describes the arguments.

    Returns:
      The outputs; the state after the last token if a state was given, else None.
    """
    num_shards = sequence_shards(q.shape[1])

    def local(q, k, v, log_decay, beta, state, segment_ids, state_segment_ids):
        inputs, form = (q, k, v, log_decay, beta), pick(k, v, delta_rule)
        before, after, entering = state, None, state_segment_ids
        if num_shards > 1:
            if segment_ids is not None:
                entering = _document_before(segment_ids, state_segment_ids, num_shards)
            maps = affine_map(
                *inputs[1:], segment_ids, entering, implementation="kernel" if form == "kernel" else "chunked"
            )
            before, after = _states(maps, state, num_shards)
        outputs, last = gated_delta(*inputs, before, segment_ids, entering, implementation=form)
        if state is None:
            return outputs
        return outputs, last if after is None else after

    axes = (_HEADS, _HEADS, _HEADS, _GATES, _GATES, _STATE, _TOKENS, ("batch",))
    args = (q, k, v, log_decay, beta, state, segment_ids, state_segment_ids)
    if state is None:
        return over_mesh(local, *args, in_axes=axes, out_axes=_HEADS), None
    return over_mesh(local, *args, in_axes=axes, out_axes=(_HEADS, _STATE))


def _document_before(
    segment_ids: Int[Array, "B T"], state_segment_ids: Int[Array, " B"] | None, num_shards: int
) -> Int[Array, " B"]:
    """Returns the last document that begins before this stretch, 0 if there is none."""
    last = gather_shards(jnp.max(segment_ids, axis=1), "length")
    before = jnp.arange(num_shards)[:, None] < shard_index("length")
    newest = jnp.max(jnp.where(before, last, 0), axis=0)
    return newest if state_segment_ids is None else jnp.maximum(newest, state_segment_ids)


def _states(
    maps: tuple[Array, Array], state: Float32[Array, "B N K V"] | None, num_shards: int
) -> tuple[Float32[Array, "B N K V"], Float32[Array, "B N K V"]]:
    """Returns the state before this stretch and the one after all, by folding the affine maps of the stretches."""
    maps = jax.tree.map(lambda x: gather_shards(x, "length"), maps)
    start = jnp.zeros_like(maps[1][0]) if state is None else state

    def fold(carry, xs):
        (transition, written), shard = xs
        current, mine = carry
        mine = jnp.where(shard == shard_index("length"), current, mine)
        after = jnp.matmul(transition, current, precision=jax.lax.Precision.HIGHEST) + written
        return (after, mine), None

    (after, before), _ = jax.lax.scan(fold, (start, start), (maps, jnp.arange(num_shards)))
    return before, after
