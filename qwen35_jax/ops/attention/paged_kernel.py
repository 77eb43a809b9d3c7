"""Attention to pages in a kernel for a TPU that reads the pages in use and no others.

A work list names the live pages, sequence after sequence, and the kernel takes one a step, so the time does not
depend on the longest sequence or on what a table could hold.

Letters: as in ``paged.py``; ``R = T G`` rows of queries that share a key head, ``W`` the most steps there can be.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int

from qwen35_jax.sharding import current_platform

_LANES = 128
_FLOOR = -1e30

_MAX_ROWS = 2048
"""Rows of queries of a key head: 512 tokens of four heads take 24 MiB of the chip's memory."""

_MEMORY = 48 * 2**20

_MAX_STEPS = 2**16
"""Steps that the scalar memory has room for: 256 sequences of 256 pages."""


class _WorkList(NamedTuple):
    """What the scalar unit reads; ``start`` has the first step of each sequence, and behind them the number of all."""

    sequence: Int[Array, " W"]
    table: Int[Array, " W"]
    start: Int[Array, " B+1"]
    lengths: Int[Array, " B"]
    layer: Int[Array, " 1"]


def fits(q: Float[Array, "B T N H"], pages: Float[Array, "L P D S H"], table: Int[Array, "B M"]) -> bool:
    """Whether the kernel takes these shapes: bfloat16, heads and pages in multiples of 128, a window or a chunk."""
    _, T, N, H = q.shape
    whole = H % _LANES == 0 and pages.shape[3] % _LANES == 0
    rows = T * N // (pages.shape[2] // 2)
    return q.dtype == pages.dtype == jnp.bfloat16 and whole and rows <= _MAX_ROWS and table.size <= _MAX_STEPS


def paged_attention_kernel(
    q: Float[Array, "B T N H"],
    pages: Float[Array, "L P D S H"],
    layer: Int[Array, ""],
    table: Int[Array, "B M"],
    lengths: Int[Array, " B"],
) -> Float[Array, "B T N H"]:
    """Computes ``paged_attention``; platforms other than a TPU interpret the kernel."""
    B, T, N, H = q.shape
    D, S = pages.shape[2:4]
    K, G = D // 2, 2 * N // D
    rows = jnp.swapaxes(q.reshape(B, T, K, G, H), 1, 2).reshape(B, K, T * G, H)
    work = _work_list(table, lengths, layer, T, S)
    by_sequence = pl.BlockSpec((1, K, T * G, H), lambda i, work: (work.sequence[i], 0, 0, 0))
    by_page = pl.BlockSpec((1, 1, D, S, H), lambda i, work: (work.layer[0], _page(work, i), 0, 0, 0))

    def over_lanes(width: int):
        return pltpu.VMEM((K, T * G, width), jnp.float32)

    out = pl.pallas_call(
        functools.partial(_kernel, num_tokens=T),
        name="paged_attention",
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(work.start[-1],),
            in_specs=[by_sequence, by_page],
            out_specs=by_sequence,
            scratch_shapes=[over_lanes(_LANES), over_lanes(_LANES), over_lanes(H)],
        ),
        out_shape=jax.ShapeDtypeStruct(rows.shape, q.dtype),
        compiler_params=pltpu.CompilerParams(dimension_semantics=("arbitrary",), vmem_limit_bytes=_MEMORY),
        interpret=current_platform() != "tpu",
    )(work, rows, pages)
    return jnp.swapaxes(out.reshape(B, K, T, G, H), 1, 2).reshape(B, T, N, H)


def _work_list(
    table: Int[Array, "B M"], lengths: Int[Array, " B"], layer: Int[Array, ""], num_tokens: int, page_size: int
) -> _WorkList:
    B, M = table.shape
    live = jnp.clip(-(-(lengths + num_tokens) // page_size), 1, M)
    ends = jnp.cumsum(live, dtype=jnp.int32)
    start = jnp.concatenate([jnp.zeros(1, jnp.int32), ends])
    steps = jnp.arange(B * M, dtype=jnp.int32)
    sequence = jnp.minimum(jnp.searchsorted(ends, steps, side="right", method="compare_all"), B - 1).astype(jnp.int32)
    return _WorkList(sequence, table.reshape(-1), start, lengths, layer[None])


def _page(work: _WorkList, step):
    """Returns the page that a step takes."""
    sequence, places = work.sequence[step], work.table.shape[0] // work.lengths.shape[0]
    return work.table[sequence * places + jnp.minimum(step - work.start[sequence], places - 1)]


def _kernel(work: _WorkList, q, pages, out, largest, weights, sums, *, num_tokens: int) -> None:
    """Adds one page to what its sequence has summed up, and divides after the last."""
    step = pl.program_id(0)
    sequence = work.sequence[step]
    ordinal, length = step - work.start[sequence], work.lengths[sequence]
    S = pages.shape[3]

    @pl.when(ordinal == 0)
    def _():
        largest[...] = jnp.full_like(largest, _FLOOR)
        weights[...] = jnp.zeros_like(weights)
        sums[...] = jnp.zeros_like(sums)

    add = functools.partial(_add_page, q, pages, (largest, weights, sums), ordinal * S, length, num_tokens)
    all_see = (ordinal + 1) * S <= length + 1
    pl.when(all_see)(functools.partial(add, masked=False))
    pl.when(jnp.logical_not(all_see))(functools.partial(add, masked=True))

    @pl.when(step + 1 == work.start[sequence + 1])
    def _():
        out[0] = (sums[...] / weights[...][:, :, :1]).astype(out.dtype)


def _add_page(q, pages, kept, first, length, num_tokens: int, *, masked: bool) -> None:
    """Adds the page whose first token has the position ``first``; ``masked`` if some query does not see all of it."""
    largest, weights, sums = kept
    K, R, H = sums.shape
    S = pages.shape[3]
    for head in range(K):
        k, v = pages[0, 0, 2 * head], pages[0, 0, 2 * head + 1]
        scores = _product(q[0, head], k, 1) * H**-0.5
        visible = None
        if masked:
            token = lax.broadcasted_iota(jnp.int32, (R, S), 0) // (R // num_tokens)
            visible = first + lax.broadcasted_iota(jnp.int32, (R, S), 1) <= length + token
            scores = jnp.where(visible, scores, _FLOOR)
            # A weight of 0 does not hide a NaN: clear it behind the first query.
            exact, position = v.astype(jnp.float32), first + lax.broadcasted_iota(jnp.int32, (S, H), 0)
            v = jnp.where((position <= length) | (jnp.abs(exact) < jnp.inf), exact, 0).astype(v.dtype)
        before = largest[head]
        now = jnp.maximum(before, jnp.max(scores, axis=1, keepdims=True))
        scale, terms = jnp.exp(before - now), jnp.exp(scores - now[:, :1])
        if visible is not None:
            terms = jnp.where(visible, terms, 0)
        largest[head] = now
        weights[head] = weights[head] * scale + jnp.sum(terms, axis=1, keepdims=True)
        sums[head] = sums[head] * scale[:, :1] + _product(terms.astype(v.dtype), v, 0)


def _product(a: Array, b: Array, axis: int) -> Array:
    """Multiplies the last axis of ``a`` with an axis of ``b``, summed in float32."""
    precision = None if a.dtype == jnp.bfloat16 else lax.Precision.HIGHEST
    axes = (((1,), (axis,)), ((), ()))
    return lax.dot_general(a, b, axes, precision=precision, preferred_element_type=jnp.float32)
