"""The TPU kernel, interpreted on the CPU, against the plain form: values and gradients, whole and split sequences."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qwen35_jax.ops.attention import attention, sharded, splash
from qwen35_jax.sharding import make_mesh

B, N, K, H = 1, 4, 2, 128


def inputs(T: int):
    rng = np.random.default_rng(T)
    q, k, v = (jnp.asarray(rng.normal(size=(B, T, heads, H)), jnp.float32) for heads in (N, K, K))
    cuts = np.sort(rng.choice(T, (B, 5), replace=False))
    return q, k, v, jnp.asarray(np.sum(np.arange(T) >= cuts[..., None], axis=1), jnp.int32)


def loss_and_gradients(attend, q, k, v, segments):
    def loss(q, k, v):
        # What padding, document 0, attends to does not matter.
        out = jnp.where((segments > 0)[..., None, None], attend(q, k, v, segments), 0)
        return jnp.sum(jnp.sin(out)), out

    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))(q, k, v)


def plain(q, k, v, segments):
    return attention(q, k, v, segment_ids=segments, key_segment_ids=segments)


@pytest.mark.parametrize(("T", "shards"), [(384, 1), (1024, 4)])
def test_the_kernel_equals_the_plain_form(monkeypatch, T, shards):
    monkeypatch.setattr(sharded, "pick", lambda *_, **__: "splash")
    args = inputs(T)
    want = loss_and_gradients(plain, *args)
    with jax.set_mesh(make_mesh(context=shards)):
        got = loss_and_gradients(sharded.attention_sharded, *args)
    # The kernel adds up block by block, in float32 as well.
    check = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=2e-5)
    jax.tree.map(check, jax.device_get(got), jax.device_get(want))


def test_queries_at_traced_slots_equal_the_plain_form():
    """Two sequences of different lengths: their next 128 tokens attend to 384 slots."""
    rng = np.random.default_rng(0)
    T, S, lengths = 128, 384, np.asarray([200, 17])
    q, k, v = (jnp.asarray(rng.normal(size=(2, n, heads, H)), jnp.float32) for n, heads in ((T, N), (S, K), (S, K)))
    slots = lengths[:, None] + np.arange(T)
    keys = np.where(np.arange(S) < lengths[:, None] + T, 1 + (np.arange(S) >= 90), 0)
    segments = np.take_along_axis(keys, slots, axis=1)
    options = {"query_slots": slots, "segment_ids": segments, "key_segment_ids": keys}
    options = {name: jnp.asarray(value, jnp.int32) for name, value in options.items()}
    want = attention(q, k, v, **options, form="plain")
    got = attention(q, k, v, **options, form="splash")
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=2e-5)


def test_blocks_of_a_long_sequence_are_those_of_its_mask():
    """The structure found on a shortened sequence is the one of the sequence itself."""
    T, shards, block = 2048, 2, 512
    kernel = splash.make_kernel(T, num_heads=1, num_shards=shards)
    slots = np.arange(T).reshape(shards, 2, -1)
    order = np.concatenate([slots[0, 0], slots[1, 1], slots[1, 0], slots[0, 1]])
    visible = (order[:, None] >= np.arange(T)).reshape(T // block, block, T // block, block).swapaxes(1, 2)
    want = np.where(visible.all((2, 3)), 2, np.where(visible.any((2, 3)), 1, 0))
    np.testing.assert_array_equal(kernel.fwd_mask_info.block_mask[0], want)
    np.testing.assert_array_equal(kernel.fwd_mask_info.q_sequence, order)
    assert [splash.fits(n, n, num_shards=p) for n, p in ((128, 1), (130, 1), (1024, 4), (1024, 8))] == [
        True,
        False,
        True,
        False,
    ]
