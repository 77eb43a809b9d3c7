"""The gated delta rule one token at a time: the plain form, for decoding and to test the others against.

Letters: ``B`` batch, ``T`` tokens, ``N`` value heads, ``K`` key width, ``V`` value width.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Float32, Int

from qwen35_jax.ops.segments import fill_padding


def gated_delta_recurrent(
    q: Float[Array, "B T N K"],
    k: Float[Array, "B T N K"],
    v: Float[Array, "B T N V"],
    log_decay: Float[Array, "B T N"],
    beta: Float[Array, "B T N"],
    state: Float32[Array, "B N K V"],
    segment_ids: Int[Array, "B T"] | None = None,
    state_segment_ids: Int[Array, " B"] | None = None,
) -> tuple[Float[Array, "B T N V"], Float32[Array, "B N K V"]]:
    """Runs the recurrence of ``gated_delta`` token by token; arguments and results are described there.

    One token is computed without a loop. Over many, the backward pass keeps a state per token: train with
    the chunked forms.
    """
    is_real, continues = None, None
    if segment_ids is not None:
        documents, state_documents = fill_padding(segment_ids, state_segment_ids)
        is_real = segment_ids != 0
        continues = documents == jnp.concatenate([state_documents[:, None], documents[:, :-1]], axis=1)
    tokens = Token(q, k, v, log_decay, beta, is_real, continues)
    if q.shape[1] == 1:
        state, o = step(state, jax.tree.map(lambda x: x[:, 0], tokens))
        return o[:, None], state
    state, o = lax.scan(step, state, jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), tokens))
    return jnp.moveaxis(o, 0, 1), state


class Token(NamedTuple):
    """What one step reads. ``continues`` says that the token before belongs to the same document."""

    q: Float[Array, "B N K"]
    k: Float[Array, "B N K"]
    v: Float[Array, "B N V"]
    log_decay: Float[Array, "B N"]
    beta: Float[Array, "B N"]
    is_real: Bool[Array, " B"] | None
    continues: Bool[Array, " B"] | None


def step(state: Float32[Array, "B N K V"], token: Token) -> tuple[Float32[Array, "B N K V"], Float[Array, "B N V"]]:
    """Returns the state after a token and what its query reads there, in the dtype of ``v``."""
    q, k, v, log_decay, beta = (x.astype(jnp.float32) for x in token[:5])
    if token.is_real is not None:
        assert token.continues is not None
        real = token.is_real[:, None, None]
        q, k, v = (jnp.where(real, x, 0) for x in (q, k, v))
        log_decay, beta = (jnp.where(real[..., 0], x, 0) for x in (log_decay, beta))
        state = jnp.where(token.continues[:, None, None, None], state, 0)
    state = jnp.exp(log_decay)[..., None, None] * state
    write = beta[..., None] * (v - _read(k, state))
    state = state + k[..., :, None] * write[..., None, :]
    return state, _read(q, state).astype(token.v.dtype)


def _read(key: Float32[Array, "B N K"], state: Float32[Array, "B N K V"]) -> Float32[Array, "B N V"]:
    # A product over K, not a sum of an elementwise product: that strides through the state, 10 times slower on CPU.
    return jnp.einsum("BNK,BNKV->BNV", key, state, precision=lax.Precision.HIGHEST)
