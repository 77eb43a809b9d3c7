"""The one rule for where a model's thinking ends and its answer begins.

- A completion thinks if the prompt has opened a think block, or if the completion begins with the token ``<think>``
  after nothing but white space.
- The thinking ends at the first token ``</think>`` after that. Without one, all of it is thinking and the answer is
  empty: an unfinished thought is never an answer.
- Every later mark, ``<think>`` or ``</think>``, is part of the answer's text. The ``</think>`` among them are counted.
- A completion that does not think is all answer, marks included.
- The white space before an opening mark and the line breaks next to the marks belong to the format and are left out.

The rule has three forms with equal results: ``split_tokens`` for the tokens of a completion, ``ThinkingStream`` for
tokens that still arrive, and ``split_text`` for stored text, in which a mark is known by its spelling alone.
"""

import dataclasses
from collections.abc import Sequence
from typing import Literal

from qwen35_jax.processing.tokenizer import Tokenizer

OPEN, CLOSE = "<think>", "</think>"

Section = Literal["thinking", "answer"]

_BROKEN = "\N{REPLACEMENT CHARACTER}"
_MOST_WAITING = 16


@dataclasses.dataclass(frozen=True)
class Split:
    """A completion in two parts.

    Attributes:
      thinking: the text of the think block, finished or not; None if the completion does not think.
      answer: the text after the think block.
      multiple_closes: how many ``</think>`` the answer holds. A model that follows the format writes none.
    """

    thinking: str | None
    answer: str
    multiple_closes: int


def opens_thinking(tokenizer: Tokenizer, prompt_ids: Sequence[int]) -> bool:
    """Returns whether a prompt leaves a think block open, that is, whether its last think mark is ``<think>``."""
    open_id, close_id = tokenizer.token_id(OPEN), tokenizer.token_id(CLOSE)
    return next((token for token in reversed(prompt_ids) if token in (open_id, close_id)), None) == open_id


def split_tokens(tokenizer: Tokenizer, token_ids: Sequence[int], *, opened: bool) -> Split:
    """Splits the tokens of a completion.

    Args:
      token_ids: what the model wrote. Special tokens, such as the end of the turn, give no text.
      opened: whether the prompt has opened the think block (``opens_thinking``).
    """
    ids = list(token_ids)
    open_id, close_id = tokenizer.token_id(OPEN), tokenizer.token_id(CLOSE)
    begin = 0
    if open_id in ids and not tokenizer.decode(ids[: ids.index(open_id)]).strip():
        begin, opened = ids.index(open_id) + 1, True
    if not opened:
        return Split(None, tokenizer.decode(ids), ids.count(close_id))
    end = ids.index(close_id, begin) if close_id in ids[begin:] else len(ids)
    answer = ids[end + 1 :]
    thinking = tokenizer.decode(ids[begin:end]).strip("\n")
    return Split(thinking, tokenizer.decode(answer).lstrip("\n"), answer.count(close_id))


def split_text(text: str, *, opened: bool | None = None) -> Split:
    """Splits stored text.

    Args:
      text: what the model wrote, without special tokens such as the end of the turn.
      opened: whether the prompt had opened the think block. None means unknown: then a ``</think>`` in the
        text shows that the block was opened.
    """
    body = text.lstrip()
    if body.startswith(OPEN):
        body, opened = body.removeprefix(OPEN), True
    else:
        body, opened = text, CLOSE in text if opened is None else opened
    if not opened:
        return Split(None, text, text.count(CLOSE))
    thinking, _, answer = body.partition(CLOSE)
    return Split(thinking.strip("\n"), answer.lstrip("\n"), answer.count(CLOSE))


class ThinkingStream:
    """Splits a completion while its tokens arrive.

    Text is given out once no later token can change it: a token may end inside a character, and white space at the
    start may come before a ``<think>``. The line breaks before a ``</think>`` are given out, since the mark comes
    after them; ``split`` is without them.

    Args:
      opened: whether the prompt has opened the think block (``opens_thinking``).
    """

    def __init__(self, tokenizer: Tokenizer, *, opened: bool):
        self._open_id, self._close_id = tokenizer.token_id(OPEN), tokenizer.token_id(CLOSE)
        self._text = TextStream(tokenizer)
        self._section: Section = "thinking" if opened else "answer"
        self._thinks = opened
        # White space that a ``<think>`` may still follow; None once something else has come.
        self._held: list[str] | None = []
        # Whether line breaks that come next belong to the format.
        self._after_mark = opened
        self._written: dict[Section, list[str]] = {"thinking": [], "answer": []}
        self._multiple_closes = 0

    def push(self, token: int) -> tuple[Section, str]:
        """Takes the next token; returns the text that is now certain (it may be empty) and its section."""
        if token == self._close_id:
            if self._section == "thinking":
                last = self.flush()
                self._section, self._after_mark = "answer", True
                return last
            self._multiple_closes += 1
        if token == self._open_id and self._held is not None:
            self._held.append(self._text.flush())
            if not self._held[-1].strip():
                self._section, self._thinks, self._held, self._after_mark = "thinking", True, None, True
                return self._section, ""
        return self._give(self._text.push(token))

    def flush(self) -> tuple[Section, str]:
        """Returns what still waits at the end, broken characters included, and its section."""
        return self._give(self._text.flush(), last=True)

    @property
    def split(self) -> Split:
        """What has been given out so far, by the rule; after ``flush`` it is the whole completion."""
        thinking, answer = ("".join(self._written[section]) for section in ("thinking", "answer"))
        return Split(thinking.strip("\n") if self._thinks else None, answer, self._multiple_closes)

    def _give(self, text: str, *, last: bool = False) -> tuple[Section, str]:
        if self._held is not None:
            self._held.append(text)
            # What has waited before this text is white space.
            if not (last or text.strip()):
                return self._section, ""
            text, self._held = "".join(self._held), None
        if self._after_mark:
            text = text.lstrip("\n")
            self._after_mark = not text
        self._written[self._section].append(text)
        return self._section, text


class TextStream:
    """Turns tokens into text while they arrive; the broken end of a character waits for the rest of it.

    The time a token takes does not depend on how many came before it, whatever bytes they are.
    """

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self._waiting: list[int] = []
        self._given = 0

    def push(self, token: int) -> str:
        """Takes the next token; returns the text that no later token can change."""
        self._waiting.append(token)
        text = self._tokenizer.decode(self._waiting)
        # Only the last mark of broken bytes may still become a character.
        certain = text.removesuffix(_BROKEN)
        new = certain[self._given :]
        self._given = len(certain)
        if certain == text:
            self._waiting, self._given = [], 0
        elif len(self._waiting) > _MOST_WAITING:
            self._forget_settled()
        return new

    def flush(self) -> str:
        """Returns what still waits at the end, a mark of broken bytes included."""
        text = self._tokenizer.decode(self._waiting)[self._given :]
        self._waiting, self._given = [], 0
        return text

    def _forget_settled(self) -> None:
        """Keeps the tokens that hold the broken end: it has three bytes at most, and a token with text has one."""
        with_text = [token for token in self._waiting if self._tokenizer.decode([token])]
        self._waiting = with_text[-3:]
        self._given = len(self._tokenizer.decode(self._waiting)) - 1
