"""How the next token is chosen from logits.

Letters: ``B`` sequences, ``V`` vocabulary.

The order is that of transformers' logits processors and of vLLM: presence penalty, temperature,
top-k, then top-p on the distribution that top-k left.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Key


@dataclasses.dataclass(frozen=True)
class SamplingParams:
    """The settings of one generation; the defaults are greedy decoding.

    Attributes:
      temperature: divides the logits; 0 takes the most likely token and ignores top_k and top_p.
      top_k: keeps the ``top_k`` most likely tokens; 0 keeps all.
      top_p: keeps the smallest set of most likely tokens whose probability reaches ``top_p``.
      presence_penalty: subtracted once from the logits of every token that this completion holds already, also if
        it holds the token several times (the definition of OpenAI and vLLM; prompt tokens do not count).

    Raises:
      ValueError: if a value is outside its range.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    presence_penalty: float = 0.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise ValueError(f"temperature={self.temperature}; give 0 (greedy) or a positive number.")
        if self.top_k < 0:
            raise ValueError(f"top_k={self.top_k}; give 0 (all tokens) or a positive number of tokens.")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p={self.top_p}; give a probability above 0 and at most 1 (1 keeps all tokens).")
        if not -2 <= self.presence_penalty <= 2:
            raise ValueError(f"presence_penalty={self.presence_penalty}; give a number from -2 to 2.")

    @property
    def greedy(self) -> bool:
        """Whether the most likely token is taken, without randomness."""
        return self.temperature == 0


def sequence_keys(key: Key[Array, ""], numbers: Int[Array, " B"], step: Int[Array, ""] | int) -> Key[Array, " B"]:
    """Derives one key a sequence from (seed, number, step), so that a sequence samples alike in every batch."""
    return jax.vmap(lambda number: jax.random.fold_in(jax.random.fold_in(key, number), step))(numbers)


def penalize_presence(
    logits: Float[Array, "B V"], generated: Bool[Array, "B V"], presence_penalty: float
) -> Float[Array, "B V"]:
    """Subtracts ``presence_penalty`` from the logits of the tokens marked in ``generated``."""
    return jnp.where(generated, logits - presence_penalty, logits)


def truncate(
    logits: Float[Array, "B V"], sampling: SamplingParams
) -> tuple[Float[Array, "B C"], Int[Array, "B C"] | None]:
    """Applies temperature, top-k and top-p.

    With top-k it returns only ``top_k`` candidates, so that later steps make no pass over the vocabulary. Without
    top-k, top-p finds its threshold by bisection, not by a sort of the vocabulary.

    Args:
      logits: float32, any scale.
      sampling: settings with a temperature above 0.

    Returns:
      The candidates' logits, removed ones at ``-inf`` (``C = top_k``, or ``V`` without top-k); their
      token ids, or None if candidate ``c`` is token ``c``.

    Source: ``TemperatureLogitsWarper``, ``TopKLogitsWarper`` and ``TopPLogitsWarper`` of transformers.
    We differ in ties only: equal logits at the edge of top-k are cut by token id, and equal ones at
    the edge of top-p without top-k are all kept.
    """
    scaled = logits / sampling.temperature
    if not sampling.top_k or sampling.top_k >= logits.shape[-1]:
        if sampling.top_p < 1:
            scaled = jnp.where(_in_nucleus(jax.nn.softmax(scaled), sampling.top_p), scaled, -jnp.inf)
        return scaled, None
    values, token_ids = lax.top_k(scaled, sampling.top_k)
    if sampling.top_p < 1:
        probabilities = jax.nn.softmax(values)
        before = jnp.cumsum(probabilities, axis=-1) - probabilities
        values = jnp.where(before < sampling.top_p, values, -jnp.inf)
    return values, token_ids


def _in_nucleus(probabilities: Float[Array, "B V"], top_p: float) -> Bool[Array, "B V"]:
    """Marks each token for which all strictly more likely tokens together have less than ``top_p``.

    "The mass above x is less than top_p" is false for small x and true for large x, so the smallest
    such x is found by bisection over the bit patterns of float32, which order non-negative floats as
    integers. 31 halvings find it exactly, at the cost of 31 sums instead of a sort of the vocabulary.
    """

    def mass_above(bits: Int[Array, " B"]) -> Float[Array, " B"]:
        threshold = lax.bitcast_convert_type(bits, jnp.float32)[:, None]
        return jnp.sum(jnp.where(probabilities > threshold, probabilities, 0.0), axis=-1)

    def halve(_: Int[Array, ""] | int, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bounds
        middle = low + (high - low) // 2
        enough = mass_above(middle) < top_p
        return jnp.where(enough, low, middle + 1), jnp.where(enough, middle, high)

    low = jnp.zeros(probabilities.shape[:1], jnp.int32)
    high = lax.bitcast_convert_type(jnp.max(probabilities, axis=-1), jnp.int32)
    _, bits = lax.fori_loop(0, 31, halve, (low, high))
    return probabilities >= lax.bitcast_convert_type(bits, jnp.float32)[:, None]


def sample(logits: Float[Array, "B V"], keys: Key[Array, " B"], sampling: SamplingParams) -> Int[Array, " B"]:
    """Draws one token a sequence, each with its own key; greedy settings take the first maximum.

    The presence penalty is applied before, by ``penalize_presence``.
    """
    if sampling.greedy:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    candidates, token_ids = truncate(logits, sampling)
    choice = jax.vmap(jax.random.categorical)(keys, candidates).astype(jnp.int32)
    if token_ids is None:
        return choice
    return jnp.take_along_axis(token_ids, choice[:, None], axis=-1)[:, 0].astype(jnp.int32)
