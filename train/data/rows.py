"""What a row of training data must look like, and why a row that does not is left out."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from qwen35_jax.processing.chat_template import normalize_message

Reason = Literal[
    "invalid_json",
    "missing_key",
    "wrong_type",
    "unknown_role",
    "wrong_role_order",
    "empty",
    "think_marks",
    "vision",
    "control_token",
    "template",
    "too_long",
]
"""Under which name unusable rows are counted."""

ROLES = ("system", "user", "assistant", "tool")
_MAY_FOLLOW = {
    None: ("system", "user"),
    "system": ("user",),
    "user": ("assistant",),
    "assistant": ("user", "tool"),
    "tool": ("tool", "assistant"),
}
_VISION_KEYS = {"image", "image_url", "video"}


class RowError(ValueError):
    """A row cannot be used; ``reason`` is the name it is counted under."""

    def __init__(self, reason: Reason, message: str):
        super().__init__(message)
        self.reason: Reason = reason


def forbidden_tokens(special_tokens: Sequence[str]) -> re.Pattern[str]:
    """Compiles the pattern of the tokens that a row's own text must not spell."""
    return re.compile("|".join(re.escape(token) for token in special_tokens))


def check_row(row: Any, forbidden: re.Pattern[str]) -> None:
    """Checks everything about a row that can be known before it is rendered.

    A conversation is an optional system message, then user and assistant in turns, with tool results between two
    assistant turns where tools were called; it ends with the assistant. A row with both keys is a conversation.

    Args:
      row: the parsed row.
      forbidden: special tokens. If a row spelled one out, it would become a real one: a turn would seem to end inside
        a message, or a position to hold an image.

    Raises:
      RowError: the row cannot be used.
    """
    if not isinstance(row, Mapping):
        raise RowError("wrong_type", f"the row is {_kind(row)}, not an object with 'messages' or 'text'")
    if row.get("messages") is not None:
        _check_conversation(row["messages"], row.get("tools"))
    elif row.get("text") is not None:
        if not isinstance(row["text"], str):
            raise RowError("wrong_type", f"'text' is {_kind(row['text'])}, not a string")
        if not row["text"].strip():
            raise RowError("empty", "'text' is empty")
    else:
        raise RowError(
            "missing_key", f"the row has neither 'messages' nor 'text'; its keys: {', '.join(row) or 'none'}"
        )
    for text in _strings([row.get("messages") or row.get("text"), row.get("tools")]):
        if match := forbidden.search(text):
            raise RowError("control_token", f"the text spells the special token {match[0]}")


def _check_conversation(messages: Any, tools: Any) -> None:
    if not isinstance(messages, list):
        raise RowError("wrong_type", f"'messages' is {_kind(messages)}, not a list")
    if tools is not None and not (isinstance(tools, list) and all(isinstance(tool, Mapping) for tool in tools)):
        raise RowError("wrong_type", "'tools' must be a list of objects, one JSON schema each")
    previous = None
    for number, message in enumerate(messages, start=1):
        where = f"message {number}"
        if not isinstance(message, Mapping):
            raise RowError("wrong_type", f"{where} is {_kind(message)}, not an object")
        role = message.get("role")
        if role is None:
            raise RowError("missing_key", f"{where} has no 'role'")
        if role not in ROLES:
            raise RowError("unknown_role", f"{where} has the role {role!r}; allowed: {', '.join(ROLES)}")
        if role not in _MAY_FOLLOW[previous]:
            after = f"after {previous}" if previous else "at the beginning"
            raise RowError(
                "wrong_role_order",
                f"{where} is {role} {after}; allowed there: {' or '.join(_MAY_FOLLOW[previous])}",
            )
        _check_content(message, f"{where} ({role})")
        previous = role
    if previous != "assistant":
        raise RowError("wrong_role_order", f"the conversation ends with {previous or 'nothing'}, not with assistant")


def _check_content(message: Mapping[str, Any], where: str) -> None:
    content, is_assistant = message.get("content"), message["role"] == "assistant"
    if content is None and not is_assistant:
        raise RowError("missing_key", f"{where} has no 'content'")
    if not isinstance(content, str | list | None):
        raise RowError("wrong_type", f"the content of {where} is {_kind(content)}, not a string or a list of items")
    for item in content if isinstance(content, list) else ():
        if not isinstance(item, Mapping):
            raise RowError("wrong_type", f"an item in the content of {where} is {_kind(item)}, not an object")
        if _VISION_KEYS & item.keys() or item.get("type") in _VISION_KEYS:
            raise RowError("vision", f"{where} holds an image or a video, which cannot be trained on yet")
        if not isinstance(item.get("text"), str):
            raise RowError("missing_key", f"an item in the content of {where} has no 'text'")
    if is_assistant:
        calls = message.get("tool_calls") or []
        _check_calls(calls, where)
        if not _joined(content).strip() and not calls:
            raise RowError("empty", f"{where} has neither content nor tool calls")
        _check_think_marks(normalize_message(message).get("reasoning_content"), _joined(content), where)


def _check_calls(calls: Any, where: str) -> None:
    if not isinstance(calls, list) or not all(isinstance(call, Mapping) for call in calls):
        raise RowError("wrong_type", f"'tool_calls' of {where} must be a list of objects")
    for call in calls:
        function = call.get("function", call)
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise RowError("missing_key", f"a tool call of {where} has no function name")
        arguments = function.get("arguments", {})
        if not isinstance(arguments, Mapping):
            raise RowError(
                "wrong_type",
                f"the arguments of {function['name']!r} in {where} are {_kind(arguments)}, not an object"
                + ("; parse the JSON first" if isinstance(arguments, str) else ""),
            )


def _check_think_marks(reasoning: Any, content: str, where: str) -> None:
    """Accepts one think block, as a key or inside the content; of anything else the template would lose words."""
    if reasoning is not None and not isinstance(reasoning, str):
        raise RowError("wrong_type", f"the reasoning of {where} is {_kind(reasoning)}, not a string")
    marks = [mark for mark in ("<think>", "</think>") if mark in content]
    if reasoning is not None:
        if marks or "<think>" in reasoning or "</think>" in reasoning:
            raise RowError("think_marks", f"{where} has reasoning_content and writes <think> or </think> besides")
        return
    before, closing, after = content.partition("</think>")
    opened = before.lstrip().removeprefix("<think>")
    if "<think>" in opened + after or "</think>" in after or (marks and not closing):
        raise RowError("think_marks", f"{where} must hold one think block before the answer, opened and closed once")
    if closing and not after.strip():
        raise RowError("empty", f"{where} has no content after its think block")


def _joined(content: str | list | None) -> str:
    if isinstance(content, list):
        return "".join(item["text"] for item in content)
    return content or ""


def _strings(value: Any) -> Iterator[str]:
    """Yields every string of a row as the template may write it, keys included, items of one content joined."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield str(key)
            yield from _strings(item)
    elif isinstance(value, list):
        if all(isinstance(item, Mapping) and isinstance(item.get("text"), str) for item in value):
            yield _joined(value)
        for item in value:
            yield from _strings(item)


def _kind(value: Any) -> str:
    """Names a value's type as JSON does; Parquet knows further types."""
    names = {dict: "an object", list: "a list", str: "a string", bool: "true or false", type(None): "null"}
    number = f"the number {value}" if isinstance(value, int | float) else f"a {type(value).__name__}"
    return names.get(type(value), number)
