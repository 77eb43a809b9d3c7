"""The gated delta rule chunk by chunk: matrix products inside a chunk, a scan over the states between chunks.

README.md derives what is computed here and uses the same symbols; ``single_chunk.py`` has the mathematics of one chunk.

Letters: ``B`` batch, ``T`` tokens, ``N`` value heads, ``K`` key width, ``V`` value width, ``C`` position in chunk,
``M`` chunks, ``H`` half a chunk.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Float32, Int

from qwen35_jax.ops.gated_delta import single_chunk as one
from qwen35_jax.ops.gated_delta.chunks import Chunks, cut_into_chunks
from qwen35_jax.ops.gated_delta.inverse import invert_halves, join_halves
from qwen35_jax.ops.gated_delta.precision import XLA


def gated_delta_chunked(
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
    """Carries the state from chunk to chunk by ``lax.scan``; see ``gated_delta`` for arguments and results.

    The backward pass is written by hand. It keeps the inputs, the state before each chunk and half of each chunk's
    inverse, and computes the rest again.
    """
    chunks = cut_into_chunks(q, k, v, log_decay, beta, segment_ids, state_segment_ids, chunk_size=chunk_size)
    o, state = run_chunks(chunks, state)
    assert o is not None
    return o[:, : v.shape[1]], state


@jax.custom_vjp
def run_chunks(
    chunks: Chunks, state: Float32[Array, "B N K V"]
) -> tuple[Float[Array, "B T N V"] | None, Float32[Array, "B N K V"]]:
    """Returns the outputs (None without queries) and the state after the last chunk."""
    return _forward(chunks, state)[0]


def _forward(chunks: Chunks, state):
    def step(state, item):
        chunk = _take(chunks, item)
        after, o, inverse = one.forward(state, chunk, _invert, XLA)
        return after, (None if o is None else _put_back(o, chunks.v), state, _halves(inverse))

    after, (o, states, halves) = lax.scan(step, state, _items(chunks))
    return (None if o is None else _join(o, chunks.v), after), (chunks, states, halves)


def _backward(residuals, cotangents):
    chunks, states, halves = residuals
    d_o, d_after = cotangents

    def step(after, x):
        item, state, halves = x
        d_chunk = None if d_o is None else _slice(d_o, item.start, chunks.log_decay.shape[-1])
        d_state, grads = one.backward(
            after, d_chunk, state, _take(chunks, item), lambda system: _from_halves(system, halves), XLA
        )

        def put_back(grad: Array, like: Array) -> Array:
            return _put_back(_masked(grad, chunks, item), like)

        q = None if grads.q is None or chunks.q is None else put_back(grads.q, chunks.q)
        return d_state, grads._replace(q=q, k=put_back(grads.k, chunks.k), v=put_back(grads.v, chunks.v))

    d_state, grads = lax.scan(step, d_after, (_items(chunks), states, halves), reverse=True)
    q = None if grads.q is None or chunks.q is None else _join(grads.q, chunks.q)
    k, v = _join(grads.k, chunks.k), _join(grads.v, chunks.v)
    sums, every, beta = (jnp.moveaxis(x, 0, 1) for x in (grads.decay_sums, grads.decay_all, grads.beta))
    return Chunks(q, k, v, one.log_decay_gradient(chunks.log_decay, sums, every), beta, None), d_state


run_chunks.defvjp(_forward, _backward)


def _invert(system: one.System) -> one.System:
    return join_halves(system, invert_halves(system))


def _halves(inverse: one.System) -> Float32[Array, "*S H C"]:
    """Returns the diagonal blocks side by side: all that ``_from_halves`` needs, in half the memory."""
    H = inverse.shape[-1] // 2
    return jnp.concatenate([inverse[..., :H, :H], inverse[..., H:, H:]], axis=-1)


def _from_halves(system: one.System, halves: Float32[Array, "*S H C"]) -> one.System:
    H = halves.shape[-2]
    return join_halves(system, jnp.stack([halves[..., :H], halves[..., H:]], axis=-3))


class _Item(NamedTuple):
    """What the scans read of each chunk; queries, keys and values are sliced out of the whole, which copies nothing."""

    start: Int[Array, "*M"]
    decay_sums: Float32[Array, "*M B N C"]
    decay_rests: Float32[Array, "*M B N C"]
    beta: Float32[Array, "*M B N C"]


def _items(chunks: Chunks) -> _Item:
    _, M, _, C = chunks.beta.shape
    sums, rests = one.split_decays(chunks.log_decay)
    return _Item(C * jnp.arange(M), *(jnp.moveaxis(x, 1, 0) for x in (sums, rests, chunks.beta)))


def _take(chunks: Chunks, item: _Item) -> one.Chunk:
    C = chunks.beta.shape[-1]

    def take(x: Float[Array, "B T N H"]) -> Float[Array, "B N C H"]:
        return _masked(_slice(x, item.start, C), chunks, item)

    q = None if chunks.q is None else take(chunks.q)
    return one.Chunk(q, take(chunks.k), take(chunks.v), item.decay_sums, item.decay_rests, item.beta)


def _slice(x: Float[Array, "B T N H"], start: Int[Array, ""], C: int) -> Float[Array, "B N C H"]:
    return jnp.moveaxis(lax.dynamic_slice_in_dim(x, start, C, axis=1), 2, 1)


def _masked(x: Float[Array, "B N C H"], chunks: Chunks, item: _Item) -> Float[Array, "B N C H"]:
    """Replaces the vectors of padding by 0."""
    if chunks.is_real is None:
        return x
    is_real = lax.dynamic_slice_in_dim(chunks.is_real, item.start, x.shape[2], axis=1)
    return jnp.where(is_real[:, None, :, None], x, 0)


def _put_back(x: Float32[Array, "B N C H"], like: Array) -> Float[Array, "B C N H"]:
    return jnp.moveaxis(x, 1, 2).astype(like.dtype)


def _join(x: Float[Array, "M B C N H"], like: Float[Array, "B T N H"]) -> Float[Array, "B T N H"]:
    return jnp.moveaxis(x, 0, 1).reshape(like.shape)
