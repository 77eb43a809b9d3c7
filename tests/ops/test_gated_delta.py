"""The gated delta rule on single documents: its forms against each other, against float64 and transformers."""

import inspect
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qwen35_jax.ops.gated_delta import gated_delta, l2_normalize
from tests.ops.delta_rule import (
    CLOSE,
    FORMS,
    NAMES,
    assert_same_gradients,
    forward,
    gradients,
    projection,
    random_inputs,
    random_weights,
    reference,
    small_chunks,
)


@pytest.fixture(autouse=True)
def strict_promotion():
    with jax.numpy_dtype_promotion("strict"):
        yield


@pytest.fixture(scope="module")
def hf():
    reason = "transformers, the reference, is not installed; the float64 recurrence is compared all the same"
    pytest.importorskip("torch", reason=reason)
    return pytest.importorskip("transformers.models.qwen3_5.modeling_qwen3_5", reason=reason)


@pytest.mark.parametrize("T", [1, 7, 63, 64, 65, 200])
def test_values_match_float64(T):
    inputs = random_inputs(T, T=T)
    want, want_state = reference(*inputs)
    for form in FORMS:
        o, state = forward(inputs, implementation=form)
        np.testing.assert_allclose(o, want, err_msg=form, **CLOSE)
        np.testing.assert_allclose(state, want_state, err_msg=form, **CLOSE)


@pytest.mark.parametrize("T", [7, 200])
def test_gradients_of_the_forms_agree(T):
    inputs = random_inputs(T, T=T)
    weights = random_weights(inputs)
    want = gradients(inputs, weights, implementation="recurrent")
    for form in ("chunked", "associative"):
        assert_same_gradients(gradients(inputs, weights, implementation=form), want)


@pytest.mark.parametrize("name", ["torch_recurrent_gated_delta_rule", "torch_chunk_gated_delta_rule"])
@pytest.mark.parametrize("T", [1, 7, 63, 64, 65, 200])
def test_matches_transformers(hf, name, T):
    import torch

    inputs = random_inputs(T, T=T)
    weights = random_weights(inputs)
    theirs = [torch.tensor(x, requires_grad=True) for x in inputs]
    q, k, v, log_decay, beta, state = theirs
    # Their functions scale the queries; ours get them scaled.
    want, want_state = getattr(hf, name)(
        q * q.shape[-1] ** 0.5, k, v, log_decay, beta, initial_state=state, output_final_state=True
    )
    (want * torch.tensor(weights[0])).sum().add((want_state * torch.tensor(weights[1])).sum()).backward()

    got, got_state = forward(inputs, implementation="chunked")
    np.testing.assert_allclose(got, want.detach(), **CLOSE)
    np.testing.assert_allclose(got_state, want_state.detach(), **CLOSE)
    if T in (7, 200):  # the lengths whose gradients other tests compile too
        got = gradients(inputs, weights, implementation="chunked")
        assert_same_gradients(got, [x.grad.numpy() for x in theirs])


@pytest.mark.parametrize("key_heads", [2, 3, 6])
def test_value_heads_that_share_key_heads_match_transformers(hf, key_heads):
    import torch

    q, k, v, log_decay, beta, state = random_inputs(1, T=65, N=6)
    q, k = q[:, :, :key_heads], k[:, :, :key_heads]
    theirs = [torch.tensor(x) for x in (q * np.float32(q.shape[-1] ** 0.5), k, v, log_decay, beta, state)]
    want, want_state = hf.torch_chunk_gated_delta_rule(*theirs[:5], initial_state=theirs[5], output_final_state=True)
    q, k = (np.repeat(x, 6 // key_heads, axis=2) for x in (q, k))
    got, got_state = forward((q, k, v, log_decay, beta, state), implementation="chunked")
    np.testing.assert_allclose(got, want, **CLOSE)
    np.testing.assert_allclose(got_state, want_state, **CLOSE)


@pytest.mark.parametrize("chunk_size", [64, 128])
def test_near_parallel_keys_keep_float32_accuracy(chunk_size):
    """The hardest system: all entries below the diagonal near 1, where inverses lose digits first."""
    rng = np.random.default_rng(11)
    q, k, v, log_decay, beta, state = random_inputs(11, T=256, K=32, V=32)
    k = np.ones_like(k) + 1e-3 * rng.normal(size=k.shape).astype(np.float32)
    k /= np.linalg.norm(k, axis=-1, keepdims=True)
    inputs = (q, k, v, log_decay * np.float32(1e-3), 1 - beta * np.float32(1e-3), state)
    want, want_state = reference(*inputs)
    for form in ("chunked", "associative"):
        o, got_state = forward(inputs, implementation=form, chunk_size=chunk_size)
        # Float32 itself, token by token, is off by 1e-6 of the state's size here.
        assert np.abs(got_state - want_state).max() < 1e-5 * np.abs(want_state).max(), form
        np.testing.assert_allclose(o, want, err_msg=form, **CLOSE)


@pytest.mark.parametrize("form", FORMS)
def test_zero_keys_and_strong_decay_are_safe(form):
    q, k, v, log_decay, beta, state = random_inputs(12, T=72)
    k[:, 10:30] = 0
    q[:, 20:25] = 0
    log_decay[:, 40:50] = -200  # exp underflows to zero, and its inverse overflows
    inputs = (q, k, v, log_decay, beta, state)
    o, _ = forward(inputs, **small_chunks(form))
    np.testing.assert_allclose(o, reference(*inputs)[0], **CLOSE)
    weights = random_weights(inputs)
    grads = gradients(inputs, weights, **small_chunks(form))
    assert all(np.isfinite(grad).all() for grad in grads)
    assert_same_gradients(grads, gradients(inputs, weights, implementation="recurrent"))


def test_normalisation_of_zero_is_safe():
    x = jax.random.normal(jax.random.key(13), (2, 3, 16)).at[0, 0].set(0)
    np.testing.assert_allclose(l2_normalize(x)[1], x[1] / jnp.linalg.norm(x[1], axis=-1, keepdims=True), rtol=1e-5)
    assert np.isfinite(jax.grad(lambda x: l2_normalize(x).sum())(x)).all()
    assert l2_normalize(x.astype(jnp.bfloat16)).dtype == jnp.float32


@pytest.mark.parametrize("form", FORMS)
def test_bfloat16_inputs_are_computed_in_float32(form):
    inputs = random_inputs(14, T=72)
    rounded = tuple(jnp.asarray(x, jnp.bfloat16) for x in inputs[:5])
    o, state = forward((*rounded, inputs[5]), **small_chunks(form))
    assert (o.dtype, state.dtype) == (jnp.bfloat16, jnp.float32)
    want, want_state = reference(*rounded, inputs[5])
    np.testing.assert_allclose(state, want_state, **CLOSE)
    np.testing.assert_allclose(o.astype(jnp.float32), want, rtol=2**-8, atol=1e-5)  # the output is rounded, once


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_errors_are_at_most_ten_times_those_of_the_recurrence(dtype):
    """Against float64, outputs and gradients are off by at most 10 times what the float32 recurrence is off by."""
    inputs = random_inputs(17, T=256, K=32, V=32)
    weights = random_weights(inputs)
    inputs = tuple(jnp.asarray(x, dtype) for x in inputs[:3]) + inputs[3:]
    with jax.enable_x64(True):
        exact = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), (inputs, weights))
        want = (*recurrence(exact[0]), *jax.grad(lambda x: projection(recurrence(x), exact[1]))(exact[0]))
        want = [np.asarray(x) for x in want]

    def errors(form):
        got = (*forward(inputs, implementation=form), *gradients(inputs, weights, implementation=form))
        return [np.abs(np.asarray(a, np.float64) - b).max() for a, b in zip(got, want, strict=True)]

    for name, ours, theirs in zip(("o", "after", *NAMES), errors("chunked"), errors("recurrent"), strict=True):
        assert ours <= 10 * theirs, name


def recurrence(inputs):
    """The recurrence in the precision of its inputs, token by token, for gradients in float64."""
    *tokens, state = inputs

    def step(state, token):
        q, k, v, log_decay, beta = token
        state = jnp.exp(log_decay)[..., None, None] * state
        error = v - jnp.einsum("BNK,BNKV->BNV", k, state)
        state = state + jnp.einsum("BNK,BN,BNV->BNKV", k, beta, error)
        return state, jnp.einsum("BNK,BNKV->BNV", q, state)

    state, o = jax.lax.scan(step, state, [jnp.moveaxis(x, 1, 0) for x in tokens])
    return jnp.moveaxis(o, 0, 1), state


@pytest.mark.parametrize("form", ["chunked", "associative"])
def test_backward_keeps_inputs_and_boundary_states(form):
    """Counts what the forward pass keeps per token for the backward pass: what README.md promises, and no more."""
    B, N, K, V, C = 2, 3, 16, 8, 16

    def kept(T):
        inputs = random_inputs(15, B=B, T=T, N=N, K=K, V=V)
        op = partial(gated_delta, **small_chunks(form))
        pullback = jax.eval_shape(lambda *inputs: jax.vjp(op, *inputs)[1], *inputs)
        return sum(x.size for x in jax.tree.leaves(pullback))

    per_token = N * (2 * K + V + 2) + N * K * V / C
    if form == "chunked":
        per_token += N * C / 2  # half of each chunk's inverse
    assert kept(160) - kept(32) == B * 128 * per_token


def test_wrong_arguments_are_named():
    op = inspect.unwrap(gated_delta)  # without the type checks of a run with --jaxtyping-packages, which come first
    inputs = tuple(jnp.asarray(x) for x in random_inputs(16, T=8))
    with pytest.raises(ValueError, match="implementation='chunk' is unknown"):
        op(*inputs, implementation="chunk")
    with pytest.raises(ValueError, match="chunk_size=48 is not a power of two"):
        op(*inputs, chunk_size=48)
    with pytest.raises(ValueError, match="state_segment_ids is given without segment_ids"):
        op(*inputs, None, jnp.ones(2, jnp.int32))
