"""The sums that a divergence reports beside its value.

Letters: B batch, C positions in a chunk.
"""

from collections.abc import Mapping

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from qwen35_jax.ops.linear_cross_entropy.core import Extras

NUM_GROUPS = 4
"""Groups of positions whose divergence is reported apart, such as the quarters of an answer."""


def weighted(weights: Float[Array, "..."], values: Float[Array, "..."]) -> Float[Array, "..."]:
    """Multiplies by weights; a weight of 0 gives exactly 0, also where the value is not finite."""
    return jnp.where(weights == 0, 0, weights * values)


def sum_extras(
    weights: Float[Array, "B C"],
    measures: Mapping[str, Float[Array, "B C"]],
    divergence: Float[Array, "B C"],
    groups: Int[Array, "B C"] | None,
    sampled_log_probs: Float[Array, "B C"] | None = None,
) -> Extras:
    """Sums each measure over the positions of a chunk, times their weights.

    Args:
      divergence: what is trained; its sums over the positions of each group are added as ``kl_group_0`` and so on.
      groups: the group of each position; without it there are no such sums.
      sampled_log_probs: log-probability of each target when it was sampled, 0 for those that were not. The distance of
        the student's own, the measure ``student_loss``, from it is added as ``sampler_gap``.
    """
    if sampled_log_probs is not None:
        gap = jnp.abs(measures["student_loss"] + sampled_log_probs)
        measures = {**measures, "sampler_gap": jnp.where(sampled_log_probs < 0, gap, 0)}
    extras = {name: jnp.sum(weighted(weights, values)) for name, values in measures.items()}
    if groups is not None:
        for group in range(NUM_GROUPS):
            extras[f"kl_group_{group}"] = jnp.sum(weighted(weights * (groups == group), divergence))
    return extras
