"""The schedule at its corners, and what the optimizer decays and clips."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from train.config import OptimConfig
from train.optim import decay_mask, make_optimizer, make_schedule


@pytest.mark.parametrize(
    ("schedule", "want"),
    [
        ("constant", [0.5, 1.0, 1.0, 1.0, 1.0, 1.0]),
        ("linear", [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]),
        ("cosine", [0.5, 1.0, 1.0, 0.5 + 0.5 * np.sqrt(0.5), 0.5, 0.5 - 0.5 * np.sqrt(0.5)]),
    ],
)
def test_schedule_rises_to_the_peak_and_falls(schedule, want):
    rates = make_schedule(OptimConfig(learning_rate=2.0, warmup=2, schedule=schedule), 6)
    got = [float(rates(count)) for count in range(6)]
    # float32 arithmetic on both sides of 1.
    np.testing.assert_allclose(got, 2 * np.asarray(want), rtol=1e-6)


def test_schedule_ends_at_the_final_fraction():
    rates = make_schedule(OptimConfig(learning_rate=1.0, schedule="cosine", final_fraction=0.1), 10)
    np.testing.assert_allclose(float(rates(0)), 1.0)
    np.testing.assert_allclose(float(rates(10)), 0.1, rtol=1e-6)


def params():
    return {
        "mlp": {"gate_proj": {"weight": jnp.ones((2, 3, 4)), "lora_a": jnp.ones((3, 2))}},
        "linear_attn": {"A_log": jnp.ones((2, 4)), "dt_bias": jnp.ones((2, 4)), "norm": {"weight": jnp.ones((2, 8))}},
        "input_layernorm": {"weight": jnp.ones((2, 3))},
        "q_norm": {"weight": jnp.ones((2, 3))},
        "embed_tokens": {"weight": jnp.ones((5, 3))},
    }


def test_only_matrices_decay():
    mask = decay_mask(params())
    assert mask["mlp"] == {"gate_proj": {"weight": True, "lora_a": True}}
    assert mask["embed_tokens"]["weight"]
    assert mask["linear_attn"] == {"A_log": False, "dt_bias": False, "norm": {"weight": False}}
    assert not mask["input_layernorm"]["weight"] and not mask["q_norm"]["weight"]


def test_clipping_bounds_the_gradient_before_adam():
    config = OptimConfig(learning_rate=1.0, schedule="constant", clip_norm=1.0, eps=1.0, b1=0.0, b2=0.0)
    tree = {"weight": jnp.zeros(4)}
    huge = {"weight": jnp.full(4, 1e3)}
    tx = make_optimizer(config, 10)
    updates, _ = tx.update(huge, tx.init(tree), tree)
    # Clipped to norm 1 each entry is 0.5; Adam with eps=1 and no memory gives g / (|g| + 1).
    np.testing.assert_allclose(updates["weight"], -0.5 / 1.5, rtol=1e-5)


def test_bfloat16_halves_the_first_moment_and_nothing_else():
    tree = {"weight": jnp.ones((4, 8))}
    grads = {"weight": jnp.linspace(0.1, 1, 32).reshape(4, 8)}
    moments, updates = {}, {}
    for dtype in ("float32", "bfloat16"):
        tx = make_optimizer(OptimConfig(1e-4, first_moment_dtype=dtype), 10)
        updates[dtype], state = tx.update(grads, tx.init(tree), tree)
        moments[dtype] = next(part for part in state[1] if hasattr(part, "mu"))
    exact, rounded = moments["float32"], moments["bfloat16"]
    assert exact.mu["weight"].dtype == exact.nu["weight"].dtype == rounded.nu["weight"].dtype == jnp.float32
    assert 2 * rounded.mu["weight"].nbytes == exact.mu["weight"].nbytes
    np.testing.assert_array_equal(rounded.mu["weight"], exact.mu["weight"].astype(jnp.bfloat16))
    np.testing.assert_array_equal(rounded.nu["weight"], exact.nu["weight"])
    # The update is computed before the moment is rounded to be kept.
    np.testing.assert_array_equal(updates["bfloat16"]["weight"], updates["float32"]["weight"])


def test_float32_moments_are_those_of_adamw_by_default():
    config = OptimConfig(1e-4, warmup=0, clip_norm=None, schedule="constant")
    tree, grads = {"weight": jnp.ones(4)}, {"weight": jnp.linspace(0.1, 1, 4)}
    ours, plain = (
        make_optimizer(config, 10),
        optax.adamw(config.learning_rate, config.b1, config.b2, config.eps, weight_decay=0.0),
    )
    states = [ours.init(tree), plain.init(tree)]
    for _ in range(3):
        got, states[0] = ours.update(grads, states[0], tree)
        want, states[1] = plain.update(grads, states[1], tree)
        np.testing.assert_array_equal(got["weight"], want["weight"])
