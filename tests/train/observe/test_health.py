"""Which steps are unsound, and that the running figures are plain means that forget."""

import jax.numpy as jnp
import numpy as np
import pytest

from train.config import HealthConfig
from train.observe.health import WINDOW, Health, is_sound, new_health, next_health

OLD = Health(jnp.int32(WINDOW), jnp.int32(0), jnp.float32(2.0), jnp.float32(1.0))
YOUNG = OLD._replace(updates=jnp.int32(WINDOW - 1))


@pytest.mark.parametrize(
    ("health", "loss", "grad_norm", "limits", "sound"),
    [
        (OLD, 2.0, 1e9, {}, True),
        (OLD, np.nan, 1.0, {}, False),
        (OLD, np.inf, 1.0, {}, False),
        (OLD, 2.0, np.nan, {}, False),
        (YOUNG, 2.0, 5.1, {"max_grad_norm": 5.0}, False),
        (OLD, 2.0, 4.9, {"max_grad_norm": 5.0}, True),
        (OLD, 2.0, 3.1, {"grad_norm_factor": 3.0}, False),
        (OLD, 2.0, 2.9, {"grad_norm_factor": 3.0}, True),
        (YOUNG, 2.0, 3.1, {"grad_norm_factor": 3.0}, True),
        (OLD, 3.1, 1.0, {"loss_factor": 1.5}, False),
        (YOUNG, 3.1, 1.0, {"loss_factor": 1.5}, True),
    ],
)
def test_judgement(health, loss, grad_norm, limits, sound):
    assert bool(is_sound(health, jnp.float32(loss), jnp.float32(grad_norm), HealthConfig(**limits))) == sound


def test_means_look_back_on_a_window_and_skipped_steps_are_left_out():
    health = Health(*map(jnp.asarray, new_health()))
    losses = np.linspace(1, 2, WINDOW).astype(np.float32)
    for loss in losses:
        health = next_health(health, jnp.bool_(True), jnp.float32(loss), 2 * jnp.float32(loss))
    # float32 sums in another order.
    np.testing.assert_allclose([health.loss, health.grad_norm], [losses.mean(), 2 * losses.mean()], rtol=1e-6)
    skipped = next_health(health, jnp.bool_(False), jnp.float32(np.nan), jnp.float32(np.nan))
    assert skipped == health._replace(skips=jnp.int32(1))
    later = next_health(skipped, jnp.bool_(True), jnp.float32(10.0), jnp.float32(10.0))
    np.testing.assert_allclose(later.loss, losses.mean() + (10 - losses.mean()) / WINDOW, rtol=1e-6)
    assert int(later.updates) == WINDOW + 1 and int(later.skips) == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"policy": "ignore"}, "health.policy='ignore'"),
        ({"max_skips": 0}, "health.max_skips=0"),
        ({"max_grad_norm": 0.0}, "health.max_grad_norm=0"),
        ({"grad_norm_factor": 1.0}, "health.grad_norm_factor=1"),
        ({"loss_factor": 0.5}, "health.loss_factor=0.5"),
        ({"max_grad_norm": float("nan")}, "health.max_grad_norm=nan"),
        ({"loss_factor": float("nan")}, "health.loss_factor=nan"),
    ],
)
def test_limits_that_make_no_sense(changes, message):
    with pytest.raises(ValueError, match=message):
        HealthConfig(**changes)
