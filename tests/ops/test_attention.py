"""Attention against a plain softmax over all keys: grouped heads, documents, a cache's offset, and query blocks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qwen35_jax.ops.attention import attention
from qwen35_jax.ops.attention import plain as module

B, N, K, H = 2, 6, 2, 8


def inputs(T: int, S: int | None = None):
    rng = np.random.default_rng(T)
    shapes = (B, T, N, H), (B, S or T, K, H), (B, S or T, K, H)
    return [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes]


def plain(q, k, v, visible):
    """Every query head on its own, float64, no grouping."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    k, v = (np.repeat(x, N // K, axis=2) for x in (k, v))
    scores = np.einsum("btnh,bsnh->bnts", q, k) / np.sqrt(H)
    scores = np.where(visible[:, None], scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return np.einsum("bnts,bsnh->btnh", weights / weights.sum(-1, keepdims=True), v)


@pytest.mark.parametrize("T", [1, 7, 33])
def test_matches_a_plain_softmax(T):
    q, k, v = inputs(T)
    visible = np.broadcast_to(np.tri(T, dtype=bool), (B, T, T))
    # float32 against float64.
    np.testing.assert_allclose(attention(q, k, v), plain(q, k, v, visible), rtol=0, atol=2e-6)


def test_documents_do_not_see_each_other():
    T = 20
    q, k, v = inputs(T)
    segments = np.array([[0] * 3 + [1] * 9 + [2] * 8, [1] * 5 + [2] * 10 + [0] * 5])
    visible = (segments[:, :, None] == segments[:, None]) & np.tri(T, dtype=bool)
    got = attention(q, k, v, segment_ids=jnp.asarray(segments), key_segment_ids=jnp.asarray(segments))
    assert np.isfinite(got).all()
    np.testing.assert_allclose(
        np.where(segments[..., None, None] > 0, got, 0),
        np.where(segments[..., None, None] > 0, plain(q, k, v, visible), 0),
        rtol=0,
        atol=2e-6,
    )


def test_an_offset_places_queries_among_cached_slots():
    T, S, offset = 5, 12, 4
    q, k, v = inputs(T, S)
    visible = np.broadcast_to(np.arange(S)[None] <= offset + np.arange(T)[:, None], (B, T, S))
    got = attention(q, k, v, query_slots=jnp.int32(offset) + jnp.arange(q.shape[1])[None])
    np.testing.assert_allclose(got, plain(q, k, v, visible), rtol=0, atol=2e-6)


def test_blocks_of_queries_change_nothing(monkeypatch):
    """Compares outputs and gradients; the last block is not full."""
    T = 37
    q, k, v = inputs(T)
    segments = jnp.asarray(np.repeat([[1, 2, 0]], [15, 18, 4], axis=1).repeat(B, 0))

    def loss(q, k, v):
        out = attention(q, k, v, segment_ids=segments, key_segment_ids=segments)
        return jnp.sum(jnp.sin(out) * (segments > 0)[..., None, None])

    whole = jax.value_and_grad(loss, argnums=(0, 1, 2))(q, k, v)
    monkeypatch.setattr(module, "QUERY_BLOCK", 8)
    blocked = jax.value_and_grad(loss, argnums=(0, 1, 2))(q, k, v)
    # The same float32 sums in another order.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), whole, blocked)


def test_documents_of_queries_without_those_of_keys_are_refused():
    q, k, v = inputs(3)
    with pytest.raises(ValueError, match="give both or neither"):
        attention(q, k, v, segment_ids=jnp.ones((B, 3), int))
