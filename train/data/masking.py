"""Turns a row into token ids, and marks which of them are trained.

A conversation is rendered once. The marks around the assistant's turns show where they are in that one text, and a
token is trained if all its characters lie in a trained range. The marks can be trusted because `rows.check_row` refuses
text that spells them.

What is trained of ``<|im_start|>assistant\\n<think>\\nREASONING\\n</think>\\n\\nANSWER<|im_end|>\\n``, a turn:

- not the header, not ``<think>\\n``, and not the newline after ``<|im_end|>``: when the model is used, the generation
  prompt or the next turn supplies them;
- not an empty think block ``<think>\\n\\n</think>\\n\\n``: it is the generation prompt of the non-thinking mode;
- ``REASONING\\n</think>\\n\\n`` if thinking is trained;
- ``ANSWER<|im_end|>``, tool calls included, always.

Turns before the user's last question are rendered without their reasoning, as they are when the model is used.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Int32

from qwen35_jax.processing import ChatTemplate, Tokenizer
from qwen35_jax.processing.tokenizer import END_OF_TEXT

_TURN = re.compile(r"<\|im_start\|>assistant\n(.*?)<\|im_end\|>", re.DOTALL)
_EMPTY_THINK = "<think>\n\n</think>\n\n"
_THINK_START = "<think>\n"
_THINK_END = re.compile(r"</think>\n*")


@dataclass(frozen=True)
class Example:
    """One document: ``trained[t]`` says that token ``t`` itself is a target of the loss."""

    input_ids: Int32[np.ndarray, " T"]
    trained: Bool[np.ndarray, " T"]
    signals: Mapping[str, np.ndarray] = field(default_factory=dict)
    """Further values for each token, by the name of their batch field; tokens are along the first axis."""

    def __len__(self) -> int:
        return len(self.input_ids)

    def values(self) -> dict[str, np.ndarray]:
        """Returns everything that an example knows about its tokens, by the name of the batch field."""
        return {"input_ids": self.input_ids, "trained": self.trained, **self.signals}


class Rendered(NamedTuple):
    """A conversation as text, and the ranges of its characters ``[start, end)`` that are trained."""

    text: str
    trained: list[tuple[int, int]]


def render_conversation(
    template: ChatTemplate,
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Mapping[str, Any]] | None = None,
    *,
    train_on: Literal["all", "last"] = "all",
    train_on_thinking: bool = True,
) -> Rendered:
    """Renders a conversation and finds what is trained (see the module).

    Raises:
      ChatTemplateError: the template refuses the conversation.
      ValueError: the template does not mark the turns as Qwen3.5's does.
    """
    text = template.render(messages, tools=tools)
    spans = trained_spans(text, train_on_thinking=train_on_thinking)
    num_turns = sum(message["role"] == "assistant" for message in messages)
    if len(spans) != num_turns:
        raise ValueError(
            f"the chat template renders {num_turns} assistant turns with {len(spans)} headers "
            "'<|im_start|>assistant'; training needs a template that marks turns as Qwen3.5's does."
        )
    return Rendered(text, spans[-1:] if train_on == "last" else spans)


def encode_conversations(tokenizer: Tokenizer, conversations: Sequence[Rendered]) -> list[Example]:
    """Tokenises rendered conversations; several at a time take less time than one by one."""
    texts, spans = [text for text, _ in conversations], [trained for _, trained in conversations]
    examples = []
    for ids, ranges in tokenizer.encode_with_ranges(texts, spans):
        trained = np.zeros(len(ids), bool)
        for start, stop in ranges:
            trained[start:stop] = True
        examples.append(Example(np.asarray(ids, np.int32), trained))
    return examples


def trained_spans(text: str, *, train_on_thinking: bool) -> list[tuple[int, int]]:
    """Returns, for each assistant turn of a rendered conversation, the range of characters that is trained."""
    spans = []
    for turn in _TURN.finditer(text):
        body, start = turn[1], turn.start(1)
        if body.startswith(_EMPTY_THINK):
            start += len(_EMPTY_THINK)
        elif body.startswith(_THINK_START) and train_on_thinking:
            start += len(_THINK_START)
        elif body.startswith(_THINK_START):
            closing = _THINK_END.search(body)
            start += closing.end() if closing else len(body)
        spans.append((start, turn.end()))
    return spans


def encode_text(tokenizer: Tokenizer, text: str, *, max_length: int) -> list[Example]:
    """Tokenises plain text, appends ``<|endoftext|>``, and cuts it into consecutive pieces of ``max_length`` tokens.

    Every token is trained except the first of each piece, which nothing precedes.
    """
    ids = np.asarray([*tokenizer.encode(text), tokenizer.token_id(END_OF_TEXT)], np.int32)
    pieces = [ids[start : start + max_length] for start in range(0, len(ids), max_length)]
    return [Example(piece, np.arange(len(piece)) > 0) for piece in pieces]
