"""The TPU kernel, interpreted on the CPU, against the plain form: outputs and gradients, whole and split rows."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qwen35_jax.ops import on_mesh, splash
from qwen35_jax.ops.attention import attention
from qwen35_jax.sharding import make_mesh

B, N, K, H = 1, 4, 2, 128


def inputs(T: int):
    rng = np.random.default_rng(T)
    q, k, v = (jnp.asarray(rng.normal(size=(B, T, heads, H)), jnp.float32) for heads in (N, K, K))
    cuts = np.sort(rng.choice(T, (B, 5), replace=False))
    return q, k, v, jnp.asarray(np.sum(np.arange(T) >= cuts[..., None], axis=1), jnp.int32)


def loss_and_gradients(attend, q, k, v, segments):
    def loss(q, k, v):
        # What padding, document 0, attends to is nobody's business.
        out = jnp.where((segments > 0)[..., None, None], attend(q, k, v, segments), 0)
        return jnp.sum(jnp.sin(out)), out

    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))(q, k, v)


def plain(q, k, v, segments):
    return attention(q, k, v, segment_ids=segments, key_segment_ids=segments)


@pytest.mark.parametrize(("T", "parts"), [(384, 1), (1024, 4)])
def test_the_kernel_equals_the_plain_form(monkeypatch, T, parts):
    def kernel(num_tokens, num_heads, parts):
        return splash.make_kernel(num_tokens, num_heads=num_heads, parts=parts, interpret=True)

    monkeypatch.setattr(on_mesh, "_splash_kernel", kernel)
    args = inputs(T)
    want = loss_and_gradients(plain, *args)
    with jax.set_mesh(make_mesh(context=parts)):
        got = loss_and_gradients(on_mesh.attention_rows, *args)
    # The kernel adds up block by block, in float32 as well.
    check = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=2e-5)
    jax.tree.map(check, jax.device_get(got), jax.device_get(want))


def test_blocks_of_a_long_row_are_those_of_its_mask():
    """The structure found on a shortened row is the one of the row itself."""
    T, parts, block = 2048, 2, 512
    kernel = splash.make_kernel(T, num_heads=1, parts=parts)
    slots = np.arange(T).reshape(parts, 2, -1)
    order = np.concatenate([slots[0, 0], slots[1, 1], slots[1, 0], slots[0, 1]])
    visible = (order[:, None] >= np.arange(T)).reshape(T // block, block, T // block, block).swapaxes(1, 2)
    want = np.where(visible.all((2, 3)), 2, np.where(visible.any((2, 3)), 1, 0))
    np.testing.assert_array_equal(kernel.fwd_mask_info.block_mask[0], want)
    np.testing.assert_array_equal(kernel.fwd_mask_info.q_sequence, order)
    assert [splash.fits(n, p) for n, p in ((128, 1), (130, 1), (1024, 4), (1024, 8))] == [True, False, True, False]
