"""Inputs and references of the delta rule's tests: random arrays, the compiled op, and the recurrence in float64."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from qwen35_jax.ops.gated_delta import gated_delta

FORMS = ("recurrent", "chunked", "associative")
# Both sides in float32 with values of order 1: the sums' different orders show from the sixth digit on.
CLOSE = {"rtol": 1e-5, "atol": 1e-5}
# Gradients of q and k reach 10 and collect the errors of all later tokens.
CLOSE_GRAD = {"rtol": 1e-5, "atol": 3e-5}
NAMES = ("q", "k", "v", "log_decay", "beta", "state")


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
