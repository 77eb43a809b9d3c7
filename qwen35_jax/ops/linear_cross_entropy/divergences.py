"""Divergences between a trained head's distribution and that of a frozen teacher, over the whole vocabulary.

The README has the formulas. ``s`` is the student's distribution, ``t`` the teacher's.

Letters: B batch, T tokens, D width of the student, E width of the teacher, V vocabulary, C positions in a chunk.
"""

import math
from typing import Literal, NamedTuple, get_args

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from qwen35_jax.ops.linear_cross_entropy.core import Extras, FrozenHead, sum_over_chunks
from qwen35_jax.ops.linear_cross_entropy.extras import sum_extras, top_k_overlap, weighted
from qwen35_jax.ops.linear_cross_entropy.vocabulary import VocabularyShard

Divergence = Literal["forward_kl", "reverse_kl", "jsd", "total_variation"]
"""``forward_kl`` is KL(t || s), ``reverse_kl`` is KL(s || t)."""

# Above this log-ratio, 1 is nothing beside the exponential in float32; above 88 the exponential overflows.
_LARGE = 60.0


def linear_divergence(
    hidden: Float[Array, "B T D"],
    head: Float[Array, "V D"],
    frozen: FrozenHead,
    targets: Int[Array, "B T"],
    weights: Float[Array, "B T"],
    *,
    kind: Divergence,
    beta: float | None = None,
    temperature: float = 1.0,
    chunk_tokens: int,
    groups: Int[Array, "B T"] | None = None,
    sampled_log_probs: Float[Array, "B T"] | None = None,
    top_k: int | None = None,
) -> tuple[Float[Array, ""], Extras]:
    """Sums ``weights`` times the divergence of the student from the teacher; differentiable in ``hidden`` and ``head``.

    All but the two products runs in float32. Equal models give exactly 0, and a gradient of exactly 0.

    Args:
      frozen: hidden states and head of the teacher.
      targets: the token that follows at each position; only the extras read it. Ignored where the weight is 0.
      weights: weight of each position, 0 for those that do not train. Not differentiated.
      beta: the teacher's share of the mixture of ``jsd``, between 0 and 1; for the others None.
      temperature: divides the logits of both; value and gradient are then multiplied by its square.
      chunk_tokens: positions of each sequence per chunk; T need not be a multiple.
      groups: the group of each position, from 0 to 3, for sums of the divergence by group.
      sampled_log_probs: log-probability of each target when it was sampled, below 0, and 0 for those that were not.
      top_k: compare the most likely ``top_k`` tokens too. This sorts the vocabulary: for evaluation only.

    Returns:
      The float32 sum, and the extras, each a sum of ``weights`` times a measure in nats or a share in [0, 1]:
      ``kl_forward``, ``kl_reverse``, ``student_entropy``, ``teacher_entropy``, ``student_loss`` and ``teacher_loss``
      (minus the log-probability of the target), ``agreement`` (of the most likely tokens) and ``overlap_tv`` (1 minus
      the total variation), all at temperature 1; with ``groups`` the sums of each, ``kl_group_0`` to ``kl_group_3`` of
      what is trained, and the same of ``kl_forward`` and ``kl_reverse``; with ``sampled_log_probs``, over sampled
      targets, ``sampler_gap`` (distance of the log-probability from what it was) and ``k1`` (log-ratio of both models);
      ``top_k_overlap`` (the share of the teacher's top k that is in the student's), ``teacher_top_k_mass`` and
      ``student_top_k_mass`` (what each gives to the teacher's top k) with ``top_k``.

    Raises:
      ValueError: an option is out of its range, or the teacher has another vocabulary.
    """
    check_options(kind, beta, temperature, top_k, vocab_size=head.shape[0])
    loss = _Divergence(kind, beta, temperature, top_k)
    inputs = _Inputs(targets, weights, groups, sampled_log_probs)
    return sum_over_chunks(loss, hidden, head, inputs, chunk_tokens=chunk_tokens, frozen=frozen)


def check_options(kind: str, beta: float | None, temperature: float, top_k: int | None, *, vocab_size: int) -> None:
    """Checks the options of ``linear_divergence``.

    Raises:
      ValueError: one is out of its range.
    """
    kinds = get_args(Divergence)
    if kind not in kinds:
        raise ValueError(f"the divergence {kind!r} is unknown; it must be one of {', '.join(kinds)}.")
    if kind == "jsd" and (beta is None or not 0 < beta < 1):
        raise ValueError(
            f"beta={beta} must lie between 0 and 1 for jsd, which is 0 at both ends; use forward_kl or reverse_kl "
            "for what it is like near 0 and near 1."
        )
    if kind != "jsd" and beta is not None:
        raise ValueError(f"beta={beta} is for jsd alone; remove it for {kind}.")
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature={temperature} must be positive; 1 leaves the distributions as they are.")
    if top_k is not None and not 1 <= top_k <= vocab_size:
        raise ValueError(f"top_k={top_k} must be between 1 and the vocabulary's {vocab_size} token ids.")


class _Inputs(NamedTuple):
    targets: Int[Array, "B T"]
    weights: Float[Array, "B T"]
    groups: Int[Array, "B T"] | None
    sampled_log_probs: Float[Array, "B T"] | None


class _Divergence(NamedTuple):
    """The loss of a chunk. Equal settings compare equal, so that JAX compiles them once."""

    kind: Divergence
    beta: float | None
    temperature: float
    top_k: int | None

    def __call__(
        self,
        logits: Float[Array, "B C V"],
        inputs: _Inputs,
        shard: VocabularyShard,
        frozen_logits: Float[Array, "B C V"] | None,
    ) -> tuple[Float[Array, ""], Float[Array, "B C V"], Extras]:
        assert frozen_logits is not None
        log_s, log_t = (_log_softmax(z, shard) for z in (logits, frozen_logits))
        value, gradient = self._value_and_gradient(log_s, log_t, shard)
        tops = (logits == shard.max(logits)[..., None]) & (frozen_logits == shard.max(frozen_logits)[..., None])
        measures = _measures(log_s, log_t, tops, inputs.targets, shard)
        if self.top_k is not None:
            measures |= _top_k_measures(log_s, log_t, self.top_k, shard)
        extras = sum_extras(inputs.weights, measures, value, inputs.groups, inputs.sampled_log_probs)
        total = jnp.sum(weighted(inputs.weights, value))
        return total, weighted(inputs.weights[..., None], gradient), extras

    def _value_and_gradient(self, log_s, log_t, shard):
        if self.temperature != 1:
            log_s, log_t = (_log_softmax(x / self.temperature, shard) for x in (log_s, log_t))
        if self.kind == "jsd":
            assert self.beta is not None
            value, gradient = _jensen_shannon(log_s, log_t, self.beta, shard)
        else:
            value, gradient = _WITHOUT_BETA[self.kind](log_s, log_t, shard)
        return self.temperature**2 * value, self.temperature * gradient


def _log_softmax(logits: Float[Array, "B C V"], shard: VocabularyShard) -> Float[Array, "B C V"]:
    return logits - shard.logsumexp(logits)[..., None]


_ValueAndGradient = tuple[Float[Array, "B C"], Float[Array, "B C V"]]


def _kl(log_p: Float[Array, "B C V"], log_q: Float[Array, "B C V"]) -> Float[Array, "B C V"]:
    """Returns terms whose sum is KL(p || q), none of them negative.

    ``q - p`` sums to 0. It takes off what the rounding of the two normalisers adds to ``p (log p - log q)``.
    """
    p, q = jnp.exp(log_p), jnp.exp(log_q)
    return p * (log_p - log_q) + (q - p)


def _forward_kl(
    log_s: Float[Array, "B C V"], log_t: Float[Array, "B C V"], shard: VocabularyShard
) -> _ValueAndGradient:
    return shard.sum(_kl(log_t, log_s)), jnp.exp(log_s) - jnp.exp(log_t)


def _reverse_kl(
    log_s: Float[Array, "B C V"], log_t: Float[Array, "B C V"], shard: VocabularyShard
) -> _ValueAndGradient:
    s, ratio = jnp.exp(log_s), log_s - log_t
    # The mean of the very log-ratios of the gradient: a common error of the normalisers cancels.
    value, mean = shard.sum((_kl(log_s, log_t), s * ratio))
    return value, s * (ratio - mean[..., None])


def _jensen_shannon(
    log_s: Float[Array, "B C V"], log_t: Float[Array, "B C V"], beta: float, shard: VocabularyShard
) -> _ValueAndGradient:
    s, t, ratio = jnp.exp(log_s), jnp.exp(log_t), log_s - log_t
    # log(t / M) and log(s / M) of the mixture M = beta t + (1 - beta) s.
    teacher_ratio, student_ratio = -_log_mixture(1 - beta, ratio), -_log_mixture(beta, -ratio)
    from_teacher, from_student = shard.sum((t * teacher_ratio, s * student_ratio))
    gradient = (1 - beta) * s * (student_ratio - from_student[..., None])
    return beta * from_teacher + (1 - beta) * from_student, gradient


def _log_mixture(share: float, x: Float[Array, "B C V"]) -> Float[Array, "B C V"]:
    """Returns ``log(1 - share + share exp(x))``: logaddexp, but exactly 0 at 0 and precise beside it."""
    return jnp.where(x > _LARGE, x + jnp.log(share), jnp.log1p(share * jnp.expm1(jnp.minimum(x, _LARGE))))


def _total_variation(
    log_s: Float[Array, "B C V"], log_t: Float[Array, "B C V"], shard: VocabularyShard
) -> _ValueAndGradient:
    s, t = jnp.exp(log_s), jnp.exp(log_t)
    below = s < t
    value, mass_below = shard.sum((jnp.maximum(t - s, 0), jnp.where(below, s, 0)))
    return value, s * (mass_below[..., None] - below)


_WITHOUT_BETA = {"forward_kl": _forward_kl, "reverse_kl": _reverse_kl, "total_variation": _total_variation}


def _measures(
    log_s: Float[Array, "B C V"],
    log_t: Float[Array, "B C V"],
    is_top_of_both: Bool[Array, "B C V"],
    targets: Int[Array, "B C"],
    shard: VocabularyShard,
) -> dict[str, Float[Array, "B C"]]:
    """Returns what is reported at each position. XLA makes all sums in one pass over the logits of both models."""
    s, t = jnp.exp(log_s), jnp.exp(log_t)
    is_target = shard.is_id(targets, log_s)
    sums = shard.sum(
        {
            "kl_forward": _kl(log_t, log_s),
            "kl_reverse": _kl(log_s, log_t),
            "student_entropy": -s * log_s,
            "teacher_entropy": -t * log_t,
            "student_loss": jnp.where(is_target, -log_s, 0),
            "teacher_loss": jnp.where(is_target, -log_t, 0),
            "agreement": is_top_of_both.astype(jnp.float32),
            "total_variation": jnp.maximum(t - s, 0),
        }
    )
    # More than one token may be the most likely of both.
    sums["agreement"] = jnp.minimum(sums["agreement"], 1)
    return sums | {"overlap_tv": 1 - sums.pop("total_variation")}


def _top_k_measures(
    log_s: Float[Array, "B C V"], log_t: Float[Array, "B C V"], k: int, shard: VocabularyShard
) -> dict[str, Float[Array, "B C"]]:
    _, student_ids = shard.top_k(log_s, k)
    teacher_top, teacher_ids = shard.top_k(log_t, k)
    return {
        "top_k_overlap": top_k_overlap(teacher_ids, student_ids),
        "teacher_top_k_mass": jnp.sum(jnp.exp(teacher_top), axis=-1),
        "student_top_k_mass": jnp.sum(jnp.exp(shard.take(log_s, teacher_ids)), axis=-1),
    }
