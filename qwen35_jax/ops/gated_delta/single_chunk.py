"""One chunk of the gated delta rule, forward and backward; README.md derives both and uses the same symbols.

Letters: ``S`` the heads, in any leading axes, ``K`` key width, ``V`` value width, ``C`` (and ``D``) position in
chunk.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Float32

from qwen35_jax.ops.gated_delta.precision import XLA, Arithmetic

System = Float32[Array, "*S C C"]


class Chunk(NamedTuple):
    """The tokens of one chunk. ``q`` is None where only the state is wanted.

    ``decay_sums`` and ``decay_rests`` add up to the running sum of log decays; the differences of each are exact enough
    (see ``split_decays``).
    """

    q: Float[Array, "*S C K"] | None
    k: Float[Array, "*S C K"]
    v: Float[Array, "*S C V"]
    decay_sums: Float32[Array, "*S C"]
    decay_rests: Float32[Array, "*S C"]
    beta: Float32[Array, "*S C"]


class ChunkGradients(NamedTuple):
    """Gradients of one chunk's inputs, float32.

    That of token c's log decay is the sum of ``decay_sums`` from c on, and ``decay_all``.
    """

    q: Float32[Array, "*S C K"] | None
    k: Float32[Array, "*S C K"]
    v: Float32[Array, "*S C V"]
    decay_sums: Float32[Array, "*S C"]
    decay_all: Float32[Array, "*S"]
    beta: Float32[Array, "*S C"]


def forward(
    state: Float32[Array, "*S K V"], x: Chunk, invert: Callable[[System], System], arithmetic: Arithmetic
) -> tuple[Float32[Array, "*S K V"], Float32[Array, "*S C V"] | None, System]:
    """Returns the state after the chunk, its outputs, and what ``invert`` made of its system."""
    product = arithmetic.product
    decays = _decays(x, arithmetic)
    system, _ = _system(x, decays, arithmetic)
    inverse = invert(system)
    _, _, writes = _writes(state, x, decays, inverse, arithmetic)
    after = _last(decays.entry) * state + product("...CK,...CV->...KV", x.k, decays.exit * writes)
    o = None
    if x.q is not None:
        scores = decays.between * product("...CK,...DK->...CD", x.q, x.k)
        o = decays.entry * product("...CK,...KV->...CV", x.q, state, rounded_to=x.v.dtype)
        o = o + product("...CD,...DV->...CV", scores, writes, rounded_to=x.v.dtype)
    return after, o, inverse


def backward(
    after: Float32[Array, "*S K V"],
    o: Float[Array, "*S C V"] | None,
    state: Float32[Array, "*S K V"],
    x: Chunk,
    invert: Callable[[System], System],
    arithmetic: Arithmetic,
) -> tuple[Float32[Array, "*S K V"], ChunkGradients]:
    """Takes the gradients ``after`` of the next state and ``o`` of the outputs to those of the state and the inputs.

    ``state`` is the one before the chunk; ``invert`` may know the inverse already.
    """
    product = arithmetic.product
    decays = _decays(x, arithmetic)
    system, overlap = _system(x, decays, arithmetic)
    inverse = invert(system)
    known, errors, writes = _writes(state, x, decays, inverse, arithmetic)

    # Gradients of U, of beta (V - e K S), and of V, which goes into the state too. ``d_`` marks gradients.
    d_left = decays.exit * product("...CK,...KV->...CV", x.k, after)
    d_writes, similarity = d_left, None
    if o is not None:
        similarity = product("...CK,...DK->...CD", x.q, x.k)
        d_writes = d_writes + product("...CD,...CV->...DV", decays.between * similarity, o)
    d_targets = product("...CD,...CV->...DV", inverse, d_writes)
    d_v = x.beta[..., None] * d_targets
    d_known = decays.entry * d_v
    d_state = _last(decays.entry) * after - product("...CK,...CV->...KV", x.k, d_known)

    # Through the system, beta L K K^T below the diagonal.
    d_overlap = -product("...CV,...DV->...CD", d_targets, writes) * decays.between
    d_overlap = jnp.where(_lower(x, -1), d_overlap, 0)
    d_system = d_overlap * overlap
    d_beta = jnp.sum(d_targets * errors, axis=-1) + jnp.sum(d_system, axis=-1)
    d_between = x.beta[..., None] * d_system
    d_overlap, d_between = arithmetic.materialize((x.beta[..., None] * d_overlap, d_between))
    symmetric = d_overlap + jnp.swapaxes(d_overlap, -1, -2)
    d_k = product("...CD,...DK->...CK", symmetric, x.k, rounded_to=x.k.dtype)

    # Through the state: what entered the chunk (decayed by e), and what is left of it at the end.
    d_k = d_k - product("...CV,...KV->...CK", d_known, state, rounded_to=x.k.dtype)
    d_k = d_k + product("...CV,...KV->...CK", decays.exit * writes, after, rounded_to=x.k.dtype)
    left = jnp.sum(d_left * writes, axis=-1)
    d_sums = -jnp.sum(d_v * known, axis=-1) - left
    d_all = jnp.sum(left, axis=-1) + decays.entry[..., -1, 0] * jnp.sum(after * state, axis=(-1, -2))

    d_q = None
    if o is not None:
        assert x.q is not None and similarity is not None
        d_state = d_state + product("...CK,...CV->...KV", x.q, decays.entry * o.astype(jnp.float32))
        d_scores = product("...CV,...DV->...CD", o, writes) * decays.between
        d_between = d_between + d_scores * similarity
        d_q = arithmetic.materialize(decays.entry * product("...CV,...KV->...CK", o, state))
        d_sums = d_sums + jnp.sum(d_q * x.q.astype(jnp.float32), axis=-1)
        d_q = d_q + product("...CD,...DK->...CK", d_scores, x.k, rounded_to=x.q.dtype)
        d_k = d_k + product("...CD,...CK->...DK", d_scores, x.q, rounded_to=x.k.dtype)
    d_sums = d_sums + jnp.sum(d_between, axis=-1) - jnp.sum(d_between, axis=-2)
    return d_state, ChunkGradients(d_q, d_k, d_v, d_sums, d_all, d_beta)


def split_decays(log_decay: Float32[Array, "*S C"]) -> tuple[Float32[Array, "*S C"], Float32[Array, "*S C"]]:
    """Returns running sums of log decays in two parts, whose differences are right to 1e-7 for any decays in between.

    A difference of plain running sums loses all that is small behind one strong decay. Here the first part sums
    multiples of 1/256, which float32 adds exactly, and the second sums rests of at most 1/512. Decays below
    ``FORGOTTEN``, whose exponential is 0 in float32, are raised to it, so that the first part stays below 2^16 up to
    C = 512.
    """
    log_decay = jnp.maximum(log_decay, FORGOTTEN)
    coarse = jnp.round(log_decay * 256) / 256
    return jnp.cumsum(coarse, axis=-1), jnp.cumsum(log_decay - coarse, axis=-1)


def log_decay_gradient(
    log_decay: Float32[Array, "*S C"], sums: Float32[Array, "*S C"], every: Float32[Array, "*S"]
) -> Float32[Array, "*S C"]:
    """Returns the gradient of the log decays from those of their running sums (see ``ChunkGradients``)."""
    C = sums.shape[-1]
    gradient = XLA.product("...C,CD->...D", sums, jnp.tri(C, dtype=jnp.bfloat16)) + every[..., None]
    return jnp.where(log_decay > FORGOTTEN, gradient, 0)


# A log decay that leaves exactly nothing: float32 ends at exp(-103.97).
FORGOTTEN = -128.0


class _Decays(NamedTuple):
    """``between[c, d]`` is L of the README, ``entry`` is e, ``exit`` the decay from each token to the chunk's end."""

    between: Float32[Array, "*S C C"]
    entry: Float32[Array, "*S C 1"]
    exit: Float32[Array, "*S C 1"]


def _decays(x: Chunk, arithmetic: Arithmetic) -> _Decays:
    def difference(to, since):
        return (to(x.decay_sums) - since(x.decay_sums)) + (to(x.decay_rests) - since(x.decay_rests))

    between = difference(lambda s: s[..., :, None], lambda s: s[..., None, :])
    # The mask comes before the exponential: above the diagonal that would overflow.
    between = arithmetic.materialize(jnp.exp(jnp.where(_lower(x), between, -jnp.inf)))
    exit = jnp.exp(difference(lambda s: s[..., -1:], lambda s: s))
    return _Decays(between, jnp.exp(x.decay_sums + x.decay_rests)[..., None], exit[..., None])


def _system(x: Chunk, decays: _Decays, arithmetic: Arithmetic) -> tuple[System, System]:
    """Returns A of the README, and the inner products of the keys."""
    overlap = arithmetic.product("...CK,...DK->...CD", x.k, x.k)
    return jnp.where(_lower(x, -1), x.beta[..., None] * decays.between * overlap, 0), overlap


def _writes(
    state: Float32[Array, "*S K V"], x: Chunk, decays: _Decays, inverse: System, arithmetic: Arithmetic
) -> tuple[Float32[Array, "*S C V"], Float32[Array, "*S C V"], Float32[Array, "*S C V"]]:
    """Returns e K S, which the entering state knows of the values; what each value is beyond that; and U."""
    known = decays.entry * arithmetic.product("...CK,...KV->...CV", x.k, state)
    errors = x.v.astype(jnp.float32) - known
    return known, errors, arithmetic.product("...CD,...DV->...CV", inverse, x.beta[..., None] * errors)


def _lower(x: Chunk, diagonal: int = 0) -> Bool[Array, "C C"]:
    """Marks the entries up to a diagonal, by computed indices: a kernel holds no constant arrays."""
    C = x.k.shape[-2]
    row, column = (lax.broadcasted_iota(jnp.int32, (C, C), axis) for axis in (0, 1))
    return column <= row + diagonal


def _last(entry: Float32[Array, "*S C 1"]) -> Float32[Array, "*S 1 1"]:
    return entry[..., -1:, :]
