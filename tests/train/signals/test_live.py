"""A live teacher against the model's own outputs, and against numpy on its logits."""

import dataclasses
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from qwen35_jax.sharding import make_mesh, named_sharding
from train.batch import abstract_batch, put_batch, sequences_of_process, take_sequences
from train.config import TeacherConfig
from train.signals.live import LiveTeacher
from train.signals.signal import IDS, LOG_PROBS, STATES, TAIL

HIDDEN = TeacherConfig(dtype="float32", width=32)
TOP_K = dataclasses.replace(HIDDEN, signal="topk", k=6)


def taught(model, settings, batch, mesh, accumulation=2):
    """Returns the signal for the sequences of a batch, in their order."""
    live = LiveTeacher(model, settings, mesh, chunk_tokens=7)
    signal = live.teach(put_batch(batch, accumulation=accumulation, mesh=mesh))
    sequences = sequences_of_process(sequences=len(batch["input_ids"]), accumulation=accumulation, mesh=mesh)
    return {name: take_sequences(array, sequences, mesh=mesh) for name, array in signal.items()}


def placed(model, mesh):
    graphdef, state = nnx.split(model)
    state = jax.tree.map(
        lambda each: each.replace(jax.device_put(np.asarray(each[...]), named_sharding(each, mesh))),
        state,
        is_leaf=lambda x: isinstance(x, nnx.Variable),
    )
    return nnx.merge(graphdef, state)


@pytest.fixture(scope="module")
def logits(model, host_batch):
    return np.asarray(model.logits(host_batch["input_ids"], host_batch["segment_ids"]), np.float64)


def test_hidden_states_and_head_give_the_logits_of_the_model(model, mesh, host_batch, logits):
    states = taught(model, HIDDEN, host_batch, mesh)[STATES]
    head = LiveTeacher(model, HIDDEN, mesh).head
    assert states.dtype == np.float32 and head.shape == (512, 32)
    # float32 products of width 32, in another order.
    np.testing.assert_allclose(states @ np.asarray(head).T, logits, atol=2e-5)


def test_compiled_ahead_it_compiles_nothing_at_the_first_batch(model, mesh, host_batch, caplog):
    batch = put_batch(host_batch, accumulation=2, mesh=mesh)
    want = LiveTeacher(model, TOP_K, mesh, chunk_tokens=7).teach(batch)
    live, (sequences, tokens) = LiveTeacher(model, TOP_K, mesh, chunk_tokens=7), host_batch["input_ids"].shape
    live.compile(abstract_batch(sequences=sequences, tokens=tokens, accumulation=2, mesh=mesh))
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        got = live.teach(batch)
    assert not [record.message for record in caplog.records if "ompil" in record.message]
    jax.tree.map(np.testing.assert_array_equal, got, want)


def test_the_most_likely_tokens_are_those_of_the_logits(model, mesh, host_batch, logits):
    got = taught(model, TOP_K, host_batch, mesh)
    log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    order = np.argsort(-logits, axis=-1)[..., :6]
    np.testing.assert_array_equal(got[IDS], order)
    # float16: 11 bits.
    np.testing.assert_allclose(got[LOG_PROBS], np.take_along_axis(log_probs, order, -1), rtol=2**-11, atol=1e-5)
    kept = np.exp(np.take_along_axis(log_probs, order, -1)).sum(-1)
    np.testing.assert_allclose(got[TAIL], 1 - kept, atol=1e-6)


@pytest.mark.parametrize("axes", [{"data": 2, "fsdp": 2}, {"fsdp": 2, "context": 2, "tensor": 2}], ids=str)
@pytest.mark.parametrize("settings", [HIDDEN, TOP_K], ids=lambda each: each.signal)
def test_a_mesh_gives_the_signal_of_one_device(model, mesh, host_batch, axes, settings):
    want, other = taught(model, settings, host_batch, mesh), make_mesh(**axes)
    got = taught(placed(model, other), settings, host_batch, other)
    for name in want:
        # float32 sums in another order; float16 rounds at other places.
        tolerance = {"atol": 1e-5, "rtol": 2**-10 if name == LOG_PROBS else 1e-5}
        np.testing.assert_allclose(got[name], want[name], **tolerance)


def test_a_teacher_that_does_not_fit_its_settings_is_refused(model, mesh):
    with pytest.raises(ValueError, match=r"teacher\.width=33, .* width 32"):
        LiveTeacher(model, dataclasses.replace(HIDDEN, width=33), mesh)
    with pytest.raises(ValueError, match=r"computes in float32, but teacher\.dtype=bfloat16"):
        LiveTeacher(model, dataclasses.replace(HIDDEN, dtype="bfloat16"), mesh)
    with pytest.raises(ValueError, match=r"teacher\.k=513 is more than the 512"):
        LiveTeacher(model, dataclasses.replace(TOP_K, k=513), mesh)


def test_the_sequences_of_a_batch_come_back_in_their_order():
    for axes in ({}, {"data": 2, "fsdp": 2}, {"data": 2, "context": 2}, {"tensor": 4}):
        mesh, ids = make_mesh(**axes), np.arange(8 * 4, dtype=np.int32).reshape(8, 4)
        array = put_batch({"input_ids": ids}, accumulation=2, mesh=mesh)["input_ids"]
        np.testing.assert_array_equal(take_sequences(array, range(8), mesh=mesh), ids)
        np.testing.assert_array_equal(take_sequences(array, range(2, 5), mesh=mesh), ids[2:5])
        assert jnp.shape(array) == (2, 4, 4)
