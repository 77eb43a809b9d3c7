"""The sums that a divergence reports beside its value.

Letters: B batch, C positions in a chunk, K most likely tokens.
"""

from collections.abc import Mapping

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from qwen35_jax.ops.linear_cross_entropy.core import Extras

NUM_GROUPS = 4
"""Groups of positions whose divergence is reported apart, such as the quarters of an answer."""

GROUPED = ("kl_forward", "kl_reverse")
"""Both exact divergences, whose sums by group are added where both are known."""


def weighted(weights: Float[Array, "..."], values: Float[Array, "..."]) -> Float[Array, "..."]:
    """Multiplies by weights; a weight of 0 gives exactly 0, also where the value is not finite."""
    return jnp.where(weights == 0, 0, weights * values)


def top_k_overlap(teacher_ids: Int[Array, "B C K"], student_ids: Int[Array, "B C K"]) -> Float[Array, "B C"]:
    """Returns the share of the teacher's most likely tokens that are among the student's."""
    shared = jnp.any(teacher_ids[..., :, None] == student_ids[..., None, :], axis=-1)
    return jnp.mean(shared, axis=-1, dtype=jnp.float32)


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
        Those of both exact divergences, if they are among the measures, are ``kl_forward_group_0`` and so on.
      groups: the group of each position; without it there are no such sums.
      sampled_log_probs: log-probability of each target when it was sampled, below 0, and 0 for those that were not. Of
        the sampled ones the distance of the student's own, the measure ``student_loss``, from it is added as
        ``sampler_gap``, and the log-ratio of student and teacher, if both losses are among the measures, as ``k1``.
    """
    if sampled_log_probs is not None:
        is_sampled, loss = sampled_log_probs < 0, measures["student_loss"]
        measures = {**measures, "sampler_gap": jnp.where(is_sampled, jnp.abs(loss + sampled_log_probs), 0)}
        if "teacher_loss" in measures:
            measures["k1"] = jnp.where(is_sampled, measures["teacher_loss"] - loss, 0)
    extras = {name: jnp.sum(weighted(weights, values)) for name, values in measures.items()}
    if groups is not None:
        grouped = {"kl": divergence}
        if all(name in measures for name in GROUPED):
            grouped |= {name: measures[name] for name in GROUPED}
        for name, values in grouped.items():
            for group in range(NUM_GROUPS):
                extras[f"{name}_group_{group}"] = jnp.sum(weighted(weights * (groups == group), values))
    return extras
