"""What each slot of a batch allows as its next token: penalties, the most likely candidates and their probabilities.

Letters: ``B`` slots, ``T`` positions of this call, ``V`` vocabulary, ``C`` candidates.

Every setting is an array by slot. Slots never meet in one sum, and every branch leaves a slot that did not ask for it
as it is, so what a slot draws is the same, bit for bit, whatever the other slots ask for.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from qwen35_jax.inference.sampling import MAX_BIAS, SamplingParams
from qwen35_jax.sharding import gather_shards, over_mesh, shard_index

CANDIDATES = 64
# The bit of ``seen`` that says that the prompt holds the token; the bits below count it in the output.
PROMPT = 1 << 30
# One row of lanes of a TPU's vector unit: the maximum of a group costs no move between lanes of several rows.
_GROUP = 128


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Settings:
    """The sampling settings of every slot, or of one slot without the axis ``B``; most are those of ``SamplingParams``.

    Attributes:
      bias_ids: tokens whose logits are raised; -1 is an empty place.
      bias_values: what is added to them.
    """

    temperature: Float[Array | np.ndarray, " *B"]
    top_k: Int[Array | np.ndarray, " *B"]
    top_p: Float[Array | np.ndarray, " *B"]
    min_p: Float[Array | np.ndarray, " *B"]
    presence_penalty: Float[Array | np.ndarray, " *B"]
    frequency_penalty: Float[Array | np.ndarray, " *B"]
    repetition_penalty: Float[Array | np.ndarray, " *B"]
    bias_ids: Int[Array | np.ndarray, "*B M"]
    bias_values: Float[Array | np.ndarray, "*B M"]

    @classmethod
    def row(cls, sampling: SamplingParams) -> "Settings":
        """Returns the settings of one slot as numpy values."""
        bias = dict(sampling.logit_bias)
        bias_ids, bias_values = np.full(MAX_BIAS, -1, np.int32), np.zeros(MAX_BIAS, np.float32)
        bias_ids[: len(bias)], bias_values[: len(bias)] = list(bias), list(bias.values())
        same = [field.name for field in dataclasses.fields(cls) if not field.name.startswith("bias_")]
        kinds = {"top_k": np.int32}
        values = {name: np.asarray(getattr(sampling, name), kinds.get(name, np.float32)) for name in same}
        return cls(**values, bias_ids=bias_ids, bias_values=bias_values)

    @classmethod
    def empty(cls, slots: int) -> "Settings":
        """Returns greedy settings for every slot, as device arrays."""
        return jax.tree.map(lambda leaf: jnp.tile(leaf, (slots, *[1] * np.ndim(leaf))), cls.row(SamplingParams()))

    @property
    def needs_all_tokens(self) -> Bool[Array, " B"]:
        """Whether a slot may draw tokens outside the ``CANDIDATES`` most likely ones."""
        top_k = jnp.asarray(self.top_k)
        return (jnp.asarray(self.temperature) > 0) & ((top_k == 0) | (top_k > CANDIDATES))

    @property
    def adjusts(self) -> Bool[Array, " B"]:
        """Whether a slot has penalties or biases."""
        penalties = (self.repetition_penalty != 1) | (self.frequency_penalty != 0) | (self.presence_penalty != 0)
        return jnp.asarray(penalties) | jnp.any(jnp.asarray(self.bias_ids) >= 0, axis=-1)


class Masks(NamedTuple):
    """Which tokens may come next, by slot.

    Attributes:
      on: slots whose next token is restricted.
      bits: one bit a token, lowest bit first: 1 where the token may come next.
    """

    on: Bool[Array, " B"]
    bits: Int[Array, "B words"]


def adjust(
    logits: Float[Array, "B T V"],
    settings: Settings,
    seen: Int[Array, "B V"],
    drafts: Int[Array, "B K"],
    masks: Masks | None = None,
) -> Float[Array, "B T V"]:
    """Applies mask, bias, repetition, frequency and presence penalty, in this order.

    Args:
      logits: float32; position 0 follows the output that ``seen`` counts.
      settings: by slot.
      seen: how often the output holds each token, plus ``PROMPT`` if the prompt holds it.
      drafts: the ``T - 1`` tokens after that output; position ``t`` counts the first ``t`` as output.
      masks: for position 0.

    Source: the definitions of OpenAI and vLLM; ``RepetitionPenaltyLogitsProcessor`` of transformers.
    """

    def in_output(t: int) -> Array:
        drafted = drafts[:, :t, None] == jnp.arange(logits.shape[-1])
        return jnp.sum(drafted, axis=1, dtype=jnp.int32)

    def masked(logits: Array) -> Array:
        assert masks is not None
        tokens = jnp.arange(logits.shape[-1])
        forbidden = ((masks.bits[:, tokens // 32] >> (tokens % 32)) & 1) == 0
        first = jnp.where(masks.on[:, None] & forbidden, -jnp.inf, logits[:, 0])
        return logits.at[:, 0].set(first)

    def biased(logits: Array) -> Array:
        # An id beyond the vocabulary is dropped, but a negative one would count from the end.
        ids = jnp.where(settings.bias_ids < 0, logits.shape[-1], settings.bias_ids)
        one = jax.vmap(lambda logits, ids, values: logits.at[:, ids].add(values, mode="drop"))
        return one(logits, ids, settings.bias_values)

    def repeated(logits: Array) -> Array:
        held = jnp.stack([seen + in_output(t) > 0 for t in range(logits.shape[1])], axis=1)
        penalty = settings.repetition_penalty[:, None, None]
        return jnp.where(held, jnp.where(logits > 0, logits / penalty, logits * penalty), logits)

    def counted(logits: Array) -> Array:
        count = jnp.stack([(seen & (PROMPT - 1)) + in_output(t) for t in range(logits.shape[1])], axis=1)
        logits = logits - settings.frequency_penalty[:, None, None] * count.astype(jnp.float32)
        return jnp.where(count > 0, logits - settings.presence_penalty[:, None, None], logits)

    if masks is not None:
        logits = lax.cond(jnp.any(masks.on), masked, lambda logits: logits, logits)
    logits = lax.cond(jnp.any(settings.bias_ids >= 0), biased, lambda logits: logits, logits)
    logits = lax.cond(jnp.any(settings.repetition_penalty != 1), repeated, lambda logits: logits, logits)
    counts = (settings.frequency_penalty != 0) | (settings.presence_penalty != 0)
    return lax.cond(jnp.any(counts), counted, lambda logits: logits, logits)


def candidates(logits: Float[Array, "*N V"]) -> tuple[Float[Array, "*N C"], Int[Array, "*N C"]]:
    """Returns the ``CANDIDATES`` largest logits in falling order, and their tokens; equal ones by token id.

    A sort of the whole vocabulary is slow. A group of 128 tokens whose maximum is not among the ``C`` largest maxima
    holds none of the ``C`` largest logits, so small sorts do: of the maxima, and of what ``C`` groups hold. Under a
    mesh that splits the vocabulary each device does so for its part.
    """
    width = min(CANDIDATES, logits.shape[-1])

    def local(logits: Array) -> tuple[Array, Array]:
        values, ids = _candidates(logits, min(width, logits.shape[-1]))
        if logits.shape[-1] == size:
            return values, ids
        ids += shard_index("vocab") * logits.shape[-1]
        values, ids = (gather_shards(x, "vocab", along=x.ndim - 1) for x in (values, ids))
        values, places = lax.top_k(values, width)
        return values, jnp.take_along_axis(ids, places, axis=-1)

    size, beside = logits.shape[-1], (None,) * (logits.ndim - 2)
    slots = ("batch",) if logits.ndim > 1 else ()
    out_axes = (*slots, *beside, None)
    return over_mesh(local, logits, in_axes=[(*slots, *beside, "vocab")], out_axes=(out_axes, out_axes))


def _candidates(logits: Float[Array, "*N V"], width: int) -> tuple[Float[Array, "*N W"], Int[Array, "*N W"]]:
    """Returns the ``width`` largest logits and their places, equal ones by place."""
    size = logits.shape[-1]
    num_groups = -(-size // _GROUP)
    if num_groups <= width:
        # A sort tells -0 from 0, a maximum need not.
        values, ids = lax.top_k(jnp.where(logits == 0, 0.0, logits), width)
        return values, ids.astype(jnp.int32)
    # The slots come last, as a TPU stores them, and eight rows at a time: its tiles then need no move.
    by_slot = jnp.moveaxis(logits, 0, -2) if logits.ndim > 1 else logits
    rows = jnp.pad(by_slot.reshape(-1, size), ((0, 0), (0, -size % _GROUP)), constant_values=-jnp.inf)
    R, tall = rows.shape[0], math.gcd(rows.shape[0], 8)
    tiles = jnp.swapaxes(rows.reshape(R // tall, tall, num_groups, _GROUP), 1, 2)
    maxima = jnp.swapaxes(jnp.max(tiles, axis=-1), 1, 2).reshape(R, num_groups)
    _, chosen = lax.top_k(jnp.where(maxima == 0, 0.0, maxima), width)
    # In rising order, so that equal logits stand in the order of their ids.
    chosen = jnp.sort(chosen, axis=-1)
    row = jnp.arange(R)[:, None]
    values = tiles.reshape(-1, _GROUP)[(row // tall * num_groups + chosen) * tall + row % tall].reshape(R, -1)
    ids = (chosen[..., None] * _GROUP + jnp.arange(_GROUP)).reshape(R, -1)
    values, places = lax.top_k(jnp.where(values == 0, 0.0, values), width)
    found = values, jnp.take_along_axis(ids, places, axis=-1).astype(jnp.int32)
    if logits.ndim == 1:
        return found[0][0], found[1][0]
    values, ids = (jnp.moveaxis(x.reshape(*by_slot.shape[:-1], width), -2, 0) for x in found)
    return values, ids


def candidate_probabilities(values: Float[Array, "B *T C"], settings: Settings) -> Float[Array, "B *T C"]:
    """Applies temperature, top-k, top-p and min-p to candidates in falling order; 0 where a token is removed.

    A slot without top-k keeps all candidates here. The result is its distribution only if the slot does not need
    all tokens.

    Source: ``TemperatureLogitsWarper``, ``TopKLogitsWarper``, ``TopPLogitsWarper`` and ``MinPLogitsWarper`` of
    transformers, in this order. We differ in ties only: equal logits at an edge are cut by token id.
    """
    temperature, top_k, top_p, min_p = _beside(settings, values.ndim)
    rank = jnp.arange(values.shape[-1])
    kept = (rank < top_k) | (top_k == 0)
    scaled = values / jnp.where(temperature > 0, temperature, 1.0)
    probabilities = jax.nn.softmax(jnp.where(kept, scaled, -jnp.inf), axis=-1)
    before = jnp.cumsum(probabilities, axis=-1) - probabilities
    kept &= (before < top_p) | (top_p == 1)
    kept &= probabilities >= min_p * probabilities[..., :1]
    drawn = _normalised(jnp.where(kept, probabilities, 0.0))
    return jnp.where(temperature > 0, drawn, (rank == 0).astype(jnp.float32))


def all_probabilities(logits: Float[Array, "B *T V"], settings: Settings) -> Float[Array, "B *T V"]:
    """Applies temperature, top-k, top-p and min-p to the whole vocabulary; 0 where a token is removed.

    It is for the slots that need all tokens. Equal probabilities at an edge are all kept.
    """
    temperature, top_k, top_p, min_p = _beside(settings, logits.ndim)

    def most_likely(probabilities: Array) -> Array:
        edge = _smallest(probabilities, lambda above: jnp.sum(above, axis=-1, keepdims=True) < top_k)
        return _normalised(jnp.where(probabilities >= edge, probabilities, 0.0))

    def nucleus(probabilities: Array) -> Array:
        def little(above: Array) -> Array:
            return jnp.sum(jnp.where(above, probabilities, 0.0), axis=-1, keepdims=True) < top_p

        edge = _smallest(probabilities, little)
        return _normalised(jnp.where(probabilities >= edge, probabilities, 0.0))

    probabilities = jax.nn.softmax(logits / jnp.where(temperature > 0, temperature, 1.0), axis=-1)
    # A part that runs for one slot must leave the others as they are.
    for used, part in ((top_k > CANDIDATES, most_likely), (top_p < 1, nucleus)):
        changed = lax.cond(jnp.any(used), part, lambda probabilities: probabilities, probabilities)
        probabilities = jnp.where(used, changed, probabilities)
    largest = jnp.max(probabilities, axis=-1, keepdims=True)
    return _normalised(jnp.where(probabilities >= min_p * largest, probabilities, 0.0))


def log_probabilities(
    logits: Float[Array, "*N V"], tokens: Int[Array, " *N"], num_top: int
) -> tuple[Float[Array, " *N"], Float[Array, "*N L"], Int[Array, "*N L"]]:
    """Returns log-probabilities of the model itself: of ``tokens``, and the ``num_top`` largest with their tokens.

    ``num_top`` is at most ``CANDIDATES``.
    """
    total = jax.nn.logsumexp(logits, axis=-1)
    chosen = jnp.take_along_axis(logits, tokens[..., None], axis=-1)[..., 0]
    values, ids = candidates(logits)
    return chosen - total, values[..., :num_top] - total[..., None], ids[..., :num_top]


def _beside(settings: Settings, ndim: int) -> list[Array]:
    """Gives the settings of truncation the axes of an array whose first axis is that of slots."""
    parts = (settings.temperature, settings.top_k, settings.top_p, settings.min_p)
    return [jnp.expand_dims(part, tuple(range(1, ndim))) for part in parts]


def _normalised(weights: Float[Array, "*N V"]) -> Float[Array, "*N V"]:
    return weights / jnp.sum(weights, axis=-1, keepdims=True)


def _smallest(probabilities: Float[Array, "*N V"], enough: Callable[[Array], Array]) -> Float[Array, "*N 1"]:
    """Returns the smallest edge for which ``enough(probabilities > edge)`` holds; it must hold for the largest one.

    The bit patterns of float32 order non-negative numbers as integers do, so 31 halvings find the edge exactly, at
    the cost of 31 sums instead of a sort of the vocabulary.
    """

    def halve(_: Array | int, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bounds
        middle = low + (high - low) // 2
        good = enough(probabilities > lax.bitcast_convert_type(middle, jnp.float32))
        return jnp.where(good, low, middle + 1), jnp.where(good, middle, high)

    high = lax.bitcast_convert_type(jnp.max(probabilities, axis=-1, keepdims=True), jnp.int32)
    _, bits = lax.fori_loop(0, 31, halve, (jnp.zeros_like(high), high))
    return lax.bitcast_convert_type(bits, jnp.float32)
