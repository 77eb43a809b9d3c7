"""What a row must be to be trained, whatever form it came in, and why a row that is not is left out."""

import re
from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple

from qwen35_jax.processing import Tokenizer

Reason = Literal[
    "invalid_json",
    "not_utf8",
    "surrogate",
    "number",
    "too_deep",
    "missing_key",
    "wrong_type",
    "other_form",
    "ambiguous",
    "convert",
    "left_out",
    "unknown_role",
    "wrong_role_order",
    "empty",
    "think_marks",
    "tool_marks",
    "vision",
    "no_media",
    "media",
    "control_token",
    "weight",
    "template_kwargs",
    "untrained",
    "template",
    "too_long",
    "too_many_patches",
]
"""Under which name unusable rows are counted; ``left_out`` are those that the user's function left out."""

ROLES = ("system", "user", "assistant", "tool")
_MAY_FOLLOW = {
    None: ("system", "user"),
    "system": ("user",),
    "user": ("assistant",),
    "assistant": ("user", "tool"),
    "tool": ("tool", "assistant"),
}
_CALL_MARKS = re.compile(r"</?tool_(?:call|response)>")
_RESPONSE_MARKS = re.compile(r"</?tool_response>")


class RowError(ValueError):
    """A row cannot be used; ``reason`` is the name it is counted under."""

    def __init__(self, reason: Reason, message: str):
        super().__init__(message)
        self.reason: Reason = reason


class Media(NamedTuple):
    """An image or a video of a conversation, as the row has it."""

    kind: Literal["image", "video"]
    source: Any = None
    """A path, a URL, bytes, an object with ``bytes`` and ``path``, an image of Pillow, an array, or for a video a list
    of frames."""
    options: Mapping[str, Any] = {}
    """What the row says about how it is read, such as ``max_pixels``."""


class Conversation(NamedTuple):
    """A conversation in the one form that everything behind the readers knows."""

    messages: list[dict[str, Any]]
    """Each has ``role`` and ``content``. An assistant's content is a string, and it may have ``reasoning_content``, a
    string, and ``tool_calls``, whose ``arguments`` are objects. The content of others is a string or, where it holds
    media, a list of ``{"type": "text", "text": ...}``, ``{"type": "image"}`` and ``{"type": "video"}``. Some messages
    carry ``name`` or ``tool_call_id``."""
    tools: list[dict[str, Any]] | None
    """JSON schemas."""
    trained: list[bool]
    """For each message whether it may be trained; only turns of the assistant are."""
    media: tuple[Media, ...] = ()
    """Its images and videos in reading order."""


def control_tokens(tokenizer: Tokenizer) -> re.Pattern[str]:
    """Compiles the pattern of the tokens that a row's own text must not spell."""
    return re.compile("|".join(re.escape(token) for token in tokenizer.control_tokens))


def check_row(row: Conversation | str, control: re.Pattern[str]) -> None:
    """Checks everything that can be known before a row is rendered.

    A conversation is an optional system message, then user and assistant in turns, with tool results between two
    assistant turns where tools were called; it ends with the assistant. A text holds something.

    Args:
      control: tokens with a meaning of their own. If a row spelled one out, it would become a real one: a turn would
        seem to end inside a message, or a position to hold an image.

    Raises:
      RowError: the row cannot be used.
    """
    if isinstance(row, str):
        if not row.strip():
            raise RowError("empty", "'text' is empty")
        _check_control(row, "the text", control)
        return
    _check_order(row.messages)
    for number, message in enumerate(row.messages, start=1):
        where = f"message {number} ({message['role']})"
        if message["role"] in ("system", "assistant") and not isinstance(message["content"], str):
            raise RowError("vision", f"{where} holds an image or a video; only the user and tools may show one")
        if message["role"] == "assistant":
            _check_answer(message, where)
        elif message["role"] == "tool" and (mark := _RESPONSE_MARKS.search(text_in(message["content"]))):
            raise RowError("tool_marks", f"{where} spells {mark[0]}, which the template writes around every result")
        for text in _strings(message):
            _check_control(text, where, control)
    for text in _strings(row.tools):
        _check_control(text, "'tools'", control)
    if not any(row.trained):
        raise RowError("untrained", "every turn of the assistant is marked as not to be trained")


def text_in(content: str | list[dict[str, Any]]) -> str:
    """Returns the text of a content."""
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)


def _check_order(messages: list[dict[str, Any]]) -> None:
    previous = None
    for number, message in enumerate(messages, start=1):
        role = message["role"]
        if role not in _MAY_FOLLOW[previous]:
            after = f"after {previous}" if previous else "at the beginning"
            raise RowError(
                "wrong_role_order",
                f"message {number} is {role} {after}; allowed there: {' or '.join(_MAY_FOLLOW[previous])}",
            )
        previous = role
    if previous != "assistant":
        raise RowError("wrong_role_order", f"the conversation ends with {previous or 'nothing'}, not with assistant")


def _check_answer(message: Mapping[str, Any], where: str) -> None:
    content, calls = message["content"], message.get("tool_calls")
    if not content.strip() and not calls:
        raise RowError("empty", f"{where} has neither content nor tool calls")
    _check_think_marks(message.get("reasoning_content"), content, where)
    if content.partition("</think>")[2].strip() == "" and "</think>" in content and not calls:
        raise RowError("empty", f"{where} has no content after its think block")
    for text in _strings(message):
        if mark := _CALL_MARKS.search(text):
            raise RowError("tool_marks", f"{where} spells {mark[0]}; write calls as 'tool_calls', results as role tool")


def _check_think_marks(reasoning: str | None, content: str, where: str) -> None:
    """Accepts one think block, as a key or inside the content; of anything else the template would lose words."""
    marks = [mark for mark in ("<think>", "</think>") if mark in content]
    if reasoning is not None:
        if marks or "<think>" in reasoning or "</think>" in reasoning:
            raise RowError("think_marks", f"{where} has reasoning_content and writes <think> or </think> besides")
        return
    before, closing, after = content.partition("</think>")
    opened = before.lstrip().removeprefix("<think>")
    if "<think>" in opened + after or "</think>" in after or (marks and not closing):
        raise RowError("think_marks", f"{where} must hold one think block before the answer, opened and closed once")


def _check_control(text: str, where: str, control: re.Pattern[str]) -> None:
    if match := control.search(text):
        raise RowError("control_token", f"{where} spells the special token {match[0]}")


def _strings(value: Any) -> Iterator[str]:
    """Yields every string of a value as the template may write it, keys included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield key
            yield from _strings(item)
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)
