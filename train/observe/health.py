"""Which steps are unsound, and what a state remembers to judge the next one.

A step is unsound if its loss or gradient is not finite, or lies above a limit. Its update is never applied.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from train.config.health import HealthConfig

WINDOW = 32
"""Updates that the running means look back on. Until there were as many, nothing is compared with the means."""


class Health(NamedTuple):
    """What the judgement of the next step depends on."""

    updates: Int[Array, ""]
    """Updates applied so far: steps without those skipped."""
    skips: Int[Array, ""]
    """Steps skipped in a row until now."""
    loss: Float[Array, ""]
    """Running mean over the updates of the loss that is minimised."""
    grad_norm: Float[Array, ""]
    """Running mean over the updates of the norm of the gradient, before clipping."""


def new_health() -> Health:
    """Returns the state before the first step, on the host."""
    # Not yet arrays of a device: ``init_state`` places them.
    count: Any = np.int32(0)
    mean: Any = np.float32(0)
    return Health(updates=count, skips=count, loss=mean, grad_norm=mean)


def is_sound(health: Health, loss: jax.Array, grad_norm: jax.Array, config: HealthConfig) -> Bool[Array, ""]:
    """Judges one step."""
    # Comparisons with NaN are false.
    sound = (jnp.abs(loss) < jnp.inf) & (grad_norm < jnp.inf)
    if config.max_grad_norm is not None:
        sound &= grad_norm <= config.max_grad_norm
    young = health.updates < WINDOW
    if config.grad_norm_factor is not None:
        sound &= young | (grad_norm <= config.grad_norm_factor * health.grad_norm)
    if config.loss_factor is not None:
        sound &= young | (loss <= config.loss_factor * health.loss)
    return sound


def next_health(health: Health, sound: Bool[Array, ""], loss: jax.Array, grad_norm: jax.Array) -> Health:
    """Takes a step into account: the means are plain ones over the first updates, and forget old updates later."""
    weight = 1.0 / jnp.minimum(health.updates + 1, WINDOW)

    def mean(old: jax.Array, new: jax.Array) -> jax.Array:
        return jnp.where(sound, old + weight * (new - old), old)

    return Health(
        updates=health.updates + sound,
        skips=jnp.where(sound, 0, health.skips + 1),
        loss=mean(health.loss, loss),
        grad_norm=mean(health.grad_norm, grad_norm),
    )


def complaint(values: Mapping[str, float | int], terms: Sequence[str]) -> str:
    """Says what is wrong with the metrics of a step that was found unsound.

    Args:
      terms: the names of what is minimised.
    """
    wild = [f"{name} is {value}" for name, value in values.items() if not math.isfinite(value)]
    return ", ".join(wild or [f"{name} is {values[name]:.6g}" for name in (*terms, "grad_norm") if name in values])
