"""Speculative sampling by slot: draws drafts, and accepts them so that the output has the model's own distribution.

Letters: ``B`` slots, ``K`` drafts, ``T = K + 1`` positions, ``V`` vocabulary, ``C`` candidates.

``q`` is the distribution that a draft was drawn from and ``p`` the one that the model and the settings give. A draft
``d`` is accepted with probability ``min(1, p(d) / q(d))``, and the token after the first rejection is drawn from
``max(p - q, 0)``; then every token has the distribution ``p``. Plain decoding is the same with no draft.

Source: arXiv:2211.17192 and arXiv:2302.01318.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int, Key, UInt32

from qwen35_jax.inference import distribution
from qwen35_jax.inference.distribution import Masks, Settings

DRAFT, ACCEPT, SAMPLE = range(3)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Drafts:
    """The drafts of every slot and the distributions they were drawn from.

    Attributes:
      tokens: the drafts.
      ids: the candidates of each draft.
      probs: their probabilities; 0 for what sampling removed.
      valid: how many drafts of a slot count.
    """

    tokens: Int[Array, "B K"]
    ids: Int[Array, "B K C"]
    probs: Float[Array, "B K C"]
    valid: Int[Array, " B"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Verified:
    """What one call adds to every slot.

    Attributes:
      tokens: ``count`` accepted drafts, one new token, then zeros.
      count: how many drafts were accepted.
      sampling_logprobs: the log-probabilities of these tokens in ``p``; zeros after them.
    """

    tokens: Int[Array, "B T"]
    count: Int[Array, " B"]
    sampling_logprobs: Float[Array, "B T"]


def keys(seeds: UInt32[Array, "B 2"], positions: Int[Array, " B *T"], purpose: int) -> Key[Array, " B *T"]:
    """Returns one key a position, made of the slot's seed, the position and the purpose alone."""

    def of_slot(seed: Array, positions: Array) -> Array:
        base = jax.random.fold_in(jax.random.wrap_key_data(seed, impl="threefry2x32"), purpose)
        fold_in = functools.partial(jax.random.fold_in, base)
        for _ in positions.shape:
            fold_in = jax.vmap(fold_in)
        return fold_in(positions)

    return jax.vmap(of_slot)(seeds, positions)


def draw_draft(
    logits: Float[Array, "B V"],
    settings: Settings,
    seeds: UInt32[Array, "B 2"],
    positions: Int[Array, " B"],
) -> tuple[Int[Array, " B"], Int[Array, "B C"], Float[Array, "B C"]]:
    """Draws one draft a slot from the most likely candidates, by the slot's settings without penalties.

    Args:
      logits: float32, of the drafting layer; of the first tokens of the vocabulary, or of all.
      settings: by slot.
      seeds: by slot.
      positions: of the token that is drafted.

    Returns:
      The drafts, their candidates, and the candidates' probabilities.
    """
    values, ids = distribution.candidates(logits)
    probs = distribution.candidate_probabilities(values, settings)
    choice = _draw(keys(seeds, positions, DRAFT), probs)
    return jnp.take_along_axis(ids, choice[:, None], axis=-1)[:, 0], ids, probs


def verify(
    logits: Float[Array, "B T V"],
    drafts: Drafts,
    forced: Int[Array, "B T"],
    settings: Settings,
    seeds: UInt32[Array, "B 2"],
    positions: Int[Array, "B T"],
    seen: Int[Array, "B V"],
    masks: Masks | None = None,
) -> Verified:
    """Accepts drafts from the front and draws one more token, so that all have the distribution ``p``.

    Args:
      logits: float32, of the model; masks, biases and penalties are applied here.
      drafts: ``T - 1`` drafts a slot; those from ``valid`` on are as if they did not exist.
      forced: a token that must stand at a position, whatever the logits are; -1 for none.
      settings: by slot.
      seeds: by slot.
      positions: of the tokens that are chosen.
      seen, masks: as in ``adjust``.
    """
    uniform = jax.vmap(jax.vmap(jax.random.uniform))(keys(seeds, positions[:, :-1], ACCEPT))
    sample_keys = keys(seeds, positions, SAMPLE)
    adjust = functools.partial(distribution.adjust, logits, settings, seen, drafts.tokens, masks)
    # Logits are large: a branch that returned them as they are would copy them, and these are few.
    adjusts = settings.adjusts if masks is None else settings.adjusts | masks.on
    best = lax.cond(
        jnp.any(adjusts),
        lambda: distribution.candidates(adjust()),
        lambda: distribution.candidates(logits),
    )

    def narrow() -> Verified:
        values, ids = best
        probs = distribution.candidate_probabilities(values, settings)
        first = jnp.arange(ids.shape[-1]) == 0
        must = forced[..., None] >= 0
        ids = jnp.where(must & first, forced[..., None], ids)
        probs = jnp.where(must, first.astype(probs.dtype), probs)
        return _accept(probs, ids, drafts, uniform, sample_keys)

    def wide() -> Verified:
        probs = distribution.all_probabilities(adjust(), settings)
        one_hot = (jnp.arange(probs.shape[-1]) == forced[..., None]).astype(probs.dtype)
        probs = jnp.where(forced[..., None] >= 0, one_hot, probs)
        return _accept(probs, None, drafts, uniform, sample_keys)

    def either() -> Verified:
        needs = settings.needs_all_tokens
        return jax.tree.map(
            lambda a, b: jnp.where(jnp.expand_dims(needs, tuple(range(1, a.ndim))), a, b), wide(), narrow()
        )

    return lax.cond(jnp.any(settings.needs_all_tokens), either, narrow)


def _accept(
    probs: Float[Array, "B T P"],
    ids: Int[Array, "B T P"] | None,
    drafts: Drafts,
    uniform: Float[Array, "B K"],
    sample_keys: Key[Array, "B T"],
) -> Verified:
    """Accepts and draws; ``ids`` is None if entry ``i`` of ``probs`` is token ``i``."""
    num_drafts = drafts.tokens.shape[1]
    place = jnp.arange(num_drafts)
    p = _probability_of(probs[:, :-1], None if ids is None else ids[:, :-1], drafts.tokens)
    q = _probability_of(drafts.probs, drafts.ids, drafts.tokens)
    accepted = (uniform * q < p) & (place < drafts.valid[:, None])
    count = jnp.sum(jnp.cumprod(accepted.astype(jnp.int32), axis=1), axis=1, dtype=jnp.int32)

    probs_here = _row(probs, count)
    ids_here = None if ids is None else _row(ids, count)
    weights = probs_here
    if num_drafts:
        at = jnp.minimum(count, num_drafts - 1)
        rest = _without(probs_here, ids_here, _row(drafts.ids, at), _row(drafts.probs, at))
        # The rest is 0 everywhere only where p equals q, and there only rounding can reject.
        rejected = (count < drafts.valid)[:, None] & (jnp.sum(rest, axis=-1, keepdims=True) > 0)
        weights = jnp.where(rejected, rest, probs_here)
    choice = _draw(jnp.take_along_axis(sample_keys, count[:, None], axis=1)[:, 0], weights)
    new = choice if ids_here is None else jnp.take_along_axis(ids_here, choice[:, None], axis=-1)[:, 0]
    p_new = jnp.take_along_axis(probs_here, choice[:, None], axis=-1)

    def joined(drafted: Array, new: Array) -> Array:
        drafted = jnp.pad(drafted, ((0, 0), (0, 1)))
        step = jnp.arange(num_drafts + 1) - count[:, None]
        return jnp.where(step < 0, drafted, jnp.where(step == 0, new, jnp.zeros_like(new)))

    tokens = joined(drafts.tokens, new[:, None].astype(drafts.tokens.dtype))
    return Verified(tokens, count, joined(jnp.log(p), jnp.log(p_new)))


def _row(values: Array, at: Int[Array, " B"]) -> Array:
    """Returns position ``at`` of every slot."""
    return jnp.take_along_axis(values, at[:, None, None], axis=1)[:, 0]


def _probability_of(
    probs: Float[Array, "B K P"], ids: Int[Array, "B K P"] | None, tokens: Int[Array, "B K"]
) -> Float[Array, "B K"]:
    if ids is None:
        return jnp.take_along_axis(probs, tokens[..., None], axis=-1)[..., 0]
    return jnp.sum(jnp.where(ids == tokens[..., None], probs, 0.0), axis=-1)


def _without(
    probs: Float[Array, "B P"], ids: Int[Array, "B P"] | None, q_ids: Int[Array, "B C"], q: Float[Array, "B C"]
) -> Float[Array, "B P"]:
    """Returns ``max(p - q, 0)``."""
    if ids is None:
        rest = jax.vmap(lambda probs, q_ids, q: probs.at[q_ids].add(-q))(probs, q_ids, q)
    else:
        rest = probs - jnp.sum(jnp.where(ids[:, :, None] == q_ids[:, None], q[:, None], 0.0), axis=-1)
    return jnp.maximum(rest, 0.0)


def _draw(one_key: Key[Array, " B"], weights: Float[Array, "B P"]) -> Int[Array, " B"]:
    """Draws an index by weights, which need not sum to 1; an index of weight 0 is never drawn."""
    return jax.vmap(jax.random.categorical)(one_key, jnp.log(weights)).astype(jnp.int32)
