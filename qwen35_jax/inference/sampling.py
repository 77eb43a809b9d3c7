"""How the next token is chosen from logits.

Letters: ``B`` sequences, ``V`` vocabulary.

The order is that of transformers' logits processors and of vLLM: presence penalty, temperature,
top-k, then top-p on the distribution that top-k left.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Key

MAX_BIAS = 300
MAX_STOP_TOKENS = 14
MAX_LOGPROBS = 20

BudgetClose = Literal["hard", "sentence"]

_RANGES = {
    "temperature": (0.0, math.inf, "0 (greedy) or a positive number"),
    "top_k": (0, 2**31 - 1, "0 (all tokens) or a positive number of tokens"),
    "top_p": (1e-6, 1.0, "a probability above 0 and at most 1 (1 keeps all tokens)"),
    "min_p": (0.0, 1.0, "a share from 0 (keeps all tokens) to 1"),
    "presence_penalty": (-2.0, 2.0, "a number from -2 to 2"),
    "frequency_penalty": (-2.0, 2.0, "a number from -2 to 2"),
    "repetition_penalty": (1e-2, 1e2, "a number from 0.01 to 100 (1 changes nothing)"),
}


@dataclasses.dataclass(frozen=True)
class SamplingParams:
    """How one request is written; the defaults are greedy decoding.

    Attributes:
      temperature: divides the logits; 0 takes the most likely token and ignores top_k, top_p and min_p.
      top_k: keeps the ``top_k`` most likely tokens; 0 keeps all.
      top_p: keeps the smallest set of most likely tokens whose probability reaches ``top_p``, after top-k.
      min_p: keeps the tokens that are at least this share as likely as the most likely one, after top-p.
      presence_penalty: subtracted once from the logits of every token that this completion holds already, also if
        it holds the token several times (the definition of OpenAI and vLLM; prompt tokens do not count).
      frequency_penalty: subtracted from a token's logit as often as the completion holds it.
      repetition_penalty: divides positive and multiplies negative logits of the tokens in prompt or completion.
      logit_bias: what is added to the logits of some tokens, by id.
      stop: texts that end the answer and are left out of it; they are not looked for in the think block.
      stop_token_ids: tokens that end the completion besides the tokenizer's end tokens.
      ignore_end: write on after the tokenizer's end tokens, to the limit.
      thinking_budget: most tokens of the think block before it is closed; None for no budget.
      budget_close: close it by ``</think>`` alone, or by the model's own sentence that ends a thought early.
      detect_loops: end a completion whose last 64 tokens stand four times in a row at its end.
      logprobs: give log-probabilities of each token, and of so many most likely ones; None gives none.

    Raises:
      ValueError: if a value is outside its range.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    presence_penalty: float = 0.0
    min_p: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: Mapping[int, float] | tuple[tuple[int, float], ...] = ()
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_end: bool = False
    thinking_budget: int | None = None
    budget_close: BudgetClose = "hard"
    detect_loops: bool = False
    logprobs: int | None = None

    def __post_init__(self) -> None:
        for name, (low, high, allowed) in _RANGES.items():
            number = getattr(self, name)
            if not (math.isfinite(number) and low <= number <= high):
                raise ValueError(f"{name}={number}; give {allowed}.")
        # Kept as a sorted tuple of pairs, so that settings can be compared and hashed.
        object.__setattr__(self, "logit_bias", tuple(sorted(dict(self.logit_bias).items())))
        for name in ("stop", "stop_token_ids"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        self._check_bias()
        self._check_ends()

    def _check_bias(self) -> None:
        if len(self.logit_bias) > MAX_BIAS:
            raise ValueError(f"logit_bias names {len(self.logit_bias)} tokens; name at most {MAX_BIAS}.")
        for token_id, value in dict(self.logit_bias).items():
            if token_id < 0 or not -100 <= value <= 100:
                raise ValueError(f"logit_bias={{{token_id}: {value}}}; give a token id and a number from -100 to 100.")

    def _check_ends(self) -> None:
        if not all(self.stop):
            raise ValueError("stop holds an empty text, which would end every answer at once; leave it out.")
        if len(self.stop_token_ids) > MAX_STOP_TOKENS:
            raise ValueError(f"stop_token_ids names {len(self.stop_token_ids)} tokens; name at most {MAX_STOP_TOKENS}.")
        if self.thinking_budget is not None and self.thinking_budget < 0:
            raise ValueError(f"thinking_budget={self.thinking_budget}; give a number of tokens from 0, or None.")
        if self.budget_close not in ("hard", "sentence"):
            raise ValueError(f"budget_close={self.budget_close!r}; give hard or sentence.")
        if self.logprobs is not None and not 0 <= self.logprobs <= MAX_LOGPROBS:
            raise ValueError(f"logprobs={self.logprobs}; give a number of tokens from 0 to {MAX_LOGPROBS}, or None.")

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
