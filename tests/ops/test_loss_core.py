"""The core of the losses on logits, by two losses that only this file has, against float64 formulas in numpy.

The forward divergence ``KL(frozen || trained)`` needs the logits of a frozen model. The sparse cross-entropy reads a
teacher's probabilities of ``k`` token ids at each position.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qwen35_jax.ops.linear_cross_entropy import FrozenHead, sum_over_chunks
from qwen35_jax.sharding import make_mesh

B, D, E, V, K = 4, 24, 17, 96, 5


def forward_kl(logits, inputs, shard, frozen_logits):
    weights = inputs["weights"]
    log_p = frozen_logits - shard.logsumexp(frozen_logits)[..., None]
    log_q = logits - shard.logsumexp(logits)[..., None]
    divergence = shard.sum(jnp.exp(log_p) * (log_p - log_q))
    extras = {"tokens": jnp.sum(weights), "entropy": -jnp.sum(weights * shard.sum(jnp.exp(log_q) * log_q))}
    return jnp.sum(weights * divergence), weights[..., None] * (jnp.exp(log_q) - jnp.exp(log_p)), extras


def sparse_cross_entropy(logits, inputs, shard, frozen_logits):
    assert frozen_logits is None
    token_ids, probabilities = inputs
    entries = shard.first + jnp.arange(logits.shape[-1])
    target = jnp.sum(probabilities[..., None] * (token_ids[..., None] == entries), axis=-2)
    log_q = logits - shard.logsumexp(logits)[..., None]
    total = jnp.sum(probabilities, axis=-1, keepdims=True)
    return -jnp.sum(shard.sum(target * log_q)), total * jnp.exp(log_q) - target, {}


def make_inputs(T, dtype=np.float32):
    rng = np.random.default_rng(T)
    hidden, head = rng.normal(size=(B, T, D)), rng.normal(size=(V, D)) * 0.3
    frozen = FrozenHead(rng.normal(size=(B, T, E)).astype(dtype), (rng.normal(size=(V, E)) * 0.4).astype(dtype))
    weights = rng.random((B, T)) * (rng.random((B, T)) > 0.3)
    return hidden.astype(dtype), head.astype(dtype), {"weights": weights.astype(dtype)}, frozen


def make_sparse(T):
    rng = np.random.default_rng(T + 1)
    token_ids = np.stack([rng.permutation(V)[:K] for _ in range(B * T)]).reshape(B, T, K).astype(np.int32)
    probabilities = rng.random((B, T, K)) * (rng.random((B, T, 1)) > 0.3)
    return token_ids, probabilities.astype(np.float32)


def log_softmax(logits):
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def exact(hidden, head, logits_grad):
    """Returns the gradients of hidden states and head from that of the logits."""
    return logits_grad @ head, np.einsum("BTV,BTD->VD", logits_grad, hidden)


def exact_forward_kl(hidden, head, inputs, frozen):
    hidden, head, weights, *frozen = (np.float64(x) for x in (hidden, head, inputs["weights"], *frozen))
    log_p, log_q = log_softmax(frozen[0] @ frozen[1].T), log_softmax(hidden @ head.T)
    value = np.sum(weights * np.sum(np.exp(log_p) * (log_p - log_q), axis=-1))
    return value, exact(hidden, head, weights[..., None] * (np.exp(log_q) - np.exp(log_p)))


def exact_sparse_cross_entropy(hidden, head, inputs):
    hidden, head, probabilities = (np.float64(x) for x in (hidden, head, inputs[1]))
    target = np.zeros((*hidden.shape[:2], V))
    np.put_along_axis(target, inputs[0], probabilities, axis=-1)
    log_q = log_softmax(hidden @ head.T)
    logits_grad = target.sum(axis=-1, keepdims=True) * np.exp(log_q) - target
    return -np.sum(target * log_q), exact(hidden, head, logits_grad)


def value_and_gradients(token_loss, hidden, head, inputs, frozen=None, *, chunk_tokens):
    def loss(hidden, head, inputs, frozen):
        return sum_over_chunks(token_loss, hidden, head, inputs, chunk_tokens=chunk_tokens, frozen=frozen)[0]

    return jax.device_get(jax.jit(jax.value_and_grad(loss, (0, 1)))(hidden, head, inputs, frozen))


def assert_close(got, want, tolerance=1e-5):
    """Compares value and gradients. float32 against float64, or in another order: errors of some 1e-6."""
    np.testing.assert_allclose(got[0], want[0], rtol=tolerance)
    for ours, theirs in zip(got[1], want[1], strict=True):
        assert np.linalg.norm(ours - theirs) < tolerance * np.linalg.norm(theirs)


@pytest.mark.parametrize(("T", "chunk_tokens"), [(1, 1), (7, 3), (13, 1000), (65, 16)])
def test_forward_kl_to_a_frozen_model_of_another_width(T, chunk_tokens):
    args = make_inputs(T)
    assert_close(value_and_gradients(forward_kl, *args, chunk_tokens=chunk_tokens), exact_forward_kl(*args))


@pytest.mark.parametrize(("T", "chunk_tokens"), [(1, 4), (13, 5)])
def test_inputs_may_have_further_axes(T, chunk_tokens):
    hidden, head, _, _ = make_inputs(T)
    args = (hidden, head, make_sparse(T))
    got = value_and_gradients(sparse_cross_entropy, *args, chunk_tokens=chunk_tokens)
    assert_close(got, exact_sparse_cross_entropy(*args))


def test_masked_tokens_change_nothing():
    hidden, head, inputs, frozen = make_inputs(10)
    inputs["weights"][:, 3:6] = 0
    want = value_and_gradients(forward_kl, hidden, head, inputs, frozen, chunk_tokens=4)
    assert not np.any(want[1][0][:, 3:6])
    frozen.hidden[:, 3:6] = 7.0
    got = value_and_gradients(forward_kl, hidden, head, inputs, frozen, chunk_tokens=4)
    np.testing.assert_array_equal(got[0], want[0])
    np.testing.assert_array_equal(got[1][1], want[1][1])


def test_the_frozen_model_and_the_inputs_get_no_gradient():
    hidden, head, inputs, frozen = jax.tree.map(jnp.asarray, make_inputs(6))

    def loss(inputs, frozen):
        return sum_over_chunks(forward_kl, hidden, head, inputs, chunk_tokens=4, frozen=frozen)[0]

    for grad in jax.tree.leaves(jax.grad(loss, (0, 1))(inputs, frozen)):
        assert not np.any(grad)


def test_extras_are_summed_over_chunks_and_have_no_gradient():
    hidden, head, inputs, frozen = jax.tree.map(jnp.asarray, make_inputs(10))

    def extras(hidden, head):
        return sum_over_chunks(forward_kl, hidden, head, inputs, chunk_tokens=4, frozen=frozen)[1]

    log_q = log_softmax(np.float64(hidden) @ np.float64(head).T)
    entropy = -np.sum(np.float64(inputs["weights"])[..., None] * np.exp(log_q) * log_q)
    assert set(extras(hidden, head)) == {"tokens", "entropy"}
    np.testing.assert_allclose(extras(hidden, head)["tokens"], np.sum(inputs["weights"]), rtol=1e-6)
    np.testing.assert_allclose(extras(hidden, head)["entropy"], entropy, rtol=1e-6)
    for grad in jax.grad(lambda *x: extras(*x)["entropy"], (0, 1))(hidden, head):
        assert not np.any(grad)


def test_a_frozen_model_in_bfloat16_keeps_the_trained_one_in_float32():
    hidden, head, inputs, frozen = make_inputs(9)
    rounded = FrozenHead(*(jnp.asarray(x, jnp.bfloat16) for x in frozen))
    got = value_and_gradients(forward_kl, hidden, head, inputs, rounded, chunk_tokens=4)
    # Products of bfloat16 values are exact in float32, so the values that were rounded give the same logits.
    assert_close(got, exact_forward_kl(hidden, head, inputs, [np.asarray(x, np.float64) for x in rounded]))


@pytest.mark.skipif(jax.device_count() < 8, reason="needs eight (virtual) devices")
@pytest.mark.parametrize("sizes", [{"fsdp": 4, "tensor": 2}, {"data": 2, "fsdp": 2, "context": 2}])
@pytest.mark.parametrize("name", ["forward_kl", "sparse_cross_entropy"])
def test_eight_devices_equal_one(sizes, name):
    T = 10
    hidden, head, inputs, frozen = make_inputs(T)
    token_loss, args = forward_kl, (hidden, head, inputs, frozen)
    if name == "sparse_cross_entropy":
        token_loss, args = sparse_cross_entropy, (hidden, head, make_sparse(T))
    want = value_and_gradients(token_loss, *args, chunk_tokens=3)
    with jax.set_mesh(make_mesh(**sizes)):
        got = value_and_gradients(token_loss, *args, chunk_tokens=3)
    assert_close(got, want)


def test_the_heads_share_a_vocabulary():
    hidden, head, inputs, frozen = jax.tree.map(jnp.asarray, make_inputs(4))
    with pytest.raises(ValueError, match="the frozen head has 95 token ids and the trained one 96"):
        sum_over_chunks(forward_kl, hidden, head, inputs, chunk_tokens=4, frozen=frozen._replace(head=frozen.head[1:]))
