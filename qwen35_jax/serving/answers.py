"""One completion as it arrives: its thinking, its answer, its tool calls, and their log-probabilities."""

from collections.abc import Sequence
from typing import Any

from qwen35_jax.inference.requests import Completion, Event, StreamedToken
from qwen35_jax.processing.thinking import TextStream
from qwen35_jax.processing.tokenizer import Tokenizer
from qwen35_jax.processing.tool_calls import ToolCall, ToolCallStream
from qwen35_jax.serving.grammar import Vocabulary

# JSON has no infinity; OpenAI writes this for a token that cannot come.
_IMPOSSIBLE = -9999.0

Part = tuple[str, str | ToolCall]
"""A piece of a message by its field: ``reasoning_content`` and ``content`` have text, ``tool_calls`` a call."""


class Progress:
    """How far a completion is.

    Attributes:
      scored: the tokens so far that have log-probabilities.
      completion: set at the end.
    """

    def __init__(self):
        self.scored: list[StreamedToken] = []
        self.num_tokens = 0
        self.num_thinking_tokens = 0
        self.completion: Completion | None = None

    def count(self, event: Event) -> None:
        """Takes note of an event."""
        self.num_tokens += len(event.tokens)
        self.num_thinking_tokens += sum(token.section == "thinking" for token in event.tokens)
        self.scored += [token for token in event.tokens if token.logprobs is not None]
        self.completion = event.completion
        if self.completion is not None:
            # The last event may tell the broken end of a character as one token more.
            self.num_tokens = len(self.completion.token_ids)
            self.num_thinking_tokens = min(self.num_thinking_tokens, self.num_tokens)


class ChatAnswer(Progress):
    """Sorts the tokens of a completion into the fields of a message.

    Attributes:
      parts: all that has been given out.

    Args:
      calls: finds the tool calls in the answer; None if the request has no tools.
    """

    def __init__(self, calls: ToolCallStream | None = None):
        super().__init__()
        self.parts: list[Part] = []
        self._calls = calls
        # Line breaks at the end of the thinking, which belong to the format if the thinking ends there.
        self._breaks = ""

    def take(self, event: Event) -> list[Part]:
        """Takes an event; returns the parts that are now certain. Neighbours are of different fields, or calls."""
        self.count(event)
        found = [part for token in event.tokens for part in self._sort(token)]
        if event.completion is not None:
            found += [_part(piece) for piece in (self._calls.flush() if self._calls else ())]
        found = _join(found)
        self.parts += found
        return found

    def text(self, field: str) -> str:
        """Returns the text of a field."""
        return "".join(value for name, value in self.parts if name == field and isinstance(value, str))

    @property
    def tool_calls(self) -> list[ToolCall]:
        """The calls so far."""
        return [value for _, value in self.parts if isinstance(value, ToolCall)]

    def _sort(self, token: StreamedToken) -> list[Part]:
        if token.section == "thinking":
            text = self._breaks + token.text
            certain = text.rstrip("\n")
            self._breaks = text[len(certain) :]
            return [("reasoning_content", certain)]
        if self._calls is None:
            return [("content", token.text)]
        return [_part(piece) for piece in self._calls.push(token.id, token.text)]


class TextAnswer(Progress):
    """Joins the tokens of a completion into one text, think marks included."""

    def __init__(self, tokenizer: Tokenizer):
        super().__init__()
        self.text = ""
        # Where the text of each token that has log-probabilities begins.
        self.offsets: list[int] = []
        self._stream = TextStream(tokenizer)
        self._waiting = ""

    def take(self, event: Event) -> str:
        """Takes an event; returns the text that is now certain."""
        self.count(event)
        for token in event.tokens:
            if token.logprobs is not None:
                self.offsets.append(len(self.text) + len(self._waiting))
            self._waiting += self._stream.push(token.id)
        if event.completion is not None:
            new = event.completion.text[len(self.text) :]
        elif not self.text and self._waiting.isspace():
            # The engine tells such tokens at once, and may still find that a stop text begins with them.
            return ""
        else:
            new, self._waiting = self._waiting, ""
        self.text += new
        return new


def _part(piece: str | ToolCall) -> Part:
    return ("content" if isinstance(piece, str) else "tool_calls", piece)


def _join(parts: list[Part]) -> list[Part]:
    joined: list[Part] = []
    for field, value in parts:
        if joined and isinstance(value, str) and isinstance(joined[-1][1], str) and joined[-1][0] == field:
            joined[-1] = field, joined[-1][1] + value
        elif value:
            joined.append((field, value))
    return joined


def chat_logprobs(vocabulary: Vocabulary, tokens: Sequence[StreamedToken]) -> dict[str, Any] | None:
    """Returns log-probabilities in the form of the chat protocol, those of the thinking beside those of the answer.

    ``logprob`` and ``top_logprobs`` are the model's own; ``sampling_logprob`` is of the distribution that the token was
    drawn from. Tokens without text, such as the end of the turn, are left out.
    """
    fields: dict[str, list[dict[str, Any]]] = {"content": [], "reasoning_content": []}
    for token in tokens:
        if token.logprobs is None or not vocabulary.has_text(token.id):
            continue
        entry = _entry(vocabulary, token.id, token.logprobs.model)
        entry["sampling_logprob"] = max(token.logprobs.sampling, _IMPOSSIBLE)
        entry["top_logprobs"] = [_entry(vocabulary, name, value) for name, value in token.logprobs.top]
        fields["reasoning_content" if token.section == "thinking" else "content"].append(entry)
    return fields if any(fields.values()) else None


def text_logprobs(
    vocabulary: Vocabulary, tokens: Sequence[StreamedToken], offsets: Sequence[int]
) -> dict[str, Any] | None:
    """Returns log-probabilities in the form of the completions protocol.

    Args:
      offsets: where the text of each token begins.
    """
    found: dict[str, list] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
    for token, offset in zip(tokens, offsets, strict=True):
        if token.logprobs is None or not vocabulary.has_text(token.id):
            continue
        found["tokens"].append(_spelling(vocabulary, token.id))
        found["token_logprobs"].append(max(token.logprobs.model, _IMPOSSIBLE))
        top = {_spelling(vocabulary, name): max(value, _IMPOSSIBLE) for name, value in token.logprobs.top}
        found["top_logprobs"].append(top)
        found["text_offset"].append(offset)
    return found if found["tokens"] else None


def _entry(vocabulary: Vocabulary, token: int, value: float) -> dict[str, Any]:
    return {
        "token": _spelling(vocabulary, token),
        "bytes": list(vocabulary.bytes_of(token)),
        "logprob": max(value, _IMPOSSIBLE),
    }


def _spelling(vocabulary: Vocabulary, token: int) -> str:
    return vocabulary.bytes_of(token).decode("utf-8", errors="replace")
