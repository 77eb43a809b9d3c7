"""The gated delta rule chunk by chunk: matrix products inside a chunk, a scan over the states between chunks.

README.md derives what is computed here and uses the same symbols; chunk.py has the mathematics of one chunk.

Letters: B batch, T tokens, N value heads, K key width, V value width, C position in chunk, M chunks, H half a chunk.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Float32, Int

from qwen35_jax.ops.gated_delta import chunk as one
from qwen35_jax.ops.gated_delta.product import product
from qwen35_jax.ops.segments import fill_padding


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
    """Carries the state from chunk to chunk by `lax.scan`; see `gated_delta` for arguments and results.

    The backward pass is written by hand. It keeps the inputs, the state before each chunk and half of each chunk's
    inverse, and computes the rest again.
    """
    row = make_row(q, k, v, log_decay, beta, segment_ids, state_segment_ids, chunk_size=chunk_size)
    o, state = run_row(row, state)
    return o[:, : v.shape[1]], state


class Row(NamedTuple):
    """Whole chunks of tokens. ``q`` is None where only the state is wanted.

    A token that does not continue the document of the one before it has the log decay `chunk.FORGOTTEN`: it reads
    exactly nothing of what was before. Padding has a log decay and ``beta`` of 0; ``is_real`` tells it apart.
    """

    q: Float[Array, "B T N K"] | None
    k: Float[Array, "B T N K"]
    v: Float[Array, "B T N V"]
    log_decay: Float32[Array, "B M N C"]
    beta: Float32[Array, "B M N C"]
    is_real: Bool[Array, "B T"] | None


def make_row(q, k, v, log_decay, beta, segment_ids, state_segment_ids, *, chunk_size: int | None) -> Row:
    """Turns the arguments of `gated_delta` into a row of whole chunks; what fills up the last changes nothing."""
    T = k.shape[1]
    C = pick_chunk_size(chunk_size, v)
    log_decay, beta = log_decay.astype(jnp.float32), beta.astype(jnp.float32)
    is_real = None
    if segment_ids is not None:
        documents, state_documents = fill_padding(segment_ids, state_segment_ids)
        is_real = segment_ids != 0
        continues = documents == jnp.concatenate([state_documents[:, None], documents[:, :-1]], axis=1)
        log_decay = jnp.where(is_real[..., None], log_decay, 0)
        log_decay = jnp.where(continues[..., None], log_decay, one.FORGOTTEN)
        beta = jnp.where(is_real[..., None], beta, 0)

    def fill(x: Array) -> Array:
        return jnp.pad(x, [(0, 0), (0, -T % C)] + [(0, 0)] * (x.ndim - 2)) if T % C else x

    def cut(x: Float32[Array, "B T N"]) -> Float32[Array, "B M N C"]:
        x = fill(x)
        return jnp.moveaxis(x.reshape(x.shape[0], -1, C, x.shape[2]), 2, 3)

    q, k, v, is_real = (None if x is None else fill(x) for x in (q, k, v, is_real))
    return Row(q, k, v, cut(log_decay), cut(beta), is_real)


def pick_chunk_size(chunk_size: int | None, v: Float[Array, "B T N V"]) -> int:
    """Returns the tokens per chunk: by default 128 for bfloat16 and 64 for float32, in short rows no more than needed.

    On a TPU, for which bfloat16 is meant, chunks of 128 fill the matrix unit. A CPU, where one trains in float32, has
    less to do with 64: forward and backward of 4,096 tokens and 16 heads take 1.0 against 1.5 s on one core.
    """
    if chunk_size is None:
        chunk_size = 128 if v.dtype == jnp.bfloat16 else 64
    # The next power of two; a chunk has two halves.
    return min(chunk_size, max(2, 1 << (v.shape[1] - 1).bit_length()))


@jax.custom_vjp
def run_row(
    row: Row, state: Float32[Array, "B N K V"]
) -> tuple[Float[Array, "B T N V"] | None, Float32[Array, "B N K V"]]:
    """Returns the outputs, None without queries, and the state after the row."""
    return _forward(row, state)[0]


def _forward(row: Row, state):
    def step(state, item):
        chunk = _take(row, item)
        after, o, halves = one.forward(state, chunk)
        return after, (_put_back(o, row.v), state, halves)

    after, (o, states, halves) = lax.scan(step, state, _items(row))
    return (_join(o, row.v), after), (row, states, halves)


def _backward(residuals, cotangents):
    row, states, halves = residuals
    d_o, d_after = cotangents

    def step(after, x):
        item, state, halves = x
        d_state, grads = one.backward(
            after, _slice(d_o, item.start, row.log_decay.shape[-1]), state, halves, _take(row, item)
        )
        inputs = (_put_back(_masked(g, row, item), x) for g, x in zip(grads[:3], row[:3], strict=True))
        return d_state, one.ChunkGradients(*inputs, *grads[3:])

    d_state, grads = lax.scan(step, d_after, (_items(row), states, halves), reverse=True)
    q, k, v = (_join(g, x) for g, x in zip(grads[:3], row[:3], strict=True))
    # What changes the decay of token c changes all running sums from c on.
    sums, every, beta = (jnp.moveaxis(x, 0, 1) for x in grads[3:])
    C = sums.shape[-1]
    log_decay = product("BMNC,CD->BMND", sums, jnp.tri(C, dtype=jnp.bfloat16)) + every[..., None]
    log_decay = jnp.where(row.log_decay > one.FORGOTTEN, log_decay, 0)
    return Row(q, k, v, log_decay, beta, None), d_state


run_row.defvjp(_forward, _backward)


class _Item(NamedTuple):
    """What the scans read of each chunk; queries, keys and values are sliced out of the row, which copies nothing."""

    start: Int[Array, "*M"]
    decay_sums: Float32[Array, "*M B N C"]
    decay_rests: Float32[Array, "*M B N C"]
    beta: Float32[Array, "*M B N C"]


def _items(row: Row) -> _Item:
    _, M, _, C = row.beta.shape
    sums, rests = one.split_decays(row.log_decay)
    return _Item(C * jnp.arange(M), *(jnp.moveaxis(x, 1, 0) for x in (sums, rests, row.beta)))


def _take(row: Row, item: _Item) -> one.Chunk:
    C = row.beta.shape[-1]
    q, k, v = (_masked(_slice(x, item.start, C), row, item) for x in row[:3])
    return one.Chunk(q, k, v, *item[1:])


def _slice(x: Float[Array, "B T N H"] | None, start: Int[Array, ""], C: int) -> Float[Array, "B N C H"] | None:
    return None if x is None else jnp.moveaxis(lax.dynamic_slice_in_dim(x, start, C, axis=1), 2, 1)


def _masked(x: Float[Array, "B N C H"] | None, row: Row, item: _Item) -> Float[Array, "B N C H"] | None:
    """Replaces what padding holds by 0."""
    if x is None or row.is_real is None:
        return x
    is_real = lax.dynamic_slice_in_dim(row.is_real, item.start, x.shape[2], axis=1)
    return jnp.where(is_real[:, None, :, None], x, 0)


def _put_back(x: Float32[Array, "B N C H"] | None, like: Array | None) -> Float[Array, "B C N H"] | None:
    return None if x is None or like is None else jnp.moveaxis(x, 1, 2).astype(like.dtype)


def _join(x: Float[Array, "M B C N H"] | None, like: Float[Array, "B T N H"] | None) -> Float[Array, "B T N H"] | None:
    return None if x is None else jnp.moveaxis(x, 0, 1).reshape(like.shape)
