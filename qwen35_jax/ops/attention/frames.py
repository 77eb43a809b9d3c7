"""Attention inside frames, without a causal mask, in plain XLA: each block of queries visits the keys of its frames.

The frames of a row follow each other, so these keys are one run of blocks. Its place is known to the device alone;
loops of such lengths have no derivative of their own, so the backward pass is written out.

Letters: ``R`` rows, ``P`` patches (queries), ``S`` patches (keys), ``N`` heads, ``H`` head width, ``Q`` and ``K``
queries and keys of one block.

Source: arXiv:2205.14135 for both passes.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

BLOCK = 256

_NEVER = -1e30


def blocks_to_visit(
    frames: Int[Array, " P"], key_frames: Int[Array, " S"], block: int, key_block: int
) -> tuple[Int[Array, " M"], Int[Array, " M"]]:
    """Returns for each block of queries the first block of keys that shares a frame with it, and how many do.

    Frames follow each other in ascending order, with padding (0) behind them. A block of padding has none to visit.
    """
    (first, last), (key_first, key_last) = _bounds(frames, block), _bounds(key_frames, key_block)
    meets = (key_last >= first[:, None]) & (key_first <= last[:, None])
    return jnp.argmax(meets, axis=1).astype(jnp.int32), jnp.sum(meets, axis=1, dtype=jnp.int32)


def _bounds(frames: Int[Array, " P"], block: int) -> tuple[Int[Array, " M"], Int[Array, " M"]]:
    """Returns the first and the last frame of each block; those of a block of padding meet nothing."""
    blocks = frames.reshape(-1, block)
    last = blocks.max(axis=1)
    return jnp.where(blocks > 0, blocks, jnp.iinfo(jnp.int32).max).min(axis=1), last


def plain_frame_attention(
    q: Float[Array, "R P N H"],
    k: Float[Array, "R S N H"],
    v: Float[Array, "R S N H"],
    frames: Int[Array, "R P"],
    key_frames: Int[Array, "R S"],
) -> Float[Array, "R P N H"]:
    """Computes ``frame_attention`` block by block; padding gets zeros, and costs nothing where it fills a block."""
    num_patches = q.shape[1]
    block, key_block = min(BLOCK, num_patches), min(BLOCK, k.shape[1])
    q, frames = _padded(q, block), _padded(frames, block)
    k, v, key_frames = (_padded(x, key_block) for x in (k, v, key_frames))

    def row(args):
        q, k, v, frames, key_frames = args
        heads_first = (jnp.moveaxis(x, 1, 0) for x in (q, k, v))
        return jnp.moveaxis(_attend(*heads_first, frames, key_frames, block, key_block), 0, 1)

    if q.shape[0] == 1:
        return row((q[0], k[0], v[0], frames[0], key_frames[0]))[None, :num_patches]
    return jax.lax.map(row, (q, k, v, frames, key_frames))[:, :num_patches]


def _padded(x: Array, block: int) -> Array:
    return jnp.pad(x, ((0, 0), (0, -x.shape[1] % block), *((0, 0),) * (x.ndim - 2)))


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def _attend(q, k, v, frames, key_frames, block, key_block):
    """Attends in one row; ``q`` is [N, P, H], and so is the result."""
    return _forward(q, k, v, frames, key_frames, block, key_block)[0]


def _forward(q, k, v, frames, key_frames, block: int, key_block: int):
    """Returns the outputs [N, P, H] and the logarithms of the sums of exponentials [N, P]."""
    N, _, H = q.shape

    def of_block(args):
        index, first, count = args
        q_NQH, frames_Q = _cut(q, index, block, 1), _cut(frames, index, block, 0)

        def visit(j, carry):
            out, largest, total = carry
            k_NKH, v_NKH, visible = _keys(k, v, key_frames, frames_Q, first + j, key_block)
            scores = jnp.where(visible, _scores(q_NQH, k_NKH), _NEVER)
            now = jnp.maximum(largest, scores.max(axis=-1))
            weights, fade = jnp.exp(scores - now[..., None]), jnp.exp(largest - now)
            product = jnp.einsum("NQK,NKH->NQH", weights.astype(v.dtype), v_NKH, preferred_element_type=jnp.float32)
            return out * fade[..., None] + product, now, total * fade + weights.sum(axis=-1)

        zeros = jnp.zeros((N, block), jnp.float32)
        out, largest, total = jax.lax.fori_loop(
            0, count, visit, (jnp.zeros((N, block, H), jnp.float32), zeros + _NEVER, zeros)
        )
        total = jnp.where(frames_Q > 0, total, 1.0)
        out = jnp.where(frames_Q[:, None] > 0, out / total[..., None], 0.0).astype(v.dtype)
        return out, largest + jnp.log(total)

    first, count = blocks_to_visit(frames, key_frames, block, key_block)
    out, log_total = jax.lax.map(of_block, (jnp.arange(len(first)), first, count))
    return jnp.moveaxis(out, 0, 1).reshape(q.shape), jnp.moveaxis(log_total, 0, 1).reshape(N, -1)


def _attend_forward(q, k, v, frames, key_frames, block, key_block):
    out, log_total = _forward(q, k, v, frames, key_frames, block, key_block)
    return out, (q, k, v, frames, key_frames, out, log_total)


def _attend_backward(block, key_block, residuals, d_out):
    q, k, v, frames, key_frames, out, log_total = residuals
    # What a score's gradient has in common over a query's keys.
    common = jnp.sum(out.astype(jnp.float32) * d_out.astype(jnp.float32), axis=-1)

    def of_block(carry, args):
        index, first, count = args
        q_NQH, d_out_NQH = _cut(q, index, block, 1), _cut(d_out, index, block, 1)
        log_total_NQ, common_NQ = _cut(log_total, index, block, 1), _cut(common, index, block, 1)
        frames_Q = _cut(frames, index, block, 0)

        def visit(j, carry):
            dk, dv, dq_NQH = carry
            k_NKH, v_NKH, visible = _keys(k, v, key_frames, frames_Q, first + j, key_block)
            weights = jnp.where(visible, jnp.exp(_scores(q_NQH, k_NKH) - log_total_NQ[..., None]), 0.0)
            d_weights = jnp.einsum("NQH,NKH->NQK", d_out_NQH, v_NKH, preferred_element_type=jnp.float32)
            d_scores = (weights * (d_weights - common_NQ[..., None]) * q.shape[-1] ** -0.5).astype(q.dtype)
            dv = _add(dv, jnp.einsum("NQK,NQH->NKH", weights.astype(v.dtype), d_out_NQH), first + j, key_block)
            dk = _add(dk, jnp.einsum("NQK,NQH->NKH", d_scores, q_NQH), first + j, key_block)
            return dk, dv, dq_NQH + jnp.einsum("NQK,NKH->NQH", d_scores, k_NKH, preferred_element_type=jnp.float32)

        dk, dv, dq_NQH = jax.lax.fori_loop(0, count, visit, (*carry, jnp.zeros(q_NQH.shape, jnp.float32)))
        return (dk, dv), dq_NQH.astype(q.dtype)

    first, count = blocks_to_visit(frames, key_frames, block, key_block)
    zeros = jnp.zeros(k.shape, jnp.float32)
    (dk, dv), dq = jax.lax.scan(of_block, (zeros, zeros), (jnp.arange(len(first)), first, count))
    return jnp.moveaxis(dq, 0, 1).reshape(q.shape), dk.astype(k.dtype), dv.astype(v.dtype), None, None


_attend.defvjp(_attend_forward, _attend_backward)


def _scores(q_NQH, k_NKH) -> Float[Array, "N Q K"]:
    return jnp.einsum("NQH,NKH->NQK", q_NQH, k_NKH, preferred_element_type=jnp.float32) * q_NQH.shape[-1] ** -0.5


def _keys(k, v, key_frames, frames_Q, index, key_block: int):
    """Returns keys and values of a block, and which of them the queries may see."""
    visible = (frames_Q[:, None] == _cut(key_frames, index, key_block, 0)) & (frames_Q[:, None] > 0)
    return _cut(k, index, key_block, 1), _cut(v, index, key_block, 1), visible


def _cut(x, index, block: int, axis: int):
    return jax.lax.dynamic_slice_in_dim(x, index * block, block, axis)


def _add(total, part, index, block: int):
    summed = _cut(total, index, block, 1) + part.astype(total.dtype)
    return jax.lax.dynamic_update_slice_in_dim(total, summed, index * block, 1)
