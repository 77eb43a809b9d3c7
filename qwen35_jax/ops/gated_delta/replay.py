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
    """Computes ``gated_delta_replay`` token by token for the past, and by products with one state for the window."""
    counts = counts_of(past[2][..., 0], num_past)
    tokens = Token(jnp.zeros_like(past[0]), *past, counts, jnp.ones_like(counts))
    by_token = jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), tokens)

    def take_in(state, token):
        # What a past token's query would read is not asked for.
        return step(state, token)[0], None

    if counts.shape[1] == 1:
        state, _ = take_in(states[layer], jax.tree.map(lambda x: x[0], by_token))
    else:
        state, _ = lax.scan(take_in, states[layer], by_token)
    return _read_window(q, k, v, log_decay, beta, state), states.at[layer].set(state)


def _read_window(
    q: Float[Array, "B T N K"],
    k: Float[Array, "B T N K"],
    v: Float[Array, "B T N V"],
    log_decay: Float[Array, "B T N"],
    beta: Float[Array, "B T N"],
    state: Float32[Array, "B N K V"],
) -> Float[Array, "B T N V"]:
    """Returns what the tokens of a window read: they pass over the state once, and see each other by few products."""
    T = q.shape[1]
    q, k, values, log_decay, beta = (jnp.moveaxis(x.astype(jnp.float32), 1, 2) for x in (q, k, v, log_decay, beta))
    both = jnp.concatenate([k, q], axis=2)
    from_state = jnp.einsum("BNXK,BNKV->BNXV", both, state, precision=lax.Precision.HIGHEST)
    from_keys = jnp.einsum("BNXK,BNTK->BNXT", both, k, precision=lax.Precision.HIGHEST)
    passed = jnp.cumsum(log_decay, axis=-1)

    def read(row: int, t: int, written: list[Array]) -> Array:
        """Reads with a key or a query at token ``t`` what the state holds and what the tokens before have written."""
        out = jnp.exp(passed[..., t, None]) * from_state[:, :, row]
        for j, write in enumerate(written):
            out += (jnp.exp(passed[..., t] - passed[..., j]) * from_keys[:, :, row, j])[..., None] * write
        return out

    written, out = [], []
    for t in range(T):
        written.append(beta[..., t, None] * (values[:, :, t] - read(t, t, written)))
        out.append(read(T + t, t, written))
    return jnp.stack(out, axis=1).astype(v.dtype)
