"""Attention to keys and values that lie in pages, each sequence with its own length; README.md has the mathematics.

A page holds ``S`` tokens of one sequence. Row ``b`` of a table names the pages of sequence ``b`` in order, 0 behind
the last; page 0 belongs to nobody, and what must not be kept is written there. Memory that a query does not see may
hold anything, even NaN, so a sequence's result is the same bit for bit whatever the others do.

Letters: ``B`` sequences, ``T`` tokens of this call, ``N`` query heads, ``K`` key heads, ``G`` query heads per key
head, ``H`` head width, ``L`` layers, ``P`` pages, ``S`` tokens of a page, ``M`` places of a table, ``O`` tokens of
a block of pages. ``D`` is ``2 K``: the keys of head ``h`` lie at ``2 h``, its values at ``2 h + 1``.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from qwen35_jax.ops.attention import paged_kernel
from qwen35_jax.sharding import kernel_or_plain, num_shards, over_mesh

_BLOCK = 256
"""Tokens that a step of the plain form reads, if a page holds fewer."""

_FLOOR = -1e30
"""The score of what a query does not see: finite, so that differences of two such scores are."""

_HEADS = ("batch", None, "heads", None)
_PAGES = (None, "batch", "heads", None, None)
_TABLE = ("batch", None)


def paged_attention(
    q: Float[Array, "B T N H"],
    pages: Float[Array, "L P D S H"],
    layer: Int[Array, ""],
    table: Int[Array, "B M"],
    lengths: Int[Array, " B"],
) -> Float[Array, "B T N H"]:
    """Lets query ``t`` of sequence ``b``, at position ``lengths[b] + t``, attend to positions up to its own.

    The keys and values of the call's tokens are in the pages already; see ``write_pages``. Under a mesh each device
    works on its sequences and heads, and a table names pages of the device's own shard.

    Args:
      lengths: tokens of each sequence before this call.

    Returns:
      The outputs in the dtype of ``q``.

    Raises:
      ValueError: the mesh splits the query heads, but not the key heads of the pages.
    """
    _check_heads(pages)

    def local(q, pages, layer, table, lengths):
        fits = paged_kernel.fits(q, pages, table)
        form = kernel_or_plain(paged_kernel.paged_attention_kernel, plain_paged_attention, fits)
        return form(q, pages, layer, table, lengths)

    axes = (_HEADS, _PAGES, (), _TABLE, ("batch",))
    return over_mesh(local, q, pages, layer, table, lengths, in_axes=axes, out_axes=_HEADS)


def write_pages(
    pages: Float[Array, "L P D S H"],
    k: Float[Array, "B T K H"],
    v: Float[Array, "B T K H"],
    layer: Int[Array, ""],
    table: Int[Array, "B M"],
    lengths: Int[Array, " B"],
    num_real: Int[Array, " B"],
    *,
    on_grid: bool = False,
) -> Float[Array, "L P D S H"]:
    """Writes keys and values of the first ``num_real[b]`` tokens of each sequence behind its ``lengths[b]`` tokens.

    Tokens after these, and those whose position the table has no place for, go to page 0 or behind the tokens of a
    last page. Pages that hold more key heads than there are, for a mesh of more devices, get each head as often as
    they need it.

    Args:
      on_grid: whether ``lengths`` are multiples of ``T``; tokens that fill pages are then written page by page.

    Raises:
      ValueError: the mesh splits heads, but not the key heads of the pages.
    """
    _check_heads(pages)
    copies = pages.shape[2] // (2 * k.shape[2])
    k, v = (jnp.repeat(x, copies, axis=2) for x in (k, v))

    def local(pages, k, v, layer, table, lengths, num_real):
        T, S = k.shape[1], pages.shape[3]
        both = jnp.stack([k, v], axis=3).reshape(*k.shape[:2], -1, k.shape[-1]).astype(pages.dtype)
        step = S if on_grid and T % S == 0 else 1
        tokens = jnp.arange(0, T, step)
        places = (lengths[:, None] + tokens) // S
        kept = (tokens < num_real[:, None]) & (places < table.shape[1])
        owned = jnp.where(kept, jnp.take_along_axis(table, jnp.minimum(places, table.shape[1] - 1), axis=1), 0)
        if step == S:
            by_page = jnp.swapaxes(both.reshape(both.shape[0], T // S, S, *both.shape[2:]), 2, 3)
            return pages.at[layer, owned].set(by_page)
        # One row of each head a token: whole rows are what a TPU writes in place, without another layout of the pages.
        row = (lengths[:, None] + tokens)[..., None] % S
        return pages.at[layer, owned[..., None], jnp.arange(pages.shape[2]), row].set(both)

    axes = (_PAGES, _HEADS, _HEADS, (), _TABLE, ("batch",), ("batch",))
    return over_mesh(local, pages, k, v, layer, table, lengths, num_real, in_axes=axes, out_axes=_PAGES)


def plain_paged_attention(
    q: Float[Array, "B T N H"],
    pages: Float[Array, "L P D S H"],
    layer: Int[Array, ""],
    table: Int[Array, "B M"],
    lengths: Int[Array, " B"],
) -> Float[Array, "B T N H"]:
    """Computes ``paged_attention`` block of pages by block, as many as the longest sequence has."""
    B, T, N, H = q.shape
    K, S, M = pages.shape[2] // 2, pages.shape[3], table.shape[1]
    num_pages = min(M, max(_BLOCK // S, 1))
    table = jnp.pad(table, ((0, 0), (0, -M % num_pages)))
    grouped = q.reshape(B, T, K, N // K, H)

    def block(i, sums):
        owned = lax.dynamic_slice_in_dim(table, i * num_pages, num_pages, axis=1)
        both = pages.at[layer, owned].get(mode="clip").reshape(B, num_pages, K, 2, S, H)
        k, v = jnp.moveaxis(both, (3, 2), (0, 1)).reshape(2, K, B, num_pages * S, H)
        return _add_block(sums, grouped, k, v, i * num_pages * S + jnp.arange(num_pages * S), lengths)

    live = jnp.clip(-(-(jnp.max(lengths) + T) // (num_pages * S)), 1, table.shape[1] // num_pages)
    like = (B, K, N // K, T)
    start = (jnp.full(like, _FLOOR), jnp.zeros(like), jnp.zeros((*like, H)))
    _, weights, out = lax.fori_loop(0, live, block, start)
    return jnp.moveaxis(out / weights[..., None], 3, 1).reshape(B, T, N, H).astype(q.dtype)


def _add_block(
    sums: tuple[Float[Array, "B K G T"], Float[Array, "B K G T"], Float[Array, "B K G T H"]],
    q: Float[Array, "B T K G H"],
    k: Float[Array, "K B O H"],
    v: Float[Array, "K B O H"],
    positions: Int[Array, " O"],
    lengths: Int[Array, " B"],
) -> tuple[Float[Array, "B K G T"], Float[Array, "B K G T"], Float[Array, "B K G T H"]]:
    """Adds a block of positions to the largest score so far, the weights relative to it, and the weighted values."""
    largest, weights, out = sums
    visible = positions <= (lengths[:, None] + jnp.arange(q.shape[1]))[..., None]
    visible = visible[:, None, None]
    scores = jnp.einsum("BTKGH,KBOH->BKGTO", q, k, preferred_element_type=jnp.float32) * q.shape[-1] ** -0.5
    scores = jnp.where(visible, scores, _FLOOR)
    now = jnp.maximum(largest, jnp.max(scores, axis=-1))
    scale = jnp.exp(largest - now)
    terms = jnp.where(visible, jnp.exp(scores - now[..., None]), 0)
    # A weight of 0 does not hide a NaN: clear it behind the first query, where some query may not see it.
    all_see = (positions <= lengths[:, None])[None, ..., None]
    v = jnp.where(all_see | jnp.isfinite(v), v, 0)
    added = jnp.einsum("BKGTO,KBOH->BKGTH", terms.astype(v.dtype), v, preferred_element_type=jnp.float32)
    return now, weights * scale + jnp.sum(terms, axis=-1), out * scale[..., None] + added


def _check_heads(pages: jax.Array) -> None:
    heads, shards = pages.shape[2] // 2, num_shards("heads")
    if heads % shards:
        raise ValueError(
            f"pages of {heads} key heads cannot be split over mesh.tensor={shards}; let them hold a multiple of "
            f"{shards} heads, each head several times."
        )
