"""Answers that fit a JSON schema: which tokens may come next, by llguidance."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from llguidance import LLMatcher, LLTokenizer

from qwen35_jax.processing.thinking import CLOSE, opens_thinking
from qwen35_jax.processing.tokenizer import Tokenizer

# Without a limit a model can write white space for ever, which every schema allows.
_WHITE_SPACE = r"[ \n\t]{1,64}"


class Vocabulary:
    """The bytes of every token, as grammars and log-probabilities need them.

    It takes some seconds to make for a vocabulary of 250,000 tokens.

    Args:
      size: the vocabulary of the model, which may be padded beyond the tokenizer's.
    """

    def __init__(self, tokenizer: Tokenizer, size: int):
        self.tokenizer = tokenizer
        self.size = size
        self._tokens = LLTokenizer(tokenizer.backend.to_str(), n_vocab=size, eos_token=list(tokenizer.eos_token_ids))

    def bytes_of(self, token: int) -> bytes:
        """Returns the bytes that a token stands for, which may be a part of a character."""
        return self._tokens.decode_bytes([token])

    def has_text(self, token: int) -> bool:
        """Whether a token is more than a mark such as the end of a turn, which no text shows."""
        return bool(self.tokenizer.decode([token]))

    def compile(self, schema: dict[str, Any]) -> LLMatcher:
        """Makes the matcher of a JSON schema; it may take a second, without holding up other threads.

        Raises:
          ValueError: the schema is wrong, nothing can fit it, or it uses what llguidance does not support.
        """
        try:
            grammar = LLMatcher.grammar_from_json_schema(
                json.dumps(schema), defaults={"whitespace_pattern": _WHITE_SPACE}
            )
        except ValueError as err:
            raise _unusable(str(err)) from err
        matcher = LLMatcher(self._tokens, grammar, log_level=0)
        if matcher.is_error():
            raise _unusable(matcher.get_error())
        return matcher


def _unusable(reason: str) -> ValueError:
    reason = " ".join(reason.split()).rstrip(".")
    return ValueError(f"the JSON schema cannot be used: {reason[:300]}.")


class JsonGrammar:
    """Keeps an answer to a JSON schema. What the model thinks before it is free, but cannot end the completion.

    Args:
      matcher: a fresh one of ``Vocabulary.compile``; it is copied.
      prompt: if it opens a think block, the schema counts from the token ``</think>`` on.
    """

    def __init__(self, vocabulary: Vocabulary, matcher: LLMatcher, prompt: Sequence[int]):
        tokenizer = vocabulary.tokenizer
        self._matcher = matcher.deep_copy()
        self._words = -(-vocabulary.size // 32)
        self._close = tokenizer.token_id(CLOSE)
        self._thinking = opens_thinking(tokenizer, prompt)
        # The format has an empty line between the think block and the answer: its tokens that may still come.
        self._gap = tokenizer.encode("\n\n") if self._thinking else []
        self._ends = tokenizer.eos_token_ids

    @property
    def finished(self) -> bool:
        """Whether the JSON is complete, so that nothing can follow."""
        return not self._thinking and self._matcher.is_stopped()

    def mask(self) -> np.ndarray:
        """Returns one bit a token, int32 [ceil(V / 32)], lowest bit first: 1 where the token may come next."""
        if self._thinking:
            mask = np.full(self._words, -1, np.int32)
            for token in self._ends:
                _set_bit(mask, token, allowed=False)
            return mask
        mask = np.frombuffer(self._matcher.compute_bitmask(), np.int32)[: self._words].copy()
        if self._gap:
            _set_bit(mask, self._gap[0], allowed=True)
        return mask

    def accept(self, token_id: int) -> None:
        """Takes note of the token that was written."""
        if self._thinking:
            self._thinking = token_id != self._close
        elif self._gap and token_id == self._gap[0]:
            self._gap = self._gap[1:]
        else:
            self._gap = []
            self._matcher.consume_token(token_id)


def _set_bit(mask: np.ndarray, token: int, *, allowed: bool) -> None:
    bits = mask.view(np.uint32)
    bit = np.uint32(1 << token % 32)
    bits[token // 32] = bits[token // 32] | bit if allowed else bits[token // 32] & ~bit
