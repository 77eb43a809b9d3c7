"""The forms in which people have training data, each read into the one form of `train.data.rows`.

A form is told by the keys of a row. The names in ``NAMES`` are in the order in which they are tried: rows of chat data
often carry their first prompt, or the whole rendered conversation, beside the messages.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, NamedTuple, get_args

from train.data.forms.columns import COLUMNS, conversation_of
from train.data.forms.messages import read_messages, unread_keys
from train.data.rows import Conversation, RowError
from train.data.values import kind, named, parsed, text_of

FormName = Literal["messages", "sharegpt", "prompt_completion", "alpaca", "text"]
NAMES: tuple[FormName, ...] = get_args(FormName)


class _Form(NamedTuple):
    keys: tuple[str, ...]
    """A row that has all of these may be of the form."""
    columns: tuple[str, ...]
    """Everything that is read."""
    read: Callable[[Mapping[str, Any]], Conversation | str]


def forms_of(row: Any) -> list[FormName]:
    """Returns the forms that a row may be of; it counts as the first.

    Raises:
      RowError: it is of none.
    """
    if not isinstance(row, Mapping):
        raise RowError("wrong_type", f"the row is {kind(row)}, not an object")
    if found := [name for name in NAMES if all(row.get(key) is not None for key in _FORMS[name].keys)]:
        return found
    raise RowError(
        "missing_key",
        f"the row is of no known form ({', '.join(NAMES)}; docs/data.md shows them); its keys: {named(row)}; a "
        "function data.convert in the run file reads any other form",
    )


def read_as(name: FormName, row: Any) -> Conversation | str:
    """Reads a row of a given form.

    Raises:
      RowError: it lacks the form's keys, or what they hold cannot be read.
    """
    if not isinstance(row, Mapping):
        raise RowError("wrong_type", f"the row is {kind(row)}, not an object")
    if any(row.get(key) is None for key in _FORMS[name].keys):
        raise RowError("missing_key", f"the row lacks the keys of its form, {_described(name)}; its keys: {named(row)}")
    return _FORMS[name].read(row)


def unread_columns(name: FormName, row: Mapping[str, Any]) -> Iterator[str]:
    """Yields the keys of a row that its form does not read."""
    return (str(key) for key, value in row.items() if value is not None and key not in _FORMS[name].columns)


def unread_message_keys(name: FormName, row: Mapping[str, Any]) -> Iterator[str]:
    """Yields the keys of a row's messages that are not read, once for each message that has one.

    The row must be one that can be read.
    """
    for column in _FORMS[name].keys:
        value = row[column]
        if name in ("messages", "sharegpt") or (name == "prompt_completion" and isinstance(value, list | tuple)):
            yield from unread_keys(value)


def columns_of(names: tuple[FormName, ...] = NAMES) -> list[str]:
    """Returns every column that some of the forms read."""
    return sorted({column for name in names for column in _FORMS[name].columns})


def may_hold(columns: list[str]) -> bool:
    """Tells whether rows with these columns can be of any form."""
    return any(set(_FORMS[name].keys) <= {*columns} for name in NAMES)


def _described(name: FormName) -> str:
    return f"{name}: {' and '.join(map(repr, _FORMS[name].keys))}"


def _read_chat(row: Mapping[str, Any], column: str) -> Conversation:
    return conversation_of(row, *read_messages(row[column], repr(column)))


def _read_alpaca(row: Mapping[str, Any]) -> Conversation:
    asked = [_text(row, key) for key in ("instruction", "input")]
    messages = []
    history = parsed(row.get("history") or [], "'history'")
    for turn in history if isinstance(history, list | tuple) else [history]:
        if not isinstance(turn, list | tuple) or len(turn) != 2:
            raise RowError("wrong_type", "'history' must be a list of pairs, a question and its answer each")
        messages += _turns(*(text_of(text, "'history'") for text in turn))
    messages += _turns("\n".join(filter(None, asked)), _text(row, "output"))
    return conversation_of(row, messages, [message["role"] == "assistant" for message in messages])


def _read_prompt_completion(row: Mapping[str, Any]) -> Conversation:
    parts = {}
    for key, role in (("prompt", "user"), ("completion", "assistant")):
        value = [row[key]] if isinstance(row[key], Mapping) else row[key]
        is_text = isinstance(value, str | bytes)
        parts[key] = read_messages([{"role": role, "content": value}] if is_text else value, repr(key))
    (prompt, _), (completion, trained) = parts["prompt"], parts["completion"]
    return conversation_of(row, prompt + completion, [False] * len(prompt) + trained)


def _read_text(row: Mapping[str, Any]) -> str:
    return text_of(row["text"], "'text'")


def _turns(question: str, answer: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def _text(row: Mapping[str, Any], key: str) -> str:
    return "" if row.get(key) is None else text_of(row[key], repr(key))


_FORMS: dict[FormName, _Form] = {
    "messages": _Form(("messages",), ("messages", *COLUMNS), lambda row: _read_chat(row, "messages")),
    "sharegpt": _Form(("conversations",), ("conversations", *COLUMNS), lambda row: _read_chat(row, "conversations")),
    "prompt_completion": _Form(("prompt", "completion"), ("prompt", "completion", *COLUMNS), _read_prompt_completion),
    "alpaca": _Form(("instruction", "output"), ("instruction", "input", "output", "history", *COLUMNS), _read_alpaca),
    "text": _Form(("text",), ("text",), _read_text),
}
