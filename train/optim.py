"""The optimizer: AdamW with warmup, decay of the learning rate, clipping, and weight decay for matrices only."""

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike
from jaxtyping import PyTree

from train.config import OptimConfig


def make_schedule(config: OptimConfig, steps: int) -> optax.Schedule:
    """Returns the learning rate as a function of the number of updates done before.

    It rises linearly over the warmup, of which the last update uses the peak, and then follows ``config.schedule``,
    which would reach ``final_fraction`` of the peak in the update after the last.

    Args:
      config: with a learning rate (``OptimConfig.decide``).
      steps: updates of the run. A constant schedule does not depend on them.
    """
    assert config.learning_rate is not None, "the learning rate is decided"
    peak, warmup_steps = config.learning_rate, config.warmup_steps(steps)

    def schedule(count: ArrayLike) -> jax.Array:
        count = jnp.asarray(count, jnp.float32)
        rising = peak * jnp.minimum(1.0, (count + 1) / max(warmup_steps, 1))
        if config.schedule == "constant":
            return rising
        progress = jnp.clip((count - warmup_steps) / max(steps - warmup_steps, 1), 0.0, 1.0)
        remaining = 1.0 - progress if config.schedule == "linear" else 0.5 * (1.0 + jnp.cos(jnp.pi * progress))
        return rising * (config.final_fraction + (1.0 - config.final_fraction) * remaining)

    return schedule


def make_optimizer(config: OptimConfig, steps: int) -> optax.GradientTransformation:
    """Builds the chain of clipping and AdamW, for gradients in float32; the second moment is float32 too."""
    clip = optax.identity() if config.clip_norm is None else optax.clip_by_global_norm(config.clip_norm)
    adamw = optax.adamw(
        make_schedule(config, steps), b1=config.b1, b2=config.b2, eps=config.eps, mu_dtype=config.first_moment_dtype,
        weight_decay=config.weight_decay, mask=decay_mask,
    )  # fmt: skip
    return optax.chain(clip, adamw)


def decay_mask(params: PyTree) -> PyTree:
    """Marks the parameters that weight decay shrinks: all but norms, ``A_log`` and ``dt_bias``.

    The decision is by name, since stacking over layers gives vectors a second axis.
    """

    def decays(path, _) -> bool:
        names = [str(getattr(key, "key", getattr(key, "name", key))) for key in path]
        return not any("norm" in name or name in ("A_log", "dt_bias") for name in names)

    return jax.tree_util.tree_map_with_path(decays, params)
