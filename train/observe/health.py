"""Which steps are unsound, and what a state remembers to judge the next one.

A step is unsound if its loss or gradient is not finite, or lies above a limit. Its update is never applied.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

WINDOW = 32
"""Updates that the running means look back on. Until there were as many, nothing is compared with the means."""


@dataclass(frozen=True)
class HealthConfig:
    """What to do with a step whose loss or gradient is not finite or too large.

    Its update is never applied, and ``unsound/`` in the run directory names the documents of its batch.
    """

    policy: Literal["stop", "skip"] = "stop"
    """``stop`` the run with an error, or ``skip`` the step: the state stays as it is and the run goes on."""
    max_skips: int = 10
    """Under ``skip``: how many steps in a row may be skipped before the run stops after all."""
    max_grad_norm: float | None = None
    """Largest norm of the gradient before clipping; None for no limit."""
    grad_norm_factor: float | None = None
    """The same as a multiple of the running mean of that norm over the last updates (about 32)."""
    loss_factor: float | None = None
    """Largest loss as a multiple of its running mean."""

    def __post_init__(self):
        if self.policy not in ("stop", "skip"):
            raise ValueError(f"health.policy={self.policy!r} is unknown; choose stop or skip.")
        if self.max_skips < 1:
            raise ValueError(f"health.max_skips={self.max_skips} must be at least 1; health.policy=stop allows none.")
        # `not x > 0` refuses NaN too, which as a limit would make every step unsound.
        if self.max_grad_norm is not None and not self.max_grad_norm > 0:
            raise ValueError(f"health.max_grad_norm={self.max_grad_norm} must be positive; None sets no limit.")
        for name in ("grad_norm_factor", "loss_factor"):
            value = getattr(self, name)
            if value is not None and not value > 1:
                raise ValueError(f"health.{name}={value} must be above 1; None sets no limit.")


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


def complaint(values: dict[str, float | int]) -> str:
    """Says what is wrong with the metrics of a step that was found unsound."""
    wild = [f"{name} is {value}" for name, value in values.items() if not math.isfinite(value)]
    return ", ".join(wild or [f"{name} is {values[name]:.6g}" for name in ("loss", "grad_norm") if name in values])
