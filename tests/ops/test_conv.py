"""The causal convolution: against a plain loop, over packed rows, in pieces, with gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qwen35_jax.ops.conv import causal_conv

B, T, C, W = 3, 14, 5, 4
# Sums of four float32 products of order 1.
CLOSE = {"rtol": 1e-6, "atol": 1e-6}


@pytest.fixture(autouse=True)
def strict_promotion():
    with jax.numpy_dtype_promotion("strict"):
        yield


@pytest.fixture(scope="module")
def inputs():
    rng = np.random.default_rng(0)
    shapes = ((B, T, C), (C, W), (B, W - 1, C))
    return tuple(rng.normal(size=shape).astype(np.float32) for shape in shapes)


conv = jax.jit(causal_conv)


@jax.jit
def gradients(inputs, weights, segment_ids=None):
    def projection(inputs):
        results = causal_conv(*inputs, segment_ids)
        return sum(jnp.sum(result * weight) for result, weight in zip(results, weights, strict=True))

    return jax.grad(projection)(inputs)


def alone(x, weight, window):
    """One document (T, C) with the window (W - 1, C) before it, tap by tap; returns outputs and the new window."""
    x = np.concatenate([window, x])
    W = weight.shape[1]
    y = [sum(weight[:, w] * x[t + w] for w in range(W)) for t in range(len(x) - W + 1)]
    return np.array(y).reshape(-1, x.shape[1]), x[len(x) - W + 1 :]


def test_matches_plain_loop(inputs):
    y, window = conv(*inputs)
    for row in range(B):
        want, want_window = alone(inputs[0][row], inputs[1], inputs[2][row])
        np.testing.assert_allclose(y[row], want, **CLOSE)
        np.testing.assert_array_equal(window[row], want_window)


def test_matches_transformers(inputs):
    torch = pytest.importorskip("torch", reason="torch is not installed; the plain loop is compared all the same")
    modeling = pytest.importorskip(
        "transformers.models.qwen3_5.modeling_qwen3_5", reason="transformers is not installed; see the plain loop"
    )
    x, weight, window = (torch.tensor(a) for a in inputs)
    y = modeling.causal_conv1d_fn(x.transpose(1, 2), weight)
    np.testing.assert_allclose(conv(*inputs[:2])[0], y.transpose(1, 2), **CLOSE)
    conv_state = window.transpose(1, 2).contiguous()
    y = modeling.causal_conv1d_update(x[:, :1].transpose(1, 2), conv_state, weight)
    got, got_window = conv(inputs[0][:, :1], *inputs[1:])
    np.testing.assert_allclose(got, y.transpose(1, 2), **CLOSE)
    np.testing.assert_array_equal(got_window, conv_state.transpose(1, 2))


# Documents shorter than the window, padding at the left, at the right and between, and a row of nothing else.
ROWS = [
    [(1, 1), (2, 2), (3, 7), (4, 4)],
    [(0, 3), (1, 5), (0, 2), (2, 2), (0, 2)],
    [(0, 14)],
]
SEGMENT_IDS = np.array([np.repeat(*zip(*row, strict=True)) for row in ROWS], np.int32)


def test_packed_equals_alone(inputs):
    x, weight, window = inputs
    x = np.where((SEGMENT_IDS == 0)[..., None], np.float32(np.nan), x)  # what padding holds must not matter
    y, new_window = conv(x, weight, window, SEGMENT_IDS)
    np.testing.assert_array_equal(np.asarray(y)[SEGMENT_IDS == 0], 0)
    want_window = np.array(window)
    for row, ids in enumerate(SEGMENT_IDS):
        for i in [i for i in np.unique(ids) if i]:
            past = window[row] if i == 1 else np.zeros_like(window[row])
            want, want_window[row] = alone(x[row, ids == i], weight, past)
            np.testing.assert_allclose(y[row, ids == i], want, **CLOSE)
    np.testing.assert_array_equal(new_window, want_window)


def test_gradients_stay_in_the_document(inputs):
    rng = np.random.default_rng(1)
    x, weight, window = inputs
    y_weight, window_weight = (rng.normal(size=a.shape).astype(np.float32) for a in (x, window))
    dx, dweight, dwindow = gradients(inputs, (y_weight, window_weight), SEGMENT_IDS)

    want_dx, want_dweight, want_dwindow = np.zeros_like(x), np.zeros_like(weight), np.zeros_like(window)
    for row, ids in enumerate(SEGMENT_IDS):
        names = [i for i in np.unique(ids) if i]
        for i in names:
            past = window[row] if i == 1 else np.zeros_like(window[row])
            extended = np.concatenate([past, x[row, ids == i]])
            d = np.zeros_like(extended)
            for t, dy in enumerate(y_weight[row, ids == i]):
                d[t : t + W] += dy * weight.T
                want_dweight += (dy * extended[t : t + W]).T
            if i == names[-1]:
                d[len(d) - W + 1 :] += window_weight[row]
            want_dx[row, ids == i] = d[W - 1 :]
            if i == 1:
                want_dwindow[row] = d[: W - 1]
        if not names:
            want_dwindow[row] = window_weight[row]
    for got, want in zip((dx, dweight, dwindow), (want_dx, want_dweight, want_dwindow), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)  # sums over all rows and tokens


def test_any_split_gives_the_whole(inputs):
    x, weight, window = inputs
    segment_ids = np.repeat([[1, 2], [1, 3], [1, 1]], [6, 8], axis=1).astype(np.int32)
    want, want_window = conv(x, weight, window, segment_ids)
    outputs, last = [], np.ones(B, np.int32)
    for start, stop in [(0, 1), (1, 5), (5, 7), (7, 14)]:
        y, window = conv(x[:, start:stop], weight, window, segment_ids[:, start:stop], last)
        last = segment_ids[:, stop - 1]
        outputs.append(y)
    np.testing.assert_array_equal(np.concatenate(outputs, axis=1), want)
    np.testing.assert_array_equal(window, want_window)


def test_left_padding_lies_before_the_window(inputs):
    """A call whose rows have different lengths goes on where the last one ended, whatever pads it."""
    x, weight, window = inputs
    segment_ids = np.repeat([[0, 5]], [4, 10], axis=1).repeat(B, axis=0).astype(np.int32)
    want, want_window = conv(x[:, 4:], weight, window)
    y, new_window = conv(x, weight, window, segment_ids, np.full(B, 5, np.int32))
    # Not bit for bit: programs of other shapes may fuse products and sums in other ways.
    np.testing.assert_allclose(y[:, 4:], want, **CLOSE)
    np.testing.assert_array_equal(new_window, want_window)


def test_window_reaches_only_its_document(inputs):
    x, weight, window = inputs
    segment_ids = np.full((B, T), 2, np.int32)
    y, _ = conv(x, weight, window, segment_ids, np.array([2, 1, 0], np.int32))
    np.testing.assert_allclose(y[0], conv(*inputs)[0][0], **CLOSE)
    np.testing.assert_allclose(y[1:], conv(x, weight)[0][1:], **CLOSE)


def test_fresh_window_of_only_padding_stays_empty(inputs):
    x, weight, _ = inputs
    segment_ids = np.zeros((B, T), np.int32)
    for state_segment_ids in (None, np.zeros(B, np.int32)):
        y, window = conv(x, weight, None, segment_ids, state_segment_ids)
        np.testing.assert_array_equal(y, 0)
        np.testing.assert_array_equal(window, 0)


def test_the_backward_pass_keeps_the_input_once():
    def kept(T):
        x, weight = jax.ShapeDtypeStruct((B, T, C), jnp.bfloat16), jax.ShapeDtypeStruct((C, W), jnp.bfloat16)
        pullback = jax.eval_shape(lambda *inputs: jax.vjp(lambda *a: causal_conv(*a)[0], *inputs)[1], x, weight)
        return sum(a.size for a in jax.tree.leaves(pullback))

    assert kept(100) - kept(40) == B * 60 * C


def test_bfloat16_inputs_are_summed_in_float32(inputs):
    x, weight, window = (jnp.asarray(a, jnp.bfloat16) for a in inputs)
    y, new_window = conv(x, weight, window)
    assert (y.dtype, new_window.dtype) == (jnp.bfloat16, jnp.bfloat16)
    want, _ = conv(*(a.astype(jnp.float32) for a in (x, weight, window)))
    np.testing.assert_array_equal(y, want.astype(jnp.bfloat16))


def test_wrong_arguments_are_named(inputs):
    with pytest.raises(ValueError, match="state_segment_ids is given without segment_ids"):
        conv(*inputs, None, np.ones(B, np.int32))
