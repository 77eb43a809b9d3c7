"""Reads the messages of a conversation as OpenAI, ShareGPT and others write them."""

from collections.abc import Iterator, Mapping
from typing import Any

from qwen35_jax.processing.chat_template import REASONING_KEYS
from train.data.rows import ROLES, Media, RowError
from train.data.values import kind, named, parse_json, parsed, plain, shown, text_of

_ROLES = {role: role for role in ROLES} | {
    "developer": "system",
    "human": "user",
    "gpt": "assistant",
    "model": "assistant",
    "function_call": "assistant",
    "function": "tool",
    "observation": "tool",
}
# Keys with which people say whether a turn is trained: OpenAI, slime and ms-swift, verl, axolotl.
_SWITCHES = ("weight", "loss", "loss_mask", "step_loss_mask", "trainable", "train", "training")
# torchtune's says the opposite.
_MASKED = "masked"
_PARTLY = ("train_detail", "training_detail")
_KNOWN = {"role", "from", "content", "value", "name", "tool_call_id", "id", _MASKED, *_SWITCHES}
_KNOWN_OF_ASSISTANT = {"tool_calls", "function_call", *REASONING_KEYS}
# The types under which people write an image or a video, and the keys under which its source may stand.
_MEDIA_TYPES = {"image": ("image", "image_url", "input_image"), "video": ("video", "video_url", "input_video")}
_SOURCES = {kind: (kind, f"{kind}_url", "url", "path", "bytes") for kind in _MEDIA_TYPES}
_NO_OPTIONS = {"type", "text", "detail", *_SOURCES["image"], *_SOURCES["video"]}
_TEXT_PARTS = (None, "text", "input_text", "output_text")
_REASONING_PARTS = ("thinking", "reasoning")
_TYPES = (*_TEXT_PARTS, *_REASONING_PARTS, *_MEDIA_TYPES["image"], *_MEDIA_TYPES["video"])


def read_messages(value: Any, where: str) -> tuple[list[dict[str, Any]], list[bool]]:
    """Returns the messages in canonical form (`train.data.rows.Conversation`), and which of them may be trained.

    Raises:
      RowError: they are no messages, or hold what cannot be trained.
    """
    value = parsed(value, where)
    if not isinstance(value, list | tuple):
        raise RowError("wrong_type", f"{where} is {kind(value)}, not a list of messages")
    messages, trained = [], []
    for number, item in enumerate(value, start=1):
        item = parsed(item, f"message {number}")
        if not isinstance(item, Mapping):
            raise RowError("wrong_type", f"message {number} is {kind(item)}, not an object")
        given = {key: value for key, value in item.items() if value is not None}
        messages.append(_read_message(given, number))
        trained.append(_is_trained(given, messages[-1]["role"], f"message {number} ({messages[-1]['role']})"))
    return messages, trained


def unread_keys(value: Any) -> Iterator[str]:
    """Yields the keys of messages that `read_messages` does not read, once for each message that has one."""
    for message in parsed(value, "messages"):
        message = parsed(message, "a message")
        role = _ROLES.get(message.get("role", message.get("from")))
        known = _KNOWN | _KNOWN_OF_ASSISTANT if role == "assistant" else _KNOWN
        yield from (str(key) for key, item in message.items() if item is not None and key not in known)


def _read_message(given: Mapping[str, Any], number: int) -> dict[str, Any]:
    written = given.get("role", given.get("from"))
    if written is None:
        raise RowError("missing_key", f"message {number} has no 'role'; its keys: {named(given)}")
    role = _ROLES.get(written) if isinstance(written, str) else None
    if role is None:
        raise RowError("unknown_role", f"message {number} has the role {shown(written)}; allowed: {', '.join(_ROLES)}")
    where = f"message {number} ({written})"
    content = given.get("content", given.get("value"))
    if content is None and role != "assistant":
        raise RowError("missing_key", f"{where} has no 'content'; its keys: {named(given)}")
    calls = _calls(given, where) if role == "assistant" else []
    if written == "function_call":
        text = text_of(content, f"the content of {where}")
        thought, closing, call = text.rpartition("</think>")
        content, calls = thought + closing, calls + _read_calls(parse_json(call, f"the call of {where}"), where)
    text, thinking = _content(content, where)
    message: dict[str, Any] = {"role": role, "content": text}
    if role == "assistant":
        thoughts = [text_of(given[key], f"the {key} of {where}") for key in REASONING_KEYS if key in given]
        if reasoning := _one_of([thought for thought in [*thoughts, thinking] if thought.strip()], where):
            message["reasoning_content"] = reasoning
        if calls:
            message["tool_calls"] = calls
    elif thinking:
        raise RowError("wrong_type", f"{where} holds reasoning, which only the assistant writes")
    for key in ("name", "tool_call_id"):
        if key in given:
            message[key] = plain(given[key], f"the {key} of {where}")
    return message


def _one_of(reasonings: list[str], where: str) -> str:
    if len(set(reasonings)) > 1:
        raise RowError("ambiguous", f"{where} has several reasonings that differ; keep one, as reasoning_content")
    return reasonings[0] if reasonings else ""


def _content(content: Any, where: str) -> tuple[str | list[str | Media], str]:
    """Joins the parts of a content as the template does.

    Returns:
      The words, with the media between them where there are some, and the reasoning among the parts.
    """
    if content is None:
        return "", ""
    if not isinstance(content, list | tuple):
        if not isinstance(content, str | bytes):
            raise RowError(
                "wrong_type", f"the content of {where} is {kind(content)}, not a string or a list of text parts"
            )
        return text_of(content, f"the content of {where}"), ""
    words: list[str | Media] = []
    thoughts = []
    for item in content:
        part = parsed(item, f"a part of the content of {where}") if isinstance(item, bytes) else item
        if not isinstance(part, Mapping):
            raise RowError("wrong_type", f"a part of the content of {where} is {kind(part)}, not an object")
        part = {key: value for key, value in part.items() if value is not None}
        if media := _media(part, where):
            words.append(media)
            continue
        kept, text = _part(part, where)
        if kept == "reasoning":
            thoughts.append(text)
        elif words and isinstance(words[-1], str):
            words[-1] += text
        else:
            words.append(text)
    has_media = any(isinstance(each, Media) for each in words)
    return words if has_media else "".join(map(str, words)), "\n".join(thoughts)


def _media(part: Mapping[str, Any], where: str) -> Media | None:
    """Reads a part that is an image or a video; None for another part."""
    written = part.get("type")
    kinds = [kind for kind, types in _MEDIA_TYPES.items() if written in types or part.keys() & _SOURCES[kind][:2]]
    if not kinds:
        return None
    if len(kinds) > 1:
        raise RowError("ambiguous", f"a part of the content of {where} is an image and a video; write two parts")
    source = next((part[key] for key in _SOURCES[kinds[0]] if key in part), None)
    if isinstance(source, Mapping) and "url" in source:
        source = source["url"]
    if isinstance(source, bool | int | float):
        raise RowError("wrong_type", f"{where} holds an {kinds[0]} whose source is {kind(source)}")
    options = {key: value for key, value in part.items() if key not in _NO_OPTIONS}
    return Media(kinds[0], source, options)  # pyrefly: ignore[bad-argument-type]


def _part(part: Mapping[str, Any], where: str) -> tuple[str, str]:
    """Returns whether a part holds reasoning or words, and which."""
    written = part.get("type")
    if written in _REASONING_PARTS:
        key = next((key for key in (*_REASONING_PARTS, "text") if isinstance(part.get(key), str | bytes)), None)
        what = "reasoning"
    else:
        key = "text" if written in _TEXT_PARTS and isinstance(part.get("text"), str | bytes) else None
        what = "words"
    if key is None:
        type_named = f" of type {shown(written)}" if written else ""
        told = f"its keys: {named(part)}" if written in _TYPES else f"the types are {', '.join(_TYPES[1:])}"
        raise RowError(
            "missing_key", f"a part{type_named} in the content of {where} has no 'text' that can be read; {told}"
        )
    return what, text_of(part[key], f"the content of {where}")


def _calls(given: Mapping[str, Any], where: str) -> list[dict[str, Any]]:
    if "tool_calls" in given and "function_call" in given:
        raise RowError("ambiguous", f"{where} has both 'tool_calls' and 'function_call'; keep one")
    if "function_call" in given:
        call = parsed(given["function_call"], f"'function_call' of {where}")
        return _read_calls([call], where)
    calls = parsed(given.get("tool_calls", []), f"'tool_calls' of {where}")
    if not isinstance(calls, list | tuple):
        raise RowError("wrong_type", f"'tool_calls' of {where} must be a list of objects")
    return _read_calls(calls, where)


def _read_calls(calls: Any, where: str) -> list[dict[str, Any]]:
    return [_read_call(call, where) for call in (calls if isinstance(calls, list | tuple) else [calls])]


def _read_call(call: Any, where: str) -> dict[str, Any]:
    call = parsed(call, f"a tool call of {where}")
    function = parsed(call.get("function", call), f"a tool call of {where}") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping):
        raise RowError("wrong_type", f"'tool_calls' of {where} must be a list of objects")
    name = function.get("name")
    if not isinstance(name, str | bytes) or not name:
        raise RowError("missing_key", f"a tool call of {where} has no function name")
    name = text_of(name, f"a function name of {where}")
    arguments, what = function.get("arguments"), f"the arguments of {shown(name)} in {where}"
    if arguments is None:
        given = [key for key, value in function.items() if value is not None]
        if others := [key for key in given if key not in ("name", "id", "type", "index", "description")]:
            raise RowError(
                "missing_key", f"the call of {shown(name)} in {where} has no 'arguments' but {named(others)}"
            )
        arguments = {}
    arguments = parsed(arguments, what) if arguments not in ("", b"") else {}
    if not isinstance(arguments, Mapping):
        raise RowError("wrong_type", f"{what} are {kind(arguments)}, not an object")
    read = {"type": "function", "function": {"name": name, "arguments": plain(arguments, what)}}
    return read | ({"id": call["id"]} if isinstance(call.get("id"), str) and call["id"].isascii() else {})


def _is_trained(given: Mapping[str, Any], role: str, where: str) -> bool:
    """Reads the keys that switch the training of a turn off; without one the assistant's turns are trained."""
    for key in _PARTLY:
        if given.get(key):
            raise RowError(
                "weight", f"{where} has {key!r}; parts of a turn cannot be chosen: remove it, or use 'train'"
            )
    on = role == "assistant"
    for key in (*_SWITCHES, _MASKED):
        if key not in given:
            continue
        if not isinstance(given[key], int | float) or given[key] not in (0, 1):
            raise RowError(
                "weight",
                f"{where} has {key}={shown(given[key])}; a turn is trained or it is not: write 1 or 0, and repeat rows "
                "that should count more",
            )
        switched_on = bool(given[key]) != (key == _MASKED)
        if switched_on and role != "assistant" and key not in ("weight", _MASKED):
            raise RowError("weight", f"{where} has {key}={shown(given[key])}, but only turns of the assistant train")
        on = on and switched_on
    return on
