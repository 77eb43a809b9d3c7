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

Qwen3.5's template leaves out the reasoning of the turns before the user's last question. What that means depends on
which turns are trained:

- ``all``: one document for a conversation. Earlier turns are trained without reasoning, which is not how the model
  wrote them: it wrote them after a prompt that opens a think block.
- ``last``: one document, of which the last turn is trained. The model sees it as when it is used.
- ``each``: every turn is trained as it is when the model is used: behind the history as the template renders it then,
  and with its own reasoning. Turns that the template renders alike in one text share a document, such as those between
  which only tools were called. So a conversation becomes about one document for each question of the user.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Int32

from qwen35_jax.processing import ChatTemplate, Tokenizer
from qwen35_jax.processing.tokenizer import END_OF_TEXT
from train.data.pictures import Picture
from train.data.rows import Conversation

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
    pictures: tuple[Picture, ...] = ()
    """Its images and videos in reading order."""

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def num_patches(self) -> int:
        """Patches of all its images and videos."""
        return sum(picture.num_patches for picture in self.pictures)

    def values(self) -> dict[str, np.ndarray]:
        """Returns everything that an example knows about its tokens, by the name of the batch field."""
        return {"input_ids": self.input_ids, "trained": self.trained, **self.signals}


class Rendered(NamedTuple):
    """A conversation as text, and the ranges of its characters ``[start, end)`` that are trained."""

    text: str
    trained: list[tuple[int, int]]
    pictures: tuple[Picture, ...] = ()
    """What its places for images and videos show, in their order."""


def render_conversation(
    template: ChatTemplate,
    conversation: Conversation,
    *,
    train_on: Literal["all", "last", "each"] = "all",
    train_on_thinking: bool = True,
) -> list[Rendered]:
    """Renders the documents of a conversation and finds what is trained (see the module).

    Turns that the conversation marks as untrained stay in the text. A document of which nothing trains is left out.

    Raises:
      ChatTemplateError: the template refuses the conversation.
      ValueError: the template does not mark the turns as Qwen3.5's does.
    """
    messages, tools, may_train, _ = conversation
    turns = [place for place, message in enumerate(messages) if message["role"] == "assistant"]
    if train_on == "each":
        documents = _documents_of_turns(template, conversation, turns)
    else:
        chosen = [turn for turn in (turns[-1:] if train_on == "last" else turns) if may_train[turn]]
        documents = [_Document(template.render(messages, tools=tools), len(messages), chosen)]
    rendered = []
    for text, end, trained in documents:
        spans, shown = trained_spans(text, train_on_thinking=train_on_thinking), [turn for turn in turns if turn < end]
        if len(spans) != len(shown):
            raise ValueError(
                f"the chat template renders {len(shown)} assistant turns with {len(spans)} headers "
                "'<|im_start|>assistant'; training needs a template that marks turns as Qwen3.5's does."
            )
        if kept := [span for span, turn in zip(spans, shown, strict=True) if turn in trained]:
            rendered.append(Rendered(text, kept))
    return rendered


class _Document(NamedTuple):
    text: str
    end: int
    """How many messages the text holds."""
    trained: list[int]
    """The places of the messages that are trained."""


def _documents_of_turns(template: ChatTemplate, conversation: Conversation, turns: Sequence[int]) -> list[_Document]:
    """Renders the conversation up to each turn; texts that begin another one are contained in it."""
    documents: list[_Document] = []
    for turn in turns:
        if conversation.trained[turn]:
            text = template.render(conversation.messages[: turn + 1], tools=conversation.tools)
            is_longer = bool(documents) and text.startswith(documents[-1].text)
            before = documents.pop().trained if is_longer else []
            documents.append(_Document(text, turn + 1, [*before, turn]))
    return documents


def encode_conversations(tokenizer: Tokenizer, conversations: Sequence[Rendered]) -> list[Example]:
    """Tokenises rendered conversations; several at a time take less time than one by one."""
    texts, spans = [each.text for each in conversations], [each.trained for each in conversations]
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
