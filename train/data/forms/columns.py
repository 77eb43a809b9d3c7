"""Reads what stands beside the messages of a row: a system prompt, tools, and settings of the template."""

from collections.abc import Mapping
from typing import Any

from train.data.forms.media import MEDIA_COLUMNS, place_media
from train.data.rows import Conversation, RowError
from train.data.values import kind, named, parsed, plain, text_of

_SYSTEM = ("system", "system_prompt")
_TOOLS = ("tools", "tool_defs", "functions")
_KWARGS = "chat_template_kwargs"
_THINKING = "enable_thinking"
COLUMNS = (*_SYSTEM, *_TOOLS, _KWARGS, _THINKING, *MEDIA_COLUMNS)
"""The columns that are read here."""


def conversation_of(row: Mapping[str, Any], messages: list[dict[str, Any]], trained: list[bool]) -> Conversation:
    """Joins messages with what else the row says about them.

    Raises:
      RowError: a column cannot be read, or contradicts the messages.
    """
    if system := _system(row):
        if not messages or messages[0]["role"] != "system":
            messages, trained = [{"role": "system", "content": system}, *messages], [False, *trained]
        elif messages[0]["content"] != system:
            raise RowError("ambiguous", "the row has a system prompt in a column and another one in its first message")
    _check_settings(row, messages)
    messages, media = place_media(row, messages)
    return Conversation(messages, _tools(row), trained, media)


def _only_one(row: Mapping[str, Any], names: tuple[str, ...]) -> str | None:
    given = [name for name in names if row.get(name) is not None and row[name] not in ("", [])]
    if len(given) > 1:
        raise RowError("ambiguous", f"the row has {' and '.join(map(repr, given))}, which mean the same; keep one")
    return given[0] if given else None


def _system(row: Mapping[str, Any]) -> str | None:
    name = _only_one(row, _SYSTEM)
    return text_of(row[name], repr(name)) if name else None


def _tools(row: Mapping[str, Any]) -> list[dict[str, Any]] | None:
    name = _only_one(row, _TOOLS)
    if name is None:
        return None
    tools = parsed(row[name], repr(name))
    if isinstance(tools, list | tuple):
        tools = [_tool(tool, repr(name)) for tool in tools]
    if not isinstance(tools, list) or not all(isinstance(tool, Mapping) for tool in tools):
        raise RowError("wrong_type", f"{name!r} must be a list of objects, one JSON schema each, or that as JSON text")
    if name == "functions":
        tools = [{"type": "function", "function": tool} for tool in tools]
    return tools or None


def _tool(tool: Any, where: str) -> Any:
    """Reads one tool; its function, parameters and properties may be JSON text."""
    tool = plain(parsed(tool, f"a tool in {where}"), where)
    if isinstance(tool, Mapping):
        return {
            key: _tool(item, where) if key in ("function", "parameters", "properties") else item
            for key, item in tool.items()
        }
    return tool


def _check_settings(row: Mapping[str, Any], messages: list[dict[str, Any]]) -> None:
    """Refuses settings of the template that contradict the conversation: training renders it as it is written."""
    given = parsed(row.get(_KWARGS) or {}, repr(_KWARGS))
    if not isinstance(given, Mapping):
        raise RowError("wrong_type", f"{_KWARGS!r} is {kind(given)}, not an object")
    settings = {key: value for key, value in given.items() if value is not None}
    if row.get(_THINKING) is not None:
        settings[_THINKING] = row[_THINKING]
    if others := settings.keys() - {_THINKING}:
        raise RowError("template_kwargs", f"{_KWARGS!r} holds {named(others)}, which training cannot honour; remove it")
    if _THINKING not in settings or not messages or messages[-1]["role"] != "assistant":
        return
    wanted, last = settings[_THINKING], messages[-1]
    written = last.get("reasoning_content") or last["content"].rpartition("</think>")[0]
    thinks = bool(written.replace("<think>", "").strip())
    if wanted is not thinks:
        raise RowError(
            "template_kwargs",
            f"the row has {_THINKING}={wanted}, but its last answer is written {'with' if thinks else 'without'} "
            "reasoning; mend the answer's reasoning_content, or remove the key",
        )
