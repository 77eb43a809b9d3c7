"""What goes into an engine and what comes out of it: requests' events, completions, and who may steer the tokens."""

import dataclasses
import hashlib
from collections.abc import Sequence
from typing import Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np

from qwen35_jax.processing.thinking import Section, opens_thinking, split_tokens
from qwen35_jax.processing.tokenizer import Tokenizer

FinishReason = Literal["stop", "length", "budget", "loop", "aborted"]


@dataclasses.dataclass(frozen=True)
class TokenLogprobs:
    """Log-probabilities of one token that was written.

    Attributes:
      model: by the model itself, before any setting.
      sampling: by the distribution that the token was drawn from.
      top: the most likely tokens of the model itself with their log-probabilities, most likely first.
    """

    model: float
    sampling: float
    top: tuple[tuple[int, float], ...] = ()


class TokenScores(NamedTuple):
    """What a model says of the tokens of a given text.

    Attributes:
      log_probabilities: of each token, float32.
      greedy: whether greedy decoding would take it there.
    """

    log_probabilities: np.ndarray
    greedy: np.ndarray


@dataclasses.dataclass(frozen=True)
class StreamedToken:
    """One token of a request that is told as it is written.

    Attributes:
      section: where its text belongs.
      text: the text that this token made certain; it may be empty. A stop string is never part of it.
    """

    id: int
    section: Section
    text: str
    logprobs: TokenLogprobs | None = None


@dataclasses.dataclass(frozen=True)
class Completion:
    """What the model wrote after one prompt.

    Attributes:
      token_ids: the generated tokens, with the end token if there was one.
      thinking: the text of the think block; None if the completion does not think.
      answer: the text after the think block; empty if the block never closed.
      text: all of it, think marks included, without special tokens.
      finish_reason: ``"stop"`` at an end token, a stop string or the end of a grammar; ``"length"`` at the limit of new
        tokens; ``"budget"`` if the thinking budget closed the think block and the answer then ended by itself;
        ``"loop"`` if the text had come to repeat itself; ``"aborted"`` if the request was taken back.
      multiple_closes: how many ``</think>`` the answer holds (``processing.thinking`` has the rule).
      seed: the request's own.
      logprobs: one entry a token, if they were asked for.
      closed_by_budget: whether the thinking budget closed the think block.
    """

    token_ids: list[int]
    thinking: str | None
    answer: str
    text: str
    finish_reason: FinishReason
    multiple_closes: int = 0
    seed: int = 0
    logprobs: list[TokenLogprobs] | None = None
    closed_by_budget: bool = False

    @classmethod
    def from_tokens(
        cls, tokenizer: Tokenizer, prompt_ids: Sequence[int], token_ids: list[int], finish_reason: FinishReason
    ) -> "Completion":
        """Makes the completion of a prompt, which says whether the completion begins inside a think block."""
        split = split_tokens(tokenizer, token_ids, opened=opens_thinking(tokenizer, prompt_ids))
        text = tokenizer.decode(token_ids, skip_special_tokens=True)
        return cls(token_ids, split.thinking, split.answer, text, finish_reason, split.multiple_closes)


@dataclasses.dataclass(frozen=True)
class Event:
    """News of one request.

    Attributes:
      id: what ``submit`` returned.
      tokens: new tokens, if the request is streamed.
      completion: set when the request is finished.
      scores: set when its text is scored.
    """

    id: int
    tokens: tuple[StreamedToken, ...] = ()
    completion: Completion | None = None
    scores: TokenScores | None = None

    @property
    def is_last(self) -> bool:
        """Whether no event of the request will follow."""
        return self.completion is not None or self.scores is not None


@runtime_checkable
class Grammar(Protocol):
    """Says which tokens may come next. A request with a grammar is written one token a call."""

    @property
    def finished(self) -> bool:
        """Whether the text is complete; then the completion ends."""
        ...

    def mask(self) -> np.ndarray:
        """Returns one bit a token, int32 [ceil(V / 32)], lowest bit first: 1 where the token may come next."""
        ...

    def accept(self, token_id: int) -> None:
        """Takes note of the token that was written."""
        ...


def seed_of(seed: int, name: int | str) -> int:
    """Derives the seed of one prompt, by its number or its name, from one seed for all; a function of both alone."""
    digest = hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=8).digest()
    # JSON's readers are exact up to 53 bits.
    return int.from_bytes(digest, "big") >> 11
