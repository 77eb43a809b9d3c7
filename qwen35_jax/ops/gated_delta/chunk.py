"""One chunk of the gated delta rule, forward and backward; README.md derives both and uses the same symbols.

Letters: B batch, N value heads, K key width, V value width, C (and D) position in chunk, H half a chunk.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Float32

from qwen35_jax.ops.gated_delta.inverse import invert_halves, join_halves
from qwen35_jax.ops.gated_delta.product import product


class Chunk(NamedTuple):
    """The tokens of one chunk. ``q`` is None where only the state is wanted.

    ``decay_sums`` and ``decay_rests`` add up to the running sum of log decays; the differences of each are exact enough
    (see `split_decays`).
    """

    q: Float[Array, "B N C K"] | None
    k: Float[Array, "B N C K"]
    v: Float[Array, "B N C V"]
    decay_sums: Float32[Array, "B N C"]
    decay_rests: Float32[Array, "B N C"]
    beta: Float32[Array, "B N C"]


class ChunkGradients(NamedTuple):
    """Gradients of one chunk's inputs, float32.

    That of token c's log decay is the sum of ``decay_sums`` from c on, and ``decay_all``.
    """

    q: Float32[Array, "B N C K"] | None
    k: Float32[Array, "B N C K"]
    v: Float32[Array, "B N C V"]
    decay_sums: Float32[Array, "B N C"]
    decay_all: Float32[Array, "B N"]
    beta: Float32[Array, "B N C"]


class _Decays(NamedTuple):
    """``between[c, d]`` is L of the README, ``entry`` is e, ``exit`` the decay from each token to the chunk's end."""

    between: Float32[Array, "B N C C"]
    entry: Float32[Array, "B N C 1"]
    exit: Float32[Array, "B N C 1"]


def forward(
    state: Float32[Array, "B N K V"], x: Chunk
) -> tuple[Float32[Array, "B N K V"], Float32[Array, "B N C V"] | None, Float32[Array, "B N H C"]]:
    """Returns the state after the chunk, its outputs, and the inverted halves of its system, side by side."""
    decays = _decays(x)
    system, _ = _system(x, decays)
    halves = invert_halves(system)
    writes, _ = _writes(state, x, decays, join_halves(system, halves))
    after = _last(decays.entry) * state + product("BNCK,BNCV->BNKV", x.k, decays.exit * writes)
    o = None
    if x.q is not None:
        scores = decays.between * product("BNCK,BNDK->BNCD", x.q, x.k)
        o = decays.entry * product("BNCK,BNKV->BNCV", x.q, state, rounded_to=x.v.dtype)
        o = o + product("BNCD,BNDV->BNCV", scores, writes, rounded_to=x.v.dtype)
    return after, o, jnp.concatenate([halves[..., 0, :, :], halves[..., 1, :, :]], axis=-1)


def backward(
    after: Float32[Array, "B N K V"],
    o: Float[Array, "B N C V"] | None,
    state: Float32[Array, "B N K V"],
    halves: Float32[Array, "B N H C"],
    x: Chunk,
) -> tuple[Float32[Array, "B N K V"], ChunkGradients]:
    """Takes the gradients ``after`` of the next state and ``o`` of the outputs to those of the state and the inputs.

    ``state`` is the one before the chunk, ``halves`` what `forward` returned.
    """
    H = halves.shape[-2]
    decays = _decays(x)
    system, overlap = _system(x, decays)
    inverse = join_halves(system, jnp.stack([halves[..., :H], halves[..., H:]], axis=-3))
    writes, errors = _writes(state, x, decays, inverse)

    # Gradients of U, of beta (V - e K S), and of V, which goes into the state too. `d_` marks gradients.
    d_writes = decays.exit * product("BNCK,BNKV->BNCV", x.k, after)
    if o is not None:
        similarity = product("BNCK,BNDK->BNCD", x.q, x.k)
        d_writes = d_writes + product("BNCD,BNCV->BNDV", decays.between * similarity, o)
    d_targets = product("BNCD,BNCV->BNDV", inverse, d_writes)
    d_v = x.beta[..., None] * d_targets
    d_known = decays.entry * d_v
    d_state = _last(decays.entry) * after - product("BNCK,BNCV->BNKV", x.k, d_known)

    # Through the system, beta L K K^T below the diagonal.
    lower = np.tri(x.k.shape[2], k=-1, dtype=bool)
    d_overlap = -product("BNCV,BNDV->BNCD", d_targets, writes) * decays.between
    d_overlap = jnp.where(lower, d_overlap, 0)
    d_system = d_overlap * overlap
    d_beta = jnp.sum(d_targets * errors, axis=-1) + jnp.sum(d_system, axis=-1)
    d_between = x.beta[..., None] * d_system
    d_overlap, d_between = lax.optimization_barrier((x.beta[..., None] * d_overlap, d_between))
    symmetric = d_overlap + jnp.swapaxes(d_overlap, -1, -2)
    d_k = product("BNCD,BNDK->BNCK", symmetric, x.k, rounded_to=x.k.dtype)

    # Through the state: what entered the chunk (decayed by e), and what left it.
    k = x.k.astype(jnp.float32)
    entered = -product("BNCV,BNKV->BNCK", d_known, state)
    left = decays.exit * product("BNCV,BNKV->BNCK", writes, after)
    entered, left = lax.optimization_barrier((entered, left))
    d_k = d_k + entered + left
    d_sums = jnp.sum((entered - left) * k, axis=-1)
    d_all = jnp.sum(left * k, axis=(-1, -2)) + decays.entry[..., -1, 0] * jnp.sum(after * state, axis=(-1, -2))

    d_q = None
    if o is not None:
        d_state = d_state + product("BNCK,BNCV->BNKV", x.q, decays.entry * o.astype(jnp.float32))
        d_scores = product("BNCV,BNDV->BNCD", o, writes) * decays.between
        d_between = d_between + d_scores * similarity
        d_q = lax.optimization_barrier(decays.entry * product("BNCV,BNKV->BNCK", o, state))
        d_sums = d_sums + jnp.sum(d_q * x.q.astype(jnp.float32), axis=-1)
        d_q = d_q + product("BNCD,BNDK->BNCK", d_scores, x.k, rounded_to=x.q.dtype)
        d_k = d_k + product("BNCD,BNCK->BNDK", d_scores, x.q, rounded_to=x.k.dtype)
    d_sums = d_sums + jnp.sum(d_between, axis=-1) - jnp.sum(d_between, axis=-2)
    return d_state, ChunkGradients(d_q, d_k, d_v, d_sums, d_all, d_beta)


def split_decays(log_decay: Float32[Array, "*S C"]) -> tuple[Float32[Array, "*S C"], Float32[Array, "*S C"]]:
    """Returns running sums of log decays in two parts, whose differences are right to 1e-7 whatever lies between.

    A difference of plain running sums loses all that is small behind one strong decay. Here the first part sums
    multiples of 1/256, from which float32 loses nothing, the second rests of at most 1/512. Decays below `FORGOTTEN`,
    whose exponential is 0 in float32, are raised to it, so that the first part stays below 2^16 up to C = 512.
    """
    log_decay = jnp.maximum(log_decay, FORGOTTEN)
    coarse = jnp.round(log_decay * 256) / 256
    return jnp.cumsum(coarse, axis=-1), jnp.cumsum(log_decay - coarse, axis=-1)


# A log decay that leaves exactly nothing: float32 ends at exp(-103.97).
FORGOTTEN = -128.0


def _decays(x: Chunk) -> _Decays:
    C = x.k.shape[2]

    def difference(to, since):
        return (to(x.decay_sums) - since(x.decay_sums)) + (to(x.decay_rests) - since(x.decay_rests))

    between = difference(lambda s: s[..., :, None], lambda s: s[..., None, :])
    # The mask comes before the exponential: above the diagonal that would overflow.
    between = lax.optimization_barrier(jnp.exp(jnp.where(np.tri(C, dtype=bool), between, -jnp.inf)))
    exit = jnp.exp(difference(lambda s: s[..., -1:], lambda s: s))
    return _Decays(between, jnp.exp(x.decay_sums + x.decay_rests)[..., None], exit[..., None])


def _system(x: Chunk, decays: _Decays) -> tuple[Float32[Array, "B N C C"], Float32[Array, "B N C C"]]:
    """Returns A of the README, and the inner products of the keys."""
    overlap = product("BNCK,BNDK->BNCD", x.k, x.k)
    lower = np.tri(x.k.shape[2], k=-1, dtype=bool)
    return jnp.where(lower, x.beta[..., None] * decays.between * overlap, 0), overlap


def _writes(
    state: Float32[Array, "B N K V"], x: Chunk, decays: _Decays, inverse: Float32[Array, "B N C C"]
) -> tuple[Float32[Array, "B N C V"], Float32[Array, "B N C V"]]:
    """Returns U of the README, and V - e K S: by how much the entering state misses each value."""
    errors = x.v.astype(jnp.float32) - decays.entry * product("BNCK,BNKV->BNCV", x.k, state)
    return product("BNCD,BNDV->BNCV", inverse, x.beta[..., None] * errors), errors


def _last(entry: Float32[Array, "B N C 1"]) -> Float32[Array, "B N 1 1"]:
    return entry[..., -1:, :]
