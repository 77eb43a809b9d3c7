"""The arrays of a signal in a batch, and how an objective sees them."""

import jax.numpy as jnp
import numpy as np
import pytest

from tests.train.signals.conftest import Settings
from train.signals.signal import IDS, LOG_PROBS, STATES, TAIL, Hidden, TopK, signal_fields, signal_of


def batch_of(signal):
    rng = np.random.default_rng(0)
    fields = signal_fields(Settings(signal))
    return {name: jnp.asarray(rng.integers(0, 9, field.shape(2, 5)), field.dtype) for name, field in fields.items()}


def test_the_arrays_have_the_declared_types():
    hidden, topk = batch_of("hidden"), batch_of("topk")
    assert {name: (x.dtype, x.shape) for name, x in hidden.items()} == {STATES: (jnp.bfloat16, (2, 5, 6))}
    assert {name: (x.dtype, x.shape) for name, x in topk.items()} == {
        IDS: (jnp.int32, (2, 5, 4)),
        LOG_PROBS: (jnp.float16, (2, 5, 4)),
        TAIL: (jnp.float32, (2, 5)),
    }


def test_a_width_that_is_not_known_is_refused():
    settings = Settings("hidden")
    settings.width = None
    with pytest.raises(ValueError, match=r"teacher\.width is not known"):
        signal_fields(settings)


def test_a_view_is_of_the_arrays_and_shifts_all_of_them():
    head = jnp.ones((7, 6))
    hidden, topk = signal_of(batch_of("hidden"), head), signal_of(batch_of("topk"), None)
    assert isinstance(hidden, Hidden) and isinstance(topk, TopK)
    np.testing.assert_array_equal(hidden.shift(2).states[:, :3], hidden.states[:, 2:])
    assert not np.any(hidden.shift(2).states[:, 3:])
    assert hidden.shift(2).head is head
    for moved, whole in zip(topk.shift(1), topk, strict=True):
        np.testing.assert_array_equal(moved[:, :4], whole[:, 1:])


def test_a_batch_without_its_signal_or_its_head_is_refused():
    with pytest.raises(ValueError, match=f"neither {STATES} nor {IDS}"):
        signal_of({}, None)
    with pytest.raises(ValueError, match="head is not given"):
        signal_of(batch_of("hidden"), None)
