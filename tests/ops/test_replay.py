"""The replay of a window against the recurrence on the tokens that count, one sequence after the other."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qwen35_jax.ops.gated_delta import gated_delta_recurrent
from qwen35_jax.ops.gated_delta.replay import gated_delta_replay
from qwen35_jax.ops.gated_delta.replay_kernel import replay_kernel
from qwen35_jax.sharding import make_mesh

N, K, V = 2, 8, 16
LAYER = jnp.int32(1)


def make_case(T: int, B: int, K: int = K, V: int = V):
    """Returns the arguments of the op, where sequence ``b`` replays ``b`` tokens and the rest of its past is NaN.

    There are two layers, of which the second is meant; the first one's state is all 7.
    """
    rng = np.random.default_rng(T)
    unit = rng.normal(size=(2, B, 2 * T, N, K))
    q, k = unit / np.linalg.norm(unit, axis=-1, keepdims=True)
    v = rng.normal(size=(B, 2 * T, N, V))
    log_decay, beta = -rng.exponential(0.1, (B, 2 * T, N)), rng.uniform(size=(B, 2 * T, N))
    q, k, v, log_decay, beta = (x.astype(np.float32) for x in (q, k, v, log_decay, beta))
    num_past = (np.arange(B) % (T + 1)).astype(np.int32)
    past = []
    for x in (k, v, log_decay, beta):
        x = x[:, :T].copy()
        x[np.arange(T) >= num_past[:, None]] = np.nan
        past.append(x)
    state = rng.normal(size=(B, N, K, V)).astype(np.float32)
    states = np.stack([np.full_like(state, 7), state])
    return (*(x[:, T:] for x in (q, k, v, log_decay, beta)), states, LAYER, tuple(past), num_past)


replay = jax.jit(gated_delta_replay)


@pytest.mark.parametrize("T", [1, 3])
def test_the_state_takes_what_counts_and_the_window_is_read_on_top(T):
    q, *window, states, _, past, num_past = args = make_case(T, B=T + 1)
    out, (other, after) = replay(*args)
    state = states[1]
    np.testing.assert_array_equal(other, states[0])
    for b, n in enumerate(num_past):
        row = slice(b, b + 1)
        want = jnp.asarray(state[row])
        if n:
            tokens = [jnp.asarray(x[row, :n]) for x in past]
            _, want = gated_delta_recurrent(jnp.zeros_like(tokens[0]), *tokens, want)
        np.testing.assert_allclose(after[row], want, rtol=1e-6, atol=1e-6)
        want_out, _ = gated_delta_recurrent(*(jnp.asarray(x[row]) for x in (q, *window)), want)
        np.testing.assert_allclose(out[row], want_out, rtol=1e-5, atol=1e-6)
        assert n or np.array_equal(after[b], state[b])


def test_a_token_reads_the_same_in_a_window_as_after_those_before_are_replayed():
    """One token a call, each with the one before as its past, against windows of three."""
    q, *window, states, _, _, _ = make_case(3, B=2)
    whole = [np.full(2, n, np.int32) for n in range(4)]
    long, _ = replay(q, *window, states, LAYER, tuple(window), whole[0])
    for t in range(3):
        _, after = replay(q, *window, states, LAYER, tuple(window), whole[t])
        short, _ = replay(*(np.roll(x, -t, axis=1) for x in (q, *window)), after, LAYER, tuple(window), whole[0])
        # Sums of other parts in another order.
        np.testing.assert_allclose(short[:, 0], long[:, t], rtol=1e-5, atol=1e-6)


def test_a_sequence_alone_is_bit_equal_to_itself_in_a_crowd():
    args = make_case(3, B=4)
    mine = np.arange(4) == 2

    def poisoned(x, *, axis=0):
        return np.where(mine.reshape(-1, *[1] * (x.ndim - axis - 1)), x, np.float32(np.nan))

    *window, states, layer, past, num_past = args
    others = [poisoned(x) for x in window], poisoned(states, axis=1), tuple(poisoned(x) for x in past)
    alone, states_alone = replay(*others[0], others[1], layer, others[2], np.where(mine, num_past, 0).astype(np.int32))
    crowd, states_crowd = replay(*args)
    np.testing.assert_array_equal(alone[mine], crowd[mine])
    np.testing.assert_array_equal(states_alone[:, mine], states_crowd[:, mine])


def test_a_mesh_splits_sequences_and_heads():
    args = make_case(3, B=4)
    want = replay(*args)
    with jax.set_mesh(make_mesh(data=4, tensor=2)):
        got = jax.jit(gated_delta_replay)(*args)
    jax.tree.map(lambda got, want: np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-6), got, want)


@pytest.mark.parametrize(("T", "dtype"), [(1, jnp.float32), (3, jnp.float32), (3, jnp.bfloat16)])
def test_the_kernel_equals_the_plain_form(T, dtype):
    q, k, v, *rest, past, num_past = make_case(T, B=T + 1, K=128, V=128)
    q, k, v, past_k, past_v = (jnp.asarray(x, dtype) for x in (q, k, v, *past[:2]))
    args = (q, k, v, *rest, (past_k, past_v, *past[2:]), num_past)
    want, got = replay(*args), jax.jit(replay_kernel)(*args)
    # The outputs are rounded to the dtype of the values, where a last bit may fall either way.
    tolerance = 1e-5 if dtype == jnp.float32 else 1e-2
    np.testing.assert_allclose(*(np.float32(x[0]) for x in (got, want)), rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(got[1], want[1], rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(got[1][0], args[5][0])
