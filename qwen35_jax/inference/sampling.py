"""How a request is written: its sampling settings, what ends it, and what is told of it.

The order is that of transformers' logits processors and of vLLM: bias and penalties, temperature, top-k, then top-p on
the distribution that top-k left, then min-p.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Literal

MAX_BIAS = 300
MAX_STOP_TOKENS = 14
MAX_LOGPROBS = 20

BudgetClose = Literal["hard", "sentence"]
# The sentence by which the model itself is used to ending a thought early.
# Source: the report of Qwen3, section 4.3 (arXiv:2505.09388).
EARLY_STOP = (
    "Considering the limited time by the user, I have to give the solution based on the thinking directly now.\n"
    "</think>\n\n"
)

_RANGES = {
    "temperature": (0.0, 1e4, "0 (greedy) or a number from 0.0001 to 10,000"),
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
            # Logits divided by a smaller temperature are infinite in float32.
            tiny = name == "temperature" and 0 < number < 1e-4
            if tiny or not (math.isfinite(number) and low <= number <= high):
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
            raise ValueError(f"thinking_budget={self.thinking_budget}; give a number of tokens from 0 on.")
        if self.budget_close not in ("hard", "sentence"):
            raise ValueError(f"budget_close={self.budget_close!r}; give hard or sentence.")
        if self.logprobs is not None and not 0 <= self.logprobs <= MAX_LOGPROBS:
            raise ValueError(f"logprobs={self.logprobs}; give a number of tokens from 0 to {MAX_LOGPROBS}.")

    @property
    def greedy(self) -> bool:
        """Whether the most likely token is taken, without randomness."""
        return self.temperature == 0
