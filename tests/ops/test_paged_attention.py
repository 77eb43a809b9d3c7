"""Attention to pages against attention to whole sequences: ragged lengths, shuffled pages, NaN in what is not seen."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qwen35_jax.ops.attention import plain_attention
from qwen35_jax.ops.attention.paged import paged_attention, plain_paged_attention, write_pages
from qwen35_jax.ops.attention.paged_kernel import paged_attention_kernel
from qwen35_jax.sharding import make_mesh

B, N, K, H, L, P, S, M = 4, 4, 2, 8, 2, 24, 4, 5
LENGTHS = np.asarray([0, 3, 9, 17], np.int32)
LAYER = jnp.int32(1)


def make_case(T: int):
    """Returns queries, the keys and values of whole sequences, and a table of shuffled pages."""
    rng = np.random.default_rng(T)
    q = rng.normal(size=(B, T, N, H)).astype(np.float32)
    k, v = rng.normal(size=(2, B, M * S, K, H)).astype(np.float32)
    owned = rng.permutation(np.arange(1, P))[: B * M].reshape(B, M)
    table = np.where(np.arange(M) * S < LENGTHS[:, None] + T, owned, 0).astype(np.int32)
    return q, k, v, table


@jax.jit
def run(q, k, v, past_k, past_v, pages, table, lengths, num_real):
    """Writes what came before in one call and the window in another, and attends."""
    nothing = jnp.zeros_like(lengths)
    pages = write_pages(pages, past_k, past_v, LAYER, table, nothing, lengths)
    pages = write_pages(pages, k, v, LAYER, table, lengths, num_real)
    return paged_attention(q, pages, LAYER, table, lengths), pages


def windows(x, T: int):
    return np.stack([row[n : n + T] for row, n in zip(x, LENGTHS, strict=True)])


def run_case(T: int, *, num_real=None, pages=None):
    q, k, v, table = make_case(T)
    pages = jnp.full((L, P, 2 * K, S, H), jnp.nan) if pages is None else pages
    num_real = np.full(B, T, np.int32) if num_real is None else num_real
    return run(q, windows(k, T), windows(v, T), k, v, pages, table, LENGTHS, num_real)


@pytest.mark.parametrize("T", [1, 3])
def test_pages_equal_whole_sequences(T):
    q, k, v, _ = make_case(T)
    want = plain_attention(*map(jnp.asarray, (q, k, v)), query_slots=jnp.asarray(LENGTHS[:, None] + np.arange(T)))
    got, pages = run_case(T)
    # The same sums in float32, in another order.
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
    assert np.isnan(pages[0]).all(), "another layer was written to"


def test_tokens_that_do_not_count_leave_pages_and_earlier_queries_alone():
    T, num_real = 3, np.asarray([1, 2, 3, 1], np.int32)
    whole, _ = run_case(T)
    got, pages = run_case(T, num_real=num_real)
    *_, table = make_case(T)
    for b, (length, real) in enumerate(zip(LENGTHS, num_real, strict=True)):
        np.testing.assert_array_equal(got[b, :real], whole[b, :real])
        own = np.moveaxis(np.asarray(pages[1, table[b, : -(-(length + T) // S)]]), 1, 2).reshape(-1, 2 * K, H)
        assert np.isfinite(own[: length + real]).all() and np.isnan(own[length + real :]).all()


def test_positions_that_the_table_has_no_place_for_are_written_to_page_0():
    pages = jnp.zeros((L, P, 2 * K, S, H))
    ones, table = jnp.ones((1, 3, K, H)), jnp.asarray([[7, 5]], jnp.int32)
    pages = write_pages(pages, ones, ones, LAYER, table, jnp.asarray([2 * S - 1]), jnp.asarray([3]))
    written = np.asarray(pages[1]).any(axis=(1, 3))
    assert np.argwhere(written).tolist() == [[0, 0], [0, 1], [5, S - 1]]


def test_whole_pages_hold_what_rows_of_tokens_do():
    """Chunks of two pages on a grid of them: one is full, one ends inside each page, one holds nothing."""
    T, lengths, num_real = 2 * S, jnp.asarray([0, 8, 0, 8]), jnp.asarray([8, 5, 3, 0])
    k, v = jnp.asarray(np.random.default_rng(0).normal(size=(2, B, T, K, H)), jnp.float32)
    table = jnp.asarray(np.where(np.arange(M) < 4, np.arange(1, B * M + 1).reshape(B, M), 0), jnp.int32)
    args = jnp.full((L, P, 2 * K, S, H), jnp.nan), k, v, LAYER, table, lengths, num_real
    whole, rows = write_pages(*args, on_grid=True), write_pages(*args)
    real = np.isfinite(rows[1, 1:])
    np.testing.assert_array_equal(np.asarray(whole[1, 1:])[real], np.asarray(rows[1, 1:])[real])
    touched = np.isfinite(whole).any(axis=(2, 3, 4))
    assert not touched[0].any() and np.flatnonzero(touched[1]).tolist() == [0, 1, 2, 8, 9, 11]


@pytest.mark.parametrize("b", [1, 3])
def test_a_sequence_alone_is_bit_equal_to_itself_in_a_crowd(b):
    q, k, v, table = make_case(3)
    pages, full = jnp.full((L, P, 2 * K, S, H), jnp.nan), np.full(B, 3, np.int32)
    crowd, _ = run(q, windows(k, 3), windows(v, 3), k, v, pages, table, LENGTHS, full)
    mine = np.arange(B) == b

    def only(x, other):
        return np.where(mine.reshape(-1, *[1] * (x.ndim - 1)), x, other).astype(x.dtype)

    others = [only(x, np.nan) for x in (q, windows(k, 3), windows(v, 3), k, v)]
    alone, _ = run(*others, pages, only(table, 0), only(LENGTHS, 0), only(full, 0))
    np.testing.assert_array_equal(alone[b], crowd[b])


@pytest.mark.parametrize(("data", "tensor"), [(4, 2), (2, 4)])
def test_a_mesh_splits_sequences_pages_and_heads(data, tensor):
    """Each data shard has its own pages; with more devices than key heads, the pages hold each head several times."""
    T, copies = 3, max(tensor // K, 1)
    q, k, v, table = make_case(T)
    want, _ = run_case(T)
    local = np.where(table > 0, (np.arange(B * M).reshape(B, M) % (B // data * M)) + 1, 0).astype(np.int32)
    pages = jnp.full((L, data * P, 2 * K * copies, S, H), jnp.nan)
    with jax.set_mesh(make_mesh(data=data, tensor=tensor)):
        got, _ = run(q, windows(k, T), windows(v, T), k, v, pages, local, LENGTHS, np.full(B, T, np.int32))
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


def test_key_heads_that_the_mesh_does_not_split_are_refused():
    pages, table = jnp.zeros((1, 2, 2 * 3, S, H)), jnp.ones((1, 1), jnp.int32)
    with jax.set_mesh(make_mesh(tensor=2)), pytest.raises(ValueError, match="pages of 3 key heads cannot be split"):
        paged_attention(jnp.zeros((1, 1, 6, H)), pages, jnp.int32(0), table, jnp.zeros(1, jnp.int32))


@pytest.mark.parametrize("T", [1, 3])
def test_the_kernel_equals_the_plain_form(T):
    """Ragged lengths, one of which ends with its page, and NaN in all memory that is not seen."""
    heads, width, size = 2, 128, 128
    lengths = np.asarray([0, 300, size - T, 130], np.int32)
    rng = np.random.default_rng(T)
    q = jnp.asarray(rng.normal(size=(B, T, 4 * heads, width)), jnp.float32)
    table = np.where(np.arange(4) * size < lengths[:, None] + T, 1 + rng.permutation(16).reshape(B, 4), 0)
    pages = np.full((2, 17, 2 * heads, size, width), np.nan, np.float32)
    for row, length in zip(table, lengths, strict=True):
        for ordinal, page in enumerate(row[row > 0]):
            seen = min(length + T - ordinal * size, size)
            pages[1, page, :, :seen] = rng.normal(size=(2 * heads, seen, width))
    args = (q, jnp.asarray(pages), LAYER, jnp.asarray(table, jnp.int32), jnp.asarray(lengths))
    want = jax.jit(plain_paged_attention)(*args)
    got = jax.jit(paged_attention_kernel)(*args)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
    # The last token of the window does not count and has nothing in its place.
    if T > 1:
        blank = pages.copy()
        for row, length in zip(table, lengths, strict=True):
            last = length + T - 1
            blank[1, row[last // size], :, last % size] = np.nan
        alone = jax.jit(paged_attention_kernel)(q, jnp.asarray(blank), *args[2:])
        np.testing.assert_array_equal(alone[:, : T - 1], got[:, : T - 1])
