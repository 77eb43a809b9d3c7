"""Tool calls in a model's answer: which tokens are a call, and what the call says.

The format looks like XML and is not: a value stands in it as it is, nothing is escaped.

    <tool_call>
    <function=NAME>
    <parameter=KEY>
    VALUE
    </parameter>
    </function>
    </tool_call>

- A call begins at the token ``<tool_call>``, never at its spelling by other tokens, and ``<function=NAME>`` comes next.
- A value ends at the first ``</parameter>`` after which the format goes on: with the tag of another parameter, or with
  ``</function>`` and the token ``</tool_call>``. Every other mark is part of the value. So is the tag of a parameter
  that the call already has, or that a schema with ``"additionalProperties": false`` does not list.
- What is not a whole call is text, also a call that the end of the answer cuts off. So is a call whose first value
  begins later than after ``LONGEST_HEAD`` characters, or in whose values ``MOST_CLOSES`` tokens ``</tool_call>`` stand:
  the limits keep the time linear in what a model that has lost its way may write.
- The white space around a call belongs to the format and is left out.
- Only an answer holds calls: what the model writes while it thinks must not be given to this parser.
"""

import dataclasses
import re
from collections.abc import Iterable, Mapping
from typing import Any

from qwen35_jax.processing.tokenizer import Tokenizer
from qwen35_jax.processing.tool_values import typed_value

OPEN, CLOSE = "<tool_call>", "</tool_call>"
LONGEST_HEAD = 2000
MOST_CLOSES = 200

_FUNCTION = re.compile(r"\s*<function=([^<>\n]+)>\s*")
_PARAMETER = re.compile(r"<parameter=([^<>\n]+)>")
_VALUE_END = re.compile(r"</parameter>\s*(?=<parameter=([^<>\n]+)>|</function>\s*\Z)")
_FUNCTION_END = re.compile(r"</function>\s*")


@dataclasses.dataclass(frozen=True)
class ToolCall:
    """One call of a tool; the arguments are typed by the tool's schema."""

    name: str
    arguments: dict[str, Any]


class ToolCallStream:
    """Finds the tool calls of an answer while its tokens arrive.

    Text is given out once no later token can make it part of a call; a call is given out at its last token. The calls
    and the joined text are the same when the text of some tokens comes with later ones.

    Args:
      tools: what the chat template takes: ``{"type": "function", "function": {...}}`` or the inner mapping alone.

    Raises:
      ValueError: a tool has no name, or its parameters are no JSON schema of an object.
    """

    def __init__(self, tokenizer: Tokenizer, tools: Iterable[Mapping[str, Any]] = ()):
        self._marks = {tokenizer.token_id(mark): mark for mark in (OPEN, CLOSE)}
        self._schemas = dict(map(_name_and_schema, tools))
        # Text that is not given out yet. What follows are places in it.
        self._held = ""
        # Marks that came as tokens, each with the place from which on its spelling is looked for.
        self._awaited: list[tuple[str, int]] = []
        self._after_last_mark = 0
        self._open: int | None = None
        # How many closing marks the open call has had.
        self._num_closes = 0
        self._after_call = False
        # White space after everything else, which may come before a call.
        self._space: list[str] = []

    def push(self, token: int, text: str) -> list[str | ToolCall]:
        """Takes the next token of the answer.

        Args:
          token: its id.
          text: the text that this token made certain; the token's own spelling may come later.

        Returns:
          The text and the calls that are now certain, in their order.
        """
        if token not in self._marks and not self._awaited and self._open is None and not text.strip():
            self._space.append(text)
            return []
        self._take_space()
        if token in self._marks:
            self._awaited.append((self._marks[token], len(self._held)))
        self._held += text
        found: list[str | ToolCall] = []
        while self._awaited and (at := self._find(*self._awaited[0])) >= 0:
            mark, _ = self._awaited.pop(0)
            found += self._take_mark(mark, at)
        self._forget_open_unless_call(len(self._held))
        starts = [self._open, *(start for mark, start in self._awaited if mark == OPEN)]
        return found + self._give(min((start for start in starts if start is not None), default=len(self._held)))

    def flush(self) -> list[str | ToolCall]:
        """Returns the text that still waits at the end of the answer, an unfinished call included."""
        self._awaited, self._open = [], None
        self._take_space()
        return self._give(len(self._held), last=True)

    def _take_space(self) -> None:
        self._held += "".join(self._space)
        self._space = []

    def _find(self, mark: str, start: int) -> int:
        return self._held.find(mark, max(start, self._after_last_mark))

    def _take_mark(self, mark: str, at: int) -> list[str | ToolCall]:
        end = self._after_last_mark = at + len(mark)
        call = None
        if mark == CLOSE and self._open is not None:
            self._num_closes += 1
            call = _read_call(self._held[self._open + len(OPEN) : at], self._schemas)
        if call and self._open is not None:
            before = self._give(self._open)
            self._drop(self._after_last_mark)
            self._open, self._after_call = None, True
            return [*before, call]
        self._forget_open_unless_call(end)
        if mark == OPEN and self._open is None:
            self._open, self._num_closes = at, 0
        return []

    def _forget_open_unless_call(self, end: int) -> None:
        if self._open is None:
            return
        if self._num_closes >= MOST_CLOSES or not _may_be_call(self._held, self._open + len(OPEN), end):
            self._open = None

    def _give(self, end: int, *, last: bool = False) -> list[str | ToolCall]:
        """Gives out the held text before ``end``, but the white space at its end waits for what comes next."""
        text = self._held[:end] if last else self._held[:end].rstrip()
        self._drop(len(text))
        if self._after_call:
            text = text.lstrip()
            self._after_call = not text
        return [text] if text else []

    def _drop(self, length: int) -> None:
        self._held = self._held[length:]
        self._awaited = [(mark, max(start - length, 0)) for mark, start in self._awaited]
        self._after_last_mark = max(self._after_last_mark - length, 0)
        self._open = None if self._open is None else self._open - length


def _name_and_schema(tool: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    function = tool.get("function", tool)
    name, schema = function.get("name"), function.get("parameters") or {}
    if not isinstance(name, str) or not isinstance(schema, Mapping):
        raise ValueError(
            f"the tool {tool} is not known by a name and a schema; give "
            '{"name": ..., "parameters": {"type": "object", "properties": ...}}, where the parameters may be left out.'
        )
    return name, schema


def _may_be_call(text: str, start: int, end: int) -> bool:
    """Returns whether ``text[start:end]``, which follows an opening mark, can still grow into a call."""
    if _first_parameter(text, start, end):
        return True
    if end - start > LONGEST_HEAD:
        return False
    function = _FUNCTION.match(text, start, end)
    if not function:
        return _may_be_tag("<function=", text[start:end].lstrip())
    rest = text[function.end() : end]
    if function_end := _FUNCTION_END.match(rest):
        return CLOSE.startswith(rest[function_end.end() :])
    return _may_be_tag("<parameter=", rest) or "</function>".startswith(rest)


def _first_parameter(text: str, start: int, end: int) -> re.Match | None:
    end = min(end, start + LONGEST_HEAD)
    function = _FUNCTION.match(text, start, end)
    return function and _PARAMETER.match(text, function.end(), end)


def _may_be_tag(tag: str, text: str) -> bool:
    return tag.startswith(text) or (text.startswith(tag) and not re.search(r"[<>\n]", text[len(tag) :]))


def _read_call(body: str, schemas: Mapping[str, Mapping[str, Any]]) -> ToolCall | None:
    """Reads what stands between the two marks; None if it is not a whole call."""
    function = _FUNCTION.match(body)
    if not function or (len(body) > LONGEST_HEAD and not _first_parameter(body, 0, len(body))):
        return None
    schema = schemas.get(function[1], {})
    properties = schema.get("properties") or {}
    closed = schema.get("additionalProperties") is False
    arguments: dict[str, Any] = {}
    at = function.end()
    while tag := _PARAMETER.match(body, at):
        known = {*arguments, tag[1]}
        ends = _VALUE_END.finditer(body, tag.end())
        end = next((e for e in ends if e[1] not in known and (not closed or e[1] is None or e[1] in properties)), None)
        if not end:
            return None
        value = body[tag.end() : end.start()].removeprefix("\n").removesuffix("\n")
        arguments[tag[1]] = typed_value(value, properties.get(tag[1]))
        at = end.end()
    function_end = _FUNCTION_END.match(body, at)
    return ToolCall(function[1], arguments) if function_end and function_end.end() == len(body) else None
