"""The most likely tokens of a linear head against numpy with all logits, on one device and on eight."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qwen35_jax.ops.linear_top_k import linear_top_k
from qwen35_jax.sharding import make_mesh

E, V = 24, 104


def inputs(T, *, B=4, dtype=jnp.float32):
    rng = np.random.default_rng(T)
    return jnp.asarray(rng.normal(size=(B, T, E)), dtype), jnp.asarray(rng.normal(size=(V, E)), dtype)


def expected(hidden, head, k):
    """Sorts by probability, then by id, in float64."""
    logits = np.asarray(hidden, np.float64) @ np.asarray(head, np.float64).T
    log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    order = np.argsort(-logits, axis=-1, kind="stable")
    ids, rest = order[..., :k], order[..., k:]
    return (
        ids,
        np.take_along_axis(log_probs, ids, -1),
        np.exp(np.take_along_axis(log_probs, rest, -1)).sum(-1),
    )


@pytest.mark.parametrize(("T", "chunk_tokens", "k"), [(1, 1, 1), (7, 3, 5), (16, 16, 64), (17, 256, 103), (9, 4, V)])
def test_matches_numpy(T, chunk_tokens, k):
    hidden, head = inputs(T)
    got = jax.jit(linear_top_k, static_argnums=2, static_argnames="chunk_tokens")(
        hidden, head, k, chunk_tokens=chunk_tokens
    )
    ids, log_probs, tail = expected(hidden, head, k)
    np.testing.assert_array_equal(got.ids, ids)
    # float32 logits of about 20, against float64.
    np.testing.assert_allclose(got.log_probs, log_probs, atol=2e-5)
    np.testing.assert_allclose(got.tail, tail, rtol=2e-5, atol=1e-12)


def test_no_mass_is_left_where_all_tokens_are_found():
    assert not np.any(linear_top_k(*inputs(5), V, chunk_tokens=2).tail)


def test_the_tail_is_exact_where_one_minus_the_rest_would_cancel():
    hidden = jnp.asarray([[[1.0]]])
    head = jnp.asarray([[0.0], [-20.0], [-21.0], [-22.0]])
    tail = linear_top_k(hidden, head, 1, chunk_tokens=1).tail
    np.testing.assert_allclose(tail[0, 0], np.exp([-20.0, -21.0, -22.0]).sum(), rtol=1e-6)


@pytest.mark.parametrize("k", [1, 3, 5])
def test_equally_likely_tokens_come_by_their_ids_and_count_once(k):
    hidden, head = jnp.ones((1, 2, 1)), jnp.asarray([[1.0], [2.0], [2.0], [1.0], [2.0], [1.0]])
    got = linear_top_k(hidden, head, k, chunk_tokens=2)
    np.testing.assert_array_equal(got.ids[0, 0], [1, 2, 4, 0, 3][:k])
    np.testing.assert_allclose(np.exp(got.log_probs).sum(-1) + got.tail, 1, rtol=1e-6)


@pytest.mark.parametrize(
    "axes", [{"fsdp": 4, "tensor": 2}, {"data": 2, "fsdp": 2, "context": 2}, {"tensor": 8}], ids=str
)
@pytest.mark.parametrize("k", [5, 40])
def test_eight_devices_find_what_one_finds(axes, k):
    """With 40 a device holds fewer tokens of the vocabulary than are sought."""
    hidden, head = inputs(16)
    head = head.at[50].set(head[3])  # equally likely tokens on two devices
    want = linear_top_k(hidden, head, k, chunk_tokens=5)
    with jax.set_mesh(make_mesh(**axes)):
        got = jax.jit(lambda hidden, head: linear_top_k(hidden, head, k, chunk_tokens=5))(hidden, head)
    np.testing.assert_array_equal(got.ids, want.ids)
    # float32 sums in another order.
    np.testing.assert_allclose(got.log_probs, want.log_probs, atol=1e-5)
    np.testing.assert_allclose(got.tail, want.tail, rtol=1e-5)


def test_wrong_arguments_are_refused():
    hidden, head = inputs(2)
    with pytest.raises(ValueError, match=r"k=105 must be at least 1 and at most the 104"):
        linear_top_k(hidden, head, 105, chunk_tokens=2)
    with pytest.raises(ValueError, match="chunk_tokens=0"):
        linear_top_k(hidden, head, 2, chunk_tokens=0)
