"""The gated delta rule for a window of tokens of which only some will count, as speculation reads them.

The state stays behind by the window before. It first takes that window's accepted tokens, one after the other, and
is kept so; the new window is read on top of it and leaves nothing behind. README.md says why.

Letters: ``B`` sequences, ``T`` tokens of a window, ``N`` value heads, ``K`` key width, ``V`` value width, ``L`` layers.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Float32, Int

from qwen35_jax.ops.gated_delta.recurrent import Token, step
from qwen35_jax.ops.gated_delta.replay_kernel import Past, counts_of, fits, replay_kernel
from qwen35_jax.sharding import kernel_or_plain, over_mesh

_HEADS = ("batch", None, "heads", None)
_GATES = ("batch", None, "heads")
_STATES = (None, "batch", "heads", None, None)


def gated_delta_replay(
    q: Float[Array, "B T N K"],
    k: Float[Array, "B T N K"],
    v: Float[Array, "B T N V"],
    log_decay: Float[Array, "B T N"],
    beta: Float[Array, "B T N"],
    states: Float32[Array, "L B N K V"],
    layer: Int[Array, ""],
    past: Past,
    num_past: Int[Array, " B"],
) -> tuple[Float[Array, "B T N V"], Float32[Array, "L B N K V"]]:
    """Advances a layer's state by the first ``num_past[b]`` tokens of ``past``, and reads the window on top of it.

    The arguments are those of ``gated_delta``, but for the states, which are those of all layers; what is behind
    ``num_past`` may be NaN. Under a mesh each device works on its sequences and heads.

    Returns:
      The outputs of the window in the dtype of ``v``; the states, where this layer's has taken in the tokens of
      ``past``, not those of the window.
    """
    axes = (_HEADS, _HEADS, _HEADS, _GATES, _GATES, _STATES, (), _HEADS, _HEADS, _GATES, _GATES, ("batch",))

    def local(q, k, v, log_decay, beta, states, layer, *past):
        form = kernel_or_plain(replay_kernel, plain_replay, fits(k, v, past[0]))
        return form(q, k, v, log_decay, beta, states, layer, past[:4], past[4])

    args = (q, k, v, log_decay, beta, states, layer, *past, num_past)
    return over_mesh(local, *args, in_axes=axes, out_axes=(_HEADS, _STATES))


def plain_replay(
    q: Float[Array, "B T N K"],
    k: Float[Array, "B T N K"],
    v: Float[Array, "B T N V"],
    log_decay: Float[Array, "B T N"],
    beta: Float[Array, "B T N"],
    states: Float32[Array, "L B N K V"],
    layer: Int[Array, ""],
    past: Past,
    num_past: Int[Array, " B"],
) -> tuple[Float[Array, "B T N V"], Float32[Array, "L B N K V"]]:
    """Computes ``gated_delta_replay`` in one scan over both windows: a token's numbers are the same in either."""
    U, T = past[0].shape[1], q.shape[1]
    index = jnp.arange(U + T)
    queries = jnp.pad(q, ((0, 0), (U, 0), (0, 0), (0, 0)))
    k, v, log_decay, beta = (jnp.concatenate(pair, axis=1) for pair in zip(past, (k, v, log_decay, beta), strict=True))
    is_real = jnp.pad(counts_of(past[2][..., 0], num_past), ((0, 0), (0, T)), constant_values=True)
    tokens = Token(queries, k, v, log_decay, beta, is_real, jnp.ones_like(is_real))
    state = states[layer]

    def body(states, scanned):
        kept, running = states
        i, token = scanned
        running, out = step(running, token)
        return (jnp.where(i < U, running, kept), running), out

    by_token = jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), tokens)
    (kept, _), out = lax.scan(body, (state, state), (index, by_token))
    return jnp.moveaxis(out[U:], 0, 1), states.at[layer].set(kept)
