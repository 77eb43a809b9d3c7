"""The gated delta rule: its three forms against each other, against float64, and against transformers."""

import inspect
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qwen35_jax.ops.gated_delta import gated_delta, l2_normalize

FORMS = ("recurrent", "chunked", "associative")
# Both sides in float32 with values of order 1: the sums' different orders show from the sixth digit on.
CLOSE = {"rtol": 1e-5, "atol": 1e-5}
# Gradients of q and k reach 10 and collect the errors of all later tokens.
CLOSE_GRAD = {"rtol": 1e-5, "atol": 3e-5}
NAMES = ("q", "k", "v", "log_decay", "beta", "state")


@pytest.fixture(autouse=True)
def strict_promotion():
    with jax.numpy_dtype_promotion("strict"):
        yield


def random_inputs(seed, B=2, T=64, N=3, K=16, V=8):
    """Returns the six arrays of the op; head 0 forgets slowly, as with A = 0.05, so that leaks would show."""
    rng = np.random.default_rng(seed)

    def normal(*shape):
        return rng.normal(size=shape).astype(np.float32)

    def unit(x):
        return x / np.linalg.norm(x, axis=-1, keepdims=True)

    rates = np.geomspace(0.05, 4, N).astype(np.float32)
    log_decay = -rates * np.log1p(np.exp(normal(B, T, N)))
    beta = 1 / (1 + np.exp(-normal(B, T, N)))
    q, k = unit(normal(B, T, N, K)) * np.float32(K**-0.5), unit(normal(B, T, N, K))
    return q, k, normal(B, T, N, V), log_decay, beta, normal(B, N, K, V)


# Each compiled shape costs seconds, most of them for optimising what runs once.
jit = partial(
    jax.jit,
    static_argnames=("implementation", "chunk_size"),
    compiler_options={"xla_backend_optimization_level": 0},
)


def small_chunks(form):
    """Arguments for chunks of 16; none for the form that knows no chunks, so that it is compiled once."""
    return {"implementation": form} if form == "recurrent" else {"implementation": form, "chunk_size": 16}


@jit
def forward(inputs, segment_ids=None, state_segment_ids=None, *, implementation, chunk_size=64):
    return gated_delta(*inputs, segment_ids, state_segment_ids, implementation=implementation, chunk_size=chunk_size)


@jit
def gradients(inputs, weights, segment_ids=None, *, implementation, chunk_size=64):
    """Gradients of all six inputs, of a fixed random projection of both results."""

    def projected(inputs):
        results = gated_delta(*inputs, segment_ids, implementation=implementation, chunk_size=chunk_size)
        return projection(results, weights)

    return jax.grad(projected)(inputs)


def projection(results, weights):
    return sum(jnp.sum(r.astype(w.dtype) * w) for r, w in zip(results, weights, strict=True))


def random_weights(inputs):
    rng = np.random.default_rng(99)
    return tuple(rng.normal(size=inputs[i].shape).astype(np.float32) for i in (2, 5))


def assert_same_gradients(got, want, **tolerance):
    for name, a, b in zip(NAMES, got, want, strict=True):
        np.testing.assert_allclose(a, b, err_msg=name, **(tolerance or CLOSE_GRAD))


def reference(q, k, v, log_decay, beta, state):
    """The recurrence in float64, one document, written as the paper writes it."""
    q, k, v, log_decay, beta, state = (np.asarray(x, np.float64) for x in (q, k, v, log_decay, beta, state))
    outputs = []
    for t in range(q.shape[1]):
        state = np.exp(log_decay[:, t])[..., None, None] * state
        error = v[:, t] - np.einsum("BNK,BNKV->BNV", k[:, t], state)
        state = state + np.einsum("BNK,BN,BNV->BNKV", k[:, t], beta[:, t], error)
        outputs.append(np.einsum("BNK,BNKV->BNV", q[:, t], state))
    return np.stack(outputs, axis=1), state


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
def test_value_heads_share_key_heads(hf, key_heads):
    import torch

    q, k, v, log_decay, beta, state = random_inputs(1, T=65, N=6)
    q, k = q[:, :, :key_heads], k[:, :, :key_heads]
    theirs = [torch.tensor(x) for x in (q * np.float32(q.shape[-1] ** 0.5), k, v, log_decay, beta, state)]
    want, want_state = hf.torch_chunk_gated_delta_rule(*theirs[:5], initial_state=theirs[5], output_final_state=True)
    q, k = (np.repeat(x, 6 // key_heads, axis=2) for x in (q, k))
    got, got_state = forward((q, k, v, log_decay, beta, state), implementation="chunked")
    np.testing.assert_allclose(got, want, **CLOSE)
    np.testing.assert_allclose(got_state, want_state, **CLOSE)


@pytest.mark.parametrize("form", FORMS)
def test_any_split_gives_the_whole(form):
    inputs = random_inputs(5, T=72)
    want, want_state = forward(inputs, **small_chunks(form))
    state, outputs = inputs[5], []
    for start, stop in [(0, 1), (1, 33), (33, 65), (65, 72)]:
        part = tuple(x[:, start:stop] for x in inputs[:5])
        o, state = forward((*part, state), **small_chunks(form))
        outputs.append(o)
    np.testing.assert_allclose(np.concatenate(outputs, axis=1), want, **CLOSE)
    np.testing.assert_allclose(state, want_state, **CLOSE)


# Rows of documents (id, length) with chunks of 16: shorter than a chunk, several in one, ending with a chunk, spanning
# several; padding at the left, at the right and between, shorter and longer than a chunk.
ROWS = [
    [(1, 5), (2, 1), (3, 10), (4, 40), (5, 16)],
    [(0, 3), (1, 13), (2, 20), (0, 18), (3, 11), (0, 7)],
    [(0, 30), (2, 7), (0, 1), (5, 33), (0, 1)],
    [(1, 72)],
    [(0, 72)],
]


@pytest.fixture(scope="module")
def packed():
    inputs = random_inputs(7, B=len(ROWS), T=72)
    segment_ids = np.array([np.repeat(*zip(*row, strict=True)) for row in ROWS], np.int32)
    padding = segment_ids == 0
    # What padding holds must not matter.
    for x in inputs[:3]:
        x[padding] = np.nan
    return inputs, segment_ids


def documents_of(segment_ids):
    """Yields (row, slice, is the row's first, is the row's last) of each document."""
    for row, ids in enumerate(segment_ids):
        names = [i for i in np.unique(ids) if i]
        for i in names:
            where = np.flatnonzero(ids == i)
            yield row, slice(where[0], where[-1] + 1), i == names[0], i == names[-1]


@pytest.mark.parametrize("form", FORMS)
def test_packed_equals_alone(form, packed):
    inputs, segment_ids = packed
    weights = random_weights(inputs)
    o, state = forward(inputs, segment_ids, **small_chunks(form))
    grads = gradients(inputs, weights, segment_ids, **small_chunks(form))
    np.testing.assert_array_equal(np.asarray(o)[segment_ids == 0], 0)
    for grad in grads[:5]:
        np.testing.assert_array_equal(np.asarray(grad)[segment_ids == 0], 0)
    np.testing.assert_array_equal(state[4], inputs[5][4])  # only padding: the state passes
    np.testing.assert_array_equal(grads[5][4], weights[1][4])

    for row, where, is_first, is_last in documents_of(segment_ids):
        alone, alone_state, alone_grads = alone_document(inputs, weights, row, where, is_first, is_last)
        np.testing.assert_allclose(o[row, where], alone, **CLOSE)
        for name, got, want in zip(NAMES[:5], grads, alone_grads, strict=False):
            np.testing.assert_allclose(got[row, where], want, err_msg=name, **CLOSE_GRAD)
        if is_first:
            np.testing.assert_allclose(grads[5][row], alone_grads[5], **CLOSE_GRAD)
        if is_last:
            np.testing.assert_allclose(state[row], alone_state, **CLOSE)


def alone_document(inputs, weights, row, where, is_first, is_last):
    """Runs one document token by token, without segment ids, padded behind to the one compiled length."""
    length = inputs[0].shape[1]
    parts = [x[row : row + 1, where] for x in (*inputs[:5], weights[0])]
    n = parts[0].shape[1]
    parts = [np.pad(x, [(0, 0), (0, length - n)] + [(0, 0)] * (x.ndim - 2)) for x in parts]
    state = inputs[5][row : row + 1] * np.float32(is_first)
    document = (*parts[:5], state)
    o, final = forward(document, implementation="recurrent")
    grads = gradients(document, (parts[5], weights[1][row : row + 1] * np.float32(is_last)), implementation="recurrent")
    return o[0, :n], final[0], [*(grad[0, :n] for grad in grads[:5]), grads[5][0]]


@pytest.mark.parametrize("form", FORMS)
def test_state_reaches_only_its_document(form):
    inputs = random_inputs(8, B=3, T=72)
    fresh = (*inputs[:5], np.zeros_like(inputs[5]))
    segment_ids = np.full((3, 72), 3, np.int32)
    segment_ids[:, :20] = 0
    o, state = forward(inputs, segment_ids, np.array([3, 2, 0]), **small_chunks(form))
    continued, continued_state = forward(inputs, segment_ids, **small_chunks(form))
    reset, reset_state = forward(fresh, segment_ids, **small_chunks(form))
    np.testing.assert_array_equal(o[0], continued[0])
    np.testing.assert_array_equal(o[1:], reset[1:])
    np.testing.assert_array_equal(state, np.stack([continued_state[0], *reset_state[1:]]))


@pytest.mark.parametrize("form", FORMS)
def test_one_token_knows_documents(form):
    inputs = random_inputs(9, B=3, T=1)
    fresh = (*inputs[:5], np.zeros_like(inputs[5]))
    o, state = forward(inputs, np.array([[4], [4], [0]]), np.array([4, 3, 4]), implementation=form)
    want, want_state = reference(*inputs)
    want_reset, want_reset_state = reference(*fresh)
    np.testing.assert_allclose(o, np.stack([want[0], want_reset[1], np.zeros_like(want[2])]), **CLOSE)
    np.testing.assert_allclose(state, np.stack([want_state[0], want_reset_state[1], inputs[5][2]]), **CLOSE)


@pytest.mark.parametrize("chunk_size", [64, 128])
def test_near_parallel_keys(chunk_size):
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
def test_computes_in_float32_whatever_comes_in(form):
    inputs = random_inputs(14, T=72)
    rounded = tuple(jnp.asarray(x, jnp.bfloat16) for x in inputs[:5])
    o, state = forward((*rounded, inputs[5]), **small_chunks(form))
    assert (o.dtype, state.dtype) == (jnp.bfloat16, jnp.float32)
    want, want_state = reference(*rounded, inputs[5])
    np.testing.assert_allclose(state, want_state, **CLOSE)
    np.testing.assert_allclose(o.astype(jnp.float32), want, rtol=2**-8, atol=1e-5)  # the output is rounded, once


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_errors_are_those_of_the_recurrence(dtype):
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
    """Counts what goes from forward to backward per token: README.md promises this and no more."""
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
