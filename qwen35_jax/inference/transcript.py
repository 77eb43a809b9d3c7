"""What one request has written so far, as the host sees it: its text, stop strings, and repetition."""

import dataclasses
from collections.abc import Sequence

from qwen35_jax.inference.requests import Completion, FinishReason, StreamedToken, TokenLogprobs
from qwen35_jax.inference.sampling import SamplingParams
from qwen35_jax.processing.thinking import Section, ThinkingStream, opens_thinking
from qwen35_jax.processing.tokenizer import Tokenizer

# A completion loops if its last tokens, so many, stand so often in a row at its end.
_LOOP_TOKENS, _LOOP_TIMES = 64, 4


class Transcript:
    """Follows a request token by token.

    Args:
      stream: whether tokens are to be told as they are written.

    Attributes:
      tokens: what is written so far.
      tells_logprobs: whether each token comes with log-probabilities.
    """

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int], sampling: SamplingParams, *, stream: bool):
        self.tokens: list[int] = []
        self.tells_logprobs = sampling.logprobs is not None
        self._logprobs: list[TokenLogprobs] = []
        self._num_top = sampling.logprobs or 0
        self._tokenizer, self._prompt, self._streams = tokenizer, prompt, stream
        self._stop, self._detect_loops = sampling.stop, sampling.detect_loops
        follows = stream or bool(sampling.stop)
        opened = follows and opens_thinking(tokenizer, prompt)
        self._text = ThinkingStream(tokenizer, opened=opened) if follows else None
        # Tokens whose text may be the beginning of a stop string, and told ones that nobody has fetched.
        self._held: list[StreamedToken] = []
        self._told: list[StreamedToken] = []
        self._cut_characters = 0

    def push(self, token: int, logprobs: TokenLogprobs | None) -> FinishReason | None:
        """Takes the next token; returns why the completion ends with it, if the text says so."""
        self.tokens.append(token)
        if logprobs is not None:
            logprobs = dataclasses.replace(logprobs, top=logprobs.top[: self._num_top])
            self._logprobs.append(logprobs)
        if self._text is not None:
            section, text = self._text.push(token)
            self._held.append(StreamedToken(token, section, text, logprobs))
            if self._settle(section):
                return "stop"
        return "loop" if self._detect_loops and _loops(self.tokens) else None

    def fetch(self) -> tuple[StreamedToken, ...]:
        """Returns the tokens that have become certain since the last time."""
        told, self._told = self._told, []
        return tuple(told) if self._streams else ()

    def finish(self, reason: FinishReason, *, seed: int, closed_by_budget: bool) -> Completion:
        """Ends the text and returns the completion; ``fetch`` then gives the last tokens."""
        if self._text is not None and not self._cut_characters:
            section, rest = self._text.flush()
            if self._held and rest:
                last = self._held[-1]
                self._held[-1] = dataclasses.replace(last, section=section, text=last.text + rest)
                # The rest of a broken character may complete a stop string.
                if self._settle(section) and reason == "length":
                    reason = "stop"
            elif rest:
                self._told.append(StreamedToken(self.tokens[-1], section, rest, None))
            self._told, self._held = self._told + self._held, []
        completion = Completion.from_tokens(self._tokenizer, self._prompt, self.tokens, reason)
        if self._text is not None and self._cut_characters:
            answer = self._text.split.answer[: -self._cut_characters]
            removed = len(completion.answer) - len(answer)
            completion = dataclasses.replace(completion, answer=answer, text=completion.text[:-removed])
        logprobs = self._logprobs if self.tells_logprobs else None
        return dataclasses.replace(completion, seed=seed, closed_by_budget=closed_by_budget, logprobs=logprobs)

    def _settle(self, section: Section) -> bool:
        """Tells the held tokens that can be no part of a stop string; cuts one that is complete and returns True."""
        if section == "thinking" or not self._stop:
            self._told, self._held = self._told + self._held, []
            return False
        while self._held and self._held[0].section == "thinking":
            self._told.append(self._held.pop(0))
        text = "".join(token.text for token in self._held)
        places = [place for place in (text.find(stop) for stop in self._stop) if place >= 0]
        if places:
            self._cut(min(places), len(text))
            return True
        certain = len(text) - max(_overlap(text, stop) for stop in self._stop)
        while self._held and len(self._held[0].text) <= certain:
            certain -= len(self._held[0].text)
            self._told.append(self._held.pop(0))
        return False

    def _cut(self, place: int, length: int) -> None:
        """Tells the held tokens without what stands at ``place`` and after it."""
        self._cut_characters = length - place
        for token in self._held:
            self._told.append(dataclasses.replace(token, text=token.text[:place]))
            place = max(place - len(token.text), 0)
        self._held = []


def _overlap(text: str, stop: str) -> int:
    """Returns how many characters at the end of a text are the beginning of a stop string."""
    return next((size for size in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:size])), 0)


def _loops(tokens: Sequence[int]) -> bool:
    if len(tokens) < _LOOP_TOKENS * _LOOP_TIMES or tokens[-1] != tokens[-1 - _LOOP_TOKENS]:
        return False
    last = tokens[-_LOOP_TOKENS:]
    starts = (len(tokens) - times * _LOOP_TOKENS for times in range(2, _LOOP_TIMES + 1))
    return all(tokens[start : start + _LOOP_TOKENS] == last for start in starts)
