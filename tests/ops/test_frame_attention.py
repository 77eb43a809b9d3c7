"""Attention inside frames against a softmax over each frame alone: every form, gradients, meshes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qwen35_jax.ops.attention import frame_attention, frames, sharded, splash
from qwen35_jax.sharding import make_mesh

N, H = 2, 24


def inputs(rows, capacity):
    """Makes rows of frames of these sizes, padded to the capacity."""
    rng = np.random.default_rng(capacity)
    q, k, v = rng.normal(size=(3, len(rows), capacity, N, H)).astype(np.float32)
    ids = np.zeros((len(rows), capacity), np.int32)
    for row, sizes in zip(ids, rows, strict=True):
        row[: sum(sizes)] = np.repeat(np.arange(1, len(sizes) + 1), sizes)
    return tuple(map(jnp.asarray, (q, k, v, ids)))


def one_by_one(q, k, v, ids):
    """Computes all scores of a row at once, and takes away those of other frames."""
    same = (ids[:, :, None] == ids[:, None, :]) & (ids > 0)[:, :, None]
    scores = jnp.einsum("RPNH,RSNH->RNPS", q, k) * H**-0.5
    weights = jnp.where(same[:, None], jax.nn.softmax(jnp.where(same[:, None], scores, -1e30)), 0)
    return jnp.einsum("RNPS,RSNH->RPNH", weights, v)


def value_and_gradients(attend, q, k, v, ids):
    def loss(q, k, v):
        out = jnp.where((ids > 0)[..., None, None], attend(q, k, v, ids), 0)
        return jnp.sum(jnp.sin(out)), out

    return jax.device_get(jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))(q, k, v))


def check(got, want):
    # Sums of float32 block by block.
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=2e-5), got, want)


def form(name):
    return lambda q, k, v, ids: frame_attention(q, k, v, ids, ids, form=name)


@pytest.mark.parametrize(
    ("rows", "capacity"),
    [
        ([(1,), (7,)], 7),
        ([(16, 4, 44), ()], 65),
        ([(63, 1, 65), (100, 12, 12)], 130),
        ([(4,) * 30], 132),
    ],
)
def test_blocks_give_the_softmax_of_each_frame(monkeypatch, rows, capacity):
    monkeypatch.setattr(frames, "BLOCK", 32)
    args = inputs(rows, capacity)
    check(value_and_gradients(form("plain"), *args), value_and_gradients(one_by_one, *args))


def test_only_blocks_of_the_own_frames_are_visited():
    ids = jnp.asarray([1, 1, 1, 1, 1, 2, 2, 3, 3, 3, 3, 3, 0, 0, 0, 0, 0, 0, 0, 0])
    first, count = frames.blocks_to_visit(ids, ids, 4, 2)
    assert first.tolist() == [0, 0, 3, 0, 0] and count.tolist() == [3, 6, 3, 0, 0]


@pytest.mark.parametrize("rows", [[(128,) * 6, (60, 70, 10)], [(700, 60), (768,)]], ids=["few blocks", "every block"])
def test_the_kernel_equals_the_plain_form(monkeypatch, rows):
    monkeypatch.setattr(splash, "_BLOCKS", (128,))
    args = inputs(rows, 768)
    check(value_and_gradients(form("splash"), *args), value_and_gradients(form("plain"), *args))


@pytest.mark.parametrize("axes", [{"data": 2, "context": 2, "tensor": 2}, {"context": 8}, {"fsdp": 8}], ids=str)
def test_eight_devices_equal_one(monkeypatch, axes):
    monkeypatch.setattr(frames, "BLOCK", 32)
    args = inputs([(16, 4, 44), (128,)], 128)
    want = value_and_gradients(sharded.frame_attention_sharded, *args)
    with jax.set_mesh(make_mesh(**axes)):
        check(value_and_gradients(sharded.frame_attention_sharded, *args), want)


def test_a_mesh_runs_the_kernel_too(monkeypatch):
    args = inputs([(300, 200)], 512)
    want = value_and_gradients(form("plain"), *args)
    monkeypatch.setattr(sharded, "frame_attention", functools.partial(frame_attention, form="splash"))
    with jax.set_mesh(make_mesh(context=2, tensor=2)):
        check(value_and_gradients(sharded.frame_attention_sharded, *args), want)
