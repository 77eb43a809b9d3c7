"""Sequences split over eight devices: the convolution and the delta rule against whole ones, and what they send."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from qwen35_jax.ops.attention.sharded import attention_sharded
from qwen35_jax.ops.conv import causal_conv_sharded
from qwen35_jax.ops.gated_delta.sharded import gated_delta_sharded
from qwen35_jax.sharding import make_mesh

B, N, K, V, W = 2, 2, 8, 16, 4
COLLECTIVES = ("all-gather", "all-reduce", "all-to-all", "collective-permute", "reduce-scatter")


def inputs(T: int):
    """Returns tokens with slow decays, which show leaks between documents, and padding where two stretches meet."""
    rng = np.random.default_rng(T)
    unit = rng.normal(size=(2, B, T, N, K))
    q, k = (unit / np.linalg.norm(unit, axis=-1, keepdims=True)).astype(np.float32)
    v = rng.normal(size=(B, T, N, V)).astype(np.float32)
    log_decay = -rng.uniform(0, 0.05, (B, T, N)).astype(np.float32)
    beta = rng.uniform(0, 1, (B, T, N)).astype(np.float32)
    cuts = np.sort(rng.choice(T, (B, 6), replace=False))
    segments = np.sum(np.arange(T) >= cuts[..., None], axis=1).astype(np.int32)
    segments[1, T // 4 - 2 : T // 4 + 1] = 0
    segments[1, : T // 4 - 2], segments[1, T // 4 + 1 :] = 1, 2
    taps = rng.normal(size=(N * V, W)).astype(np.float32)
    return [jnp.asarray(x) for x in (q, k, v, log_decay, beta, segments, taps)]


def mix(q, k, v, log_decay, beta, segments, taps):
    """Does what a DeltaNet layer does between its projections: the convolution, then the delta rule."""
    B, T = segments.shape
    mixed = causal_conv_sharded(v.reshape(B, T, -1), taps, segment_ids=segments)[0].reshape(v.shape)
    return gated_delta_sharded(q, k, mixed, log_decay, beta, segment_ids=segments)[0]


def make_gradients(weights):
    def loss(*args):
        out = mix(*args)
        return jnp.sum(jnp.sin(out) * weights), out

    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2, 3, 4, 6), has_aux=True))


def test_stretches_of_a_sequence_equal_the_whole():
    args = inputs(4096)
    gradients = make_gradients(jnp.cos(jnp.arange(args[2].size)).reshape(args[2].shape))
    want = jax.device_get(gradients(*args))
    with jax.set_mesh(make_mesh(context=8)):
        got = jax.device_get(gradients(*args))
    # float32, with the state of a stretch found by products of whole stretches instead of token after token.
    np.testing.assert_allclose(got[0][1], want[0][1], rtol=1e-5, atol=1e-5)
    for stretch, whole in zip(got[1], want[1], strict=True):
        assert np.linalg.norm(stretch - whole) < 1e-5 * np.linalg.norm(whole)


def test_a_deltanet_layer_sends_no_more_for_more_tokens():
    """Counts the bytes of the compiled forward and backward pass: no array that is sent has the length of a stretch."""
    short, long = (sent_bytes(T) for T in (512, 2048))
    assert short == long
    maps = 8 * B * N * K * (K + V) * 4
    assert maps <= sum(short.values()) < 4 * maps


def sent_bytes(T: int) -> dict[str, int]:
    """Adds up the results of each kind of collective."""
    args = inputs(T)
    mesh = make_mesh(context=8)
    with jax.set_mesh(mesh):
        places = [NamedSharding(mesh, P(None, "context"))] * 6 + [NamedSharding(mesh, P())]
        args = [jax.device_put(x, place) for x, place in zip(args, places, strict=True)]
        text = make_gradients(1.0).lower(*args).compile().as_text()
    found = dict.fromkeys(COLLECTIVES, 0)
    for result, kind in re.findall(rf"= (.*?) ({'|'.join(COLLECTIVES)})(?:-start)?\(", text):
        for dims in re.findall(r"[a-z]\d*\[([\d,]*)\]", result):
            found[kind] += 4 * int(np.prod([int(n) for n in dims.split(",") if n]))
    return found


@pytest.mark.parametrize("op", [causal_conv_sharded, attention_sharded])
def test_a_sequence_that_cannot_be_split_is_refused(op):
    x = jnp.zeros((1, 24, 2, 8))
    args = (x[:, :, 0], jnp.zeros((8, W))) if op is causal_conv_sharded else (x, x, x)
    with jax.set_mesh(make_mesh(context=8)), pytest.raises(ValueError, match=r"24 tokens .* must be a multiple of 16"):
        op(*args)


@pytest.mark.parametrize("axes", [{"context": 4}, {"data": 2, "tensor": 2}], ids=str)
def test_a_state_gives_the_same_numbers_on_a_mesh(axes):
    """Runs the second half of the tokens, with the state after the first, on several devices and on one."""
    args = [x[:, 128:] for x in inputs(256)[:6]]
    rng = np.random.default_rng(0)
    state = jnp.asarray(rng.normal(size=(B, N, K, V)), jnp.float32)
    entering = jnp.asarray([int(args[5][0, 0]), 1], jnp.int32)

    def run(*args):
        return gated_delta_sharded(*args[:5], state, args[5], entering)

    want = jax.jit(run)(*args)
    with jax.set_mesh(make_mesh(**axes)):
        got = jax.jit(run)(*args)
    # float32, with the state of a stretch found by products of whole stretches.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), got, want)
