"""The chunked linear cross-entropy against the formula written out with all logits."""

import jax
import jax.extend.core
import jax.numpy as jnp
import numpy as np
import pytest

from qwen35_jax.ops.linear_cross_entropy import linear_cross_entropy

D, V = 24, 101


def plain(hidden, head, targets, weights):
    logits = hidden.astype(jnp.float32) @ head.astype(jnp.float32).T
    nll = -jnp.take_along_axis(jax.nn.log_softmax(logits), targets[..., None], axis=-1)[..., 0]
    return jnp.sum(weights * nll)


def random_inputs(T, *, B=3, dtype=jnp.float32, head_dtype=None, seed=0):
    rng = np.random.default_rng(seed)
    hidden = jnp.asarray(rng.normal(size=(B, T, D)), dtype)
    head = jnp.asarray(rng.normal(size=(V, D)) * 0.3, head_dtype or dtype)
    targets = jnp.asarray(rng.integers(0, V, size=(B, T)), jnp.int32)
    weights = jnp.asarray(rng.random((B, T)) * (rng.random((B, T)) > 0.3), jnp.float32)
    return hidden, head, targets, weights


@pytest.mark.parametrize(("T", "chunk_tokens"), [(1, 1), (7, 1), (7, 1000), (63, 16), (64, 16), (65, 16), (65, 64)])
def test_matches_plain_value_and_gradients(T, chunk_tokens):
    inputs = random_inputs(T)
    want, want_grads = jax.value_and_grad(plain, (0, 1))(*inputs)
    chunked = jax.jit(jax.value_and_grad(lambda *x: linear_cross_entropy(*x, chunk_tokens=chunk_tokens), (0, 1)))
    got, got_grads = chunked(*inputs)
    # float32 on both sides; only the order of the sums differs.
    np.testing.assert_allclose(got, want, rtol=1e-5)
    for got_grad, want_grad in zip(got_grads, want_grads, strict=True):
        np.testing.assert_allclose(got_grad, want_grad, rtol=1e-4, atol=1e-5)


def test_value_without_gradient_equals_value_with_it():
    inputs = random_inputs(13)
    with_gradient, _ = jax.value_and_grad(linear_cross_entropy)(*inputs, chunk_tokens=4)
    np.testing.assert_allclose(linear_cross_entropy(*inputs, chunk_tokens=4), with_gradient, rtol=1e-6)


def test_bfloat16_hidden_and_head_keep_float32_sums():
    inputs = random_inputs(33, dtype=jnp.bfloat16)
    loss = lambda *x: linear_cross_entropy(*x, chunk_tokens=8)  # noqa: E731
    got, (hidden_grad, head_grad) = jax.value_and_grad(loss, (0, 1))(*inputs)
    want, want_grads = jax.value_and_grad(plain, (0, 1))(*inputs)
    assert got.dtype == jnp.float32
    assert hidden_grad.dtype == head_grad.dtype == jnp.bfloat16
    # Products of bfloat16 values are exact in float32, so the value differs by summation order only.
    np.testing.assert_allclose(got, want, rtol=1e-4)
    for got_grad, want_grad in zip((hidden_grad, head_grad), want_grads, strict=True):
        # dlogits is rounded to bfloat16 (8 bits) before its products.
        error = np.linalg.norm(np.asarray(got_grad - want_grad, np.float32))
        assert error < 1e-2 * np.linalg.norm(np.asarray(want_grad, np.float32))


def test_float32_head_under_bfloat16_hidden_gets_a_float32_gradient():
    inputs = random_inputs(9, dtype=jnp.bfloat16, head_dtype=jnp.float32)
    grad = jax.grad(linear_cross_entropy, 1)(*inputs, chunk_tokens=4)
    assert grad.dtype == jnp.float32
    # Rounded to bfloat16 at the end, every entry would fit in 16 bits.
    assert np.any(np.asarray(grad) != np.asarray(grad.astype(jnp.bfloat16), np.float32))


def _shapes_in(jaxpr):
    """Collects the shapes of every value of a jaxpr and of the jaxprs inside it."""
    for equation in jaxpr.eqns:
        yield from (tuple(v.aval.shape) for v in equation.outvars)
        for inner in jax.extend.core.jaxprs_in_params(equation.params):
            yield from _shapes_in(inner)


def test_frozen_head_makes_no_head_gradient_and_logits_are_never_whole():
    inputs = random_inputs(32)

    def shapes(argnums):
        grad = jax.grad(lambda *x: linear_cross_entropy(*x, chunk_tokens=8), argnums)
        return set(_shapes_in(jax.make_jaxpr(grad)(*inputs).jaxpr))

    frozen, trained = shapes(0), shapes((0, 1))
    assert (V, D) in trained and (V, D) not in frozen
    assert all(np.prod(shape) < 3 * 32 * V for shape in frozen | trained)


def test_cotangent_scales_gradients_and_zero_weights_give_zero():
    hidden, head, targets, weights = random_inputs(10)
    grad = lambda scale, w: jax.grad(  # noqa: E731
        lambda h: scale * linear_cross_entropy(h, head, targets, w, chunk_tokens=4)
    )(hidden)
    np.testing.assert_allclose(grad(2.5, weights), 2.5 * grad(1.0, weights), rtol=1e-6)
    assert not np.any(grad(1.0, jnp.zeros_like(weights)))


def test_targets_without_weight_may_be_anything():
    hidden, head, targets, weights = random_inputs(10)
    weights = weights.at[:, 3].set(0)
    loss = jax.value_and_grad(lambda h, t: linear_cross_entropy(h, head, t, weights, chunk_tokens=4))
    want, want_grad = loss(hidden, targets)
    for other in (-100, V):
        got, got_grad = loss(hidden, targets.at[:, 3].set(other))
        assert got == want and np.array_equal(got_grad, want_grad)


def test_large_logits_do_not_overflow():
    hidden, head, targets, weights = random_inputs(5)
    value, grad = jax.value_and_grad(linear_cross_entropy)(hidden * 1e4, head, targets, weights, chunk_tokens=2)
    assert np.isfinite(value) and np.all(np.isfinite(grad))


def test_chunk_tokens_must_be_positive():
    with pytest.raises(ValueError, match="chunk_tokens=0"):
        linear_cross_entropy(*random_inputs(4), chunk_tokens=0)
