"""The gated delta rule with all chunks at once: first their maps in a tree, then their outputs side by side.

Letters: ``B`` batch, ``T`` tokens, ``N`` value heads, ``K`` key width, ``V`` value width, ``M`` chunks.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Float32, Int

from qwen35_jax.ops.gated_delta.affine import affine_map
from qwen35_jax.ops.gated_delta.chunked import gated_delta_chunked
from qwen35_jax.ops.gated_delta.chunks import pick_chunk_size
from qwen35_jax.ops.gated_delta.precision import XLA
from qwen35_jax.ops.segments import fill_padding


def gated_delta_associative(
    q: Float[Array, "B T N K"],
    k: Float[Array, "B T N K"],
    v: Float[Array, "B T N V"],
    log_decay: Float[Array, "B T N"],
    beta: Float[Array, "B T N"],
    state: Float32[Array, "B N K V"],
    segment_ids: Int[Array, "B T"] | None = None,
    state_segment_ids: Int[Array, " B"] | None = None,
    *,
    chunk_size: int | None = None,
) -> tuple[Float[Array, "B T N V"], Float32[Array, "B N K V"]]:
    """Finds all states at once by ``lax.associative_scan``; see ``gated_delta`` for arguments and results.

    Its depth is logarithmic in the number of chunks; it does about three times the arithmetic of
    ``gated_delta_chunked``. The backward pass keeps the inputs and the state before each chunk.
    """
    B, T = k.shape[:2]
    C = pick_chunk_size(chunk_size, v)

    def cut(x: Array) -> Array:
        x = jnp.pad(x, [(0, 0), (0, -T % C)] + [(0, 0)] * (x.ndim - 2))
        return x.reshape(-1, C, *x.shape[2:])

    # Each chunk is a sequence of its own; it belongs to the document that the chunk before ends with.
    q, k, v, log_decay, beta = (cut(x) for x in (q, k, v, log_decay, beta))
    documents = (None, None)
    if segment_ids is not None:
        filled, state_documents = fill_padding(segment_ids, state_segment_ids)
        entered = jnp.concatenate([state_documents[:, None], filled[:, C - 1 : T - 1 : C]], axis=1)
        documents = (cut(segment_ids), entered.reshape(-1))

    @jax.checkpoint
    def states_before(k, v, log_decay, beta, state):
        maps = affine_map(k, v, log_decay, beta, *documents, chunk_size=C)
        transition, written = (x.reshape(B, -1, *x.shape[1:]) for x in maps)
        # The first map is applied to the initial state at once; from then on only its value matters.
        written = written.at[:, 0].add(_matmul(transition[:, 0], state))
        _, after = lax.associative_scan(_compose, (transition, written), axis=1)
        return jnp.concatenate([state[:, None], after[:, :-1]], axis=1), after[:, -1]

    @jax.checkpoint
    def outputs(q, k, v, log_decay, beta, states):
        o, _ = gated_delta_chunked(q, k, v, log_decay, beta, states, *documents, chunk_size=C)
        return o

    states, after = states_before(k, v, log_decay, beta, state)
    o = outputs(q, k, v, log_decay, beta, states.reshape(-1, *state.shape[1:]))
    return o.reshape(B, -1, *o.shape[2:])[:, :T], after


def _compose(first: tuple[Array, Array], second: tuple[Array, Array]) -> tuple[Array, Array]:
    """Returns P and R of the map that is ``first`` and then ``second``."""
    return _matmul(second[0], first[0]), _matmul(second[0], first[1]) + second[1]


def _matmul(a: Float32[Array, "*S K L"], b: Float32[Array, "*S L V"]) -> Float32[Array, "*S K V"]:
    return XLA.product("...KL,...LV->...KV", a, b)
