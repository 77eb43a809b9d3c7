"""The forward divergence from a teacher of whom the k most likely tokens and the mass of the rest are known.

The README has the formula. ``s`` is the student's distribution; ``t`` are the teacher's k probabilities and ``tau`` is
its tail, the mass of all other tokens, to which the student gives ``sigma``.

Letters: B batch, T tokens, D model width, V vocabulary, K stored token ids, C positions in a chunk.
"""

from functools import partial
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from qwen35_jax.ops.linear_cross_entropy.core import Extras, sum_over_chunks
from qwen35_jax.ops.linear_cross_entropy.extras import sum_extras, top_k_overlap, weighted
from qwen35_jax.ops.linear_cross_entropy.vocabulary import VocabularyShard


def linear_top_k_divergence(
    hidden: Float[Array, "B T D"],
    head: Float[Array, "V D"],
    ids: Int[Array, "B T K"],
    log_probs: Float[Array, "B T K"],
    tail: Float[Array, "B T"],
    targets: Int[Array, "B T"],
    weights: Float[Array, "B T"],
    *,
    chunk_tokens: int,
    groups: Int[Array, "B T"] | None = None,
    sampled_log_probs: Float[Array, "B T"] | None = None,
    with_overlap: bool = False,
) -> tuple[Float[Array, ""], Extras]:
    """Sums ``weights`` times KL(t || s) in k + 1 buckets; differentiable in ``hidden`` and ``head``.

    Each of the k tokens is a bucket, and all others together are one: the tail. The buckets are divided by their sum
    first, which takes off the rounding of the stored log-probabilities. With k = V there is no tail.

    Args:
      ids: the teacher's k most likely token ids, the most likely first, no id twice.
      log_probs: their log-probabilities, in any floating dtype; -inf is a probability of 0.
      tail: probability of all other tokens; not a logarithm. Ignored if k = V.
      targets: the token that follows at each position; only the extras read it.
      weights: weight of each position. Where it is 0, the other arrays may hold anything. Not differentiated.
      chunk_tokens: positions of each sequence per chunk; T need not be a multiple.
      groups: the group of each position, from 0 to 3, for sums of the divergence by group.
      sampled_log_probs: log-probability of each target when it was sampled, below 0, and 0 for those that were not.
      with_overlap: compare the student's most likely k too. This sorts the vocabulary: for evaluation only.

    Returns:
      The float32 sum, and the extras, each a sum of ``weights`` times a measure in nats or a share in [0, 1]:
      ``kl_forward`` (what is trained, a lower bound of the whole divergence), ``student_entropy``, ``student_loss``
      (minus the log-probability of the target), ``targets_in_top_k`` (1 for a target among the k),
      ``teacher_loss_bound`` (the same as ``student_loss`` of the teacher, but with the whole tail in place of the
      probability of a target in it: at most the teacher's cross-entropy), ``agreement`` (of the most likely tokens),
      ``tail_mass``, ``student_tail_mass``; ``kl_group_0`` to ``kl_group_3`` with ``groups``; ``sampler_gap`` (distance
      of the log-probability of a sampled target from what it was) with ``sampled_log_probs``; ``top_k_overlap`` (the
      share of the teacher's top k that is in the student's) with ``with_overlap``.

    Raises:
      ValueError: there are more ids than the vocabulary has, or ``chunk_tokens`` is not positive.
    """
    k, vocab_size = ids.shape[-1], head.shape[0]
    if not 1 <= k <= vocab_size:
        raise ValueError(f"{k} token ids at a position; there must be between 1 and the vocabulary's {vocab_size}.")
    tail = jnp.zeros_like(tail) if k == vocab_size else tail
    inputs = _Inputs(ids, log_probs, tail, targets, weights, groups, sampled_log_probs)
    return sum_over_chunks(
        _token_loss_with_overlap if with_overlap else _token_loss, hidden, head, inputs, chunk_tokens=chunk_tokens
    )


class _Inputs(NamedTuple):
    ids: Int[Array, "B T K"]
    log_probs: Float[Array, "B T K"]
    tail: Float[Array, "B T"]
    targets: Int[Array, "B T"]
    weights: Float[Array, "B T"]
    groups: Int[Array, "B T"] | None
    sampled_log_probs: Float[Array, "B T"] | None


def _token_loss(
    logits: Float[Array, "B C V"],
    inputs: _Inputs,
    shard: VocabularyShard,
    frozen_logits: Float[Array, "B C V"] | None,
    *,
    with_overlap: bool = False,
) -> tuple[Float[Array, ""], Float[Array, "B C V"], Extras]:
    assert frozen_logits is None
    largest = shard.max(logits)
    log_sum = shard.logsumexp(logits, largest)
    log_s = logits - log_sum[..., None]
    s = jnp.exp(log_s)

    log_buckets, tail = _buckets(inputs.log_probs, inputs.tail)
    log_t = _spread(inputs.ids, log_buckets, logits, shard)
    is_stored = log_t < jnp.inf
    # Not 1 minus the mass of the k, which cancels.
    log_rest = shard.logsumexp(jnp.where(is_stored, -jnp.inf, logits))
    t = jnp.where(is_stored, jnp.exp(log_t), 0)
    sums = shard.sum(
        {
            "kl": jnp.where(t > 0, t * (log_t - log_s), 0),
            "student_entropy": -s * log_s,
            "student_loss": jnp.where(shard.is_id(inputs.targets, logits), -log_s, 0),
            "agreement": (shard.is_id(inputs.ids[..., 0], logits) & (logits == largest[..., None])).astype(jnp.float32),
        }
    )
    log_sigma = log_rest - log_sum
    value = sums.pop("kl") + jnp.where(tail > 0, tail * (jnp.log(tail) - log_sigma), 0)
    # The teacher's tail, shared out as the student does.
    rest = tail[..., None] * jnp.exp(logits - log_rest[..., None])
    gradient = s - jnp.where(is_stored, t, rest)

    measures = sums | {
        "kl_forward": value,
        "tail_mass": tail,
        "student_tail_mass": jnp.exp(log_sigma),
        **_of_targets(inputs.ids, log_buckets, tail, inputs.targets),
    }
    if with_overlap:
        measures["top_k_overlap"] = top_k_overlap(inputs.ids, shard.top_k(logits, inputs.ids.shape[-1])[1])
    extras = sum_extras(inputs.weights, measures, value, inputs.groups, inputs.sampled_log_probs)
    return jnp.sum(weighted(inputs.weights, value)), weighted(inputs.weights[..., None], gradient), extras


# One object, so that JAX compiles it once.
_token_loss_with_overlap = partial(_token_loss, with_overlap=True)


def _buckets(
    log_probs: Float[Array, "B C K"], tail: Float[Array, "B C"]
) -> tuple[Float[Array, "B C K"], Float[Array, "B C"]]:
    """Returns the log-probabilities of the k buckets and the probability of the tail, divided by their sum."""
    log_probs = log_probs.astype(jnp.float32)
    total = jnp.sum(jnp.exp(log_probs), axis=-1) + tail
    return log_probs - jnp.log(total)[..., None], tail / total


def _of_targets(
    ids: Int[Array, "B C K"],
    log_buckets: Float[Array, "B C K"],
    tail: Float[Array, "B C"],
    targets: Int[Array, "B C"],
) -> dict[str, Float[Array, "B C"]]:
    """Returns what the buckets tell of the targets: which are among the k, and minus the logarithm of their bucket."""
    is_target = ids == targets[..., None]
    is_known = jnp.any(is_target, axis=-1)
    log_known = jnp.sum(jnp.where(is_target, log_buckets, 0), axis=-1)
    # What rounds to 0 is below the smallest number of the dtype, so that the bound stays one.
    least = jnp.log(jnp.finfo(jnp.float32).tiny)
    return {
        "targets_in_top_k": is_known.astype(jnp.float32),
        "teacher_loss_bound": -jnp.maximum(jnp.where(is_known, log_known, jnp.log(tail)), least),
    }


def _spread(
    ids: Int[Array, "B C K"], values: Float[Array, "B C K"], logits: Float[Array, "B C V"], shard: VocabularyShard
) -> Float[Array, "B C V"]:
    """Places values at their token ids among this shard's entries, and infinity at all others."""
    B, C, V = logits.shape
    entries = ids - shard.first
    # An entry below 0 would count from the end; one at V is dropped.
    entries = jnp.where(entries < 0, V, entries)
    rows, columns = jnp.arange(B)[:, None, None], jnp.arange(C)[:, None]
    return jnp.full(logits.shape, jnp.inf).at[rows, columns, entries].set(values, mode="drop")
