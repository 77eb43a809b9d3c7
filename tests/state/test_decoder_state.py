"""The memory of a model: where tokens go, what stays, and that it is the same on one device and on several."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qwen35_jax.presets import PRESETS
from qwen35_jax.sharding import make_mesh
from qwen35_jax.state import ContiguousKeyValues, DecoderState, DeltaState, KeyValues, LayerState

TEXT = PRESETS["tiny"].text
B, T, S = 4, 8, 32


def empty(capacity: int = S) -> DecoderState:
    return DecoderState.empty(TEXT, B, capacity, jnp.float32)


def after(state: DecoderState, segment_ids) -> DecoderState:
    """Advances a state as the model does, with its layers left as they are."""
    segment_ids = jnp.asarray(segment_ids, jnp.int32)
    return state.advance(state.layers, segment_ids, state.positions(segment_ids), state.place(segment_ids))


def test_an_empty_memory_has_one_entry_for_each_layer_of_the_period():
    state = empty()
    assert [type(layer) for layer in state.layers] == [DeltaState, DeltaState, DeltaState, ContiguousKeyValues]
    assert all(isinstance(layer, LayerState) for layer in state.layers)
    assert isinstance(state.layers[-1], KeyValues)
    assert state.is_fresh and state.capacity == S


def test_only_padding_at_the_end_of_a_call_takes_no_slot():
    state = after(empty(), [[1, 1, 2, 2, 2, 0, 0, 0], [0, 0, 1, 1, 1, 1, 1, 1], [0] * 8, [1, 0, 2, 2, 0, 0, 0, 0]])
    assert not state.is_fresh
    assert state.lengths.tolist() == [5, 8, 0, 4]
    assert state.last_segment_ids.tolist() == [2, 1, 0, 2]
    assert state.next_position.tolist() == [3, 6, 0, 2]
    assert state.segment_ids[3, :6].tolist() == [1, 0, 2, 2, 0, 0]
    assert state.continued(2).tolist() == [[2, 2], [1, 1], [1, 1], [2, 2]]
    assert state.positions(state.continued(2)).tolist() == [[3, 4], [6, 7], [0, 1], [2, 3]]
    placed = state.place(state.continued(2))
    assert placed.slots.tolist() == [[5, 6], [8, 9], [0, 1], [4, 5]]
    assert placed.key_segment_ids[0, :8].tolist() == [1, 1, 2, 2, 2, 2, 2, 0]


def test_resizing_keeps_what_the_memory_holds():
    state = after(empty(), np.ones((B, T)))
    larger = state.resized(2 * S)
    assert larger.capacity == 2 * S and larger.layers[-1].k.shape[2] == 2 * S
    np.testing.assert_array_equal(larger.segment_ids[:, :S], state.segment_ids)
    assert not larger.segment_ids[:, S:].any()
    assert larger.lengths.tolist() == state.lengths.tolist()


@pytest.mark.parametrize("axes", [{"data": 2}, {"fsdp": 2, "tensor": 2}, {"tensor": 4}], ids=str)
@pytest.mark.parametrize("fresh", [True, False])
def test_attention_writes_and_reads_alike_on_several_devices(axes, fresh):
    """Sequences of unequal length; with ``tensor=4`` two devices share a key head."""
    rng = np.random.default_rng(0)
    heads = TEXT.num_attention_heads, TEXT.num_key_value_heads, TEXT.num_key_value_heads
    q, k, v = (jnp.asarray(rng.normal(size=(B, T, n, TEXT.head_dim)), jnp.float32) for n in heads)
    held = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), x.dtype), empty().layers[-1])
    state = empty() if fresh else after(empty(), np.arange(T) < np.asarray([[3], [8], [0], [5]]))
    segment_ids = jnp.asarray(np.arange(T) < np.asarray([[8], [2], [7], [8]]), jnp.int32)
    placement = dataclasses.replace(state.place(segment_ids), layer=jnp.ones((), jnp.int32))

    def run(held, q, k, v):
        return held.attend(q, k, v, segment_ids, placement)

    want, written = jax.jit(run)(held, q, k, v)
    with jax.set_mesh(make_mesh(**axes)):
        got, sharded = jax.jit(run)(held, q, k, v)
    real = np.asarray(segment_ids > 0)
    np.testing.assert_allclose(np.asarray(got)[real], np.asarray(want)[real], rtol=0, atol=1e-6)
    np.testing.assert_array_equal(sharded.k, written.k)
    first = np.asarray(placement.slots[:, 0])
    for i in range(B):
        np.testing.assert_array_equal(written.k[1, i, first[i] : first[i] + T], k[i])
        np.testing.assert_array_equal(written.k[0, i], held.k[0, i])
