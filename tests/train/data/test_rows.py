"""Which rows are usable, and under which reason the others are counted."""

import pytest

from tests.processing.conversations import ASK, TEXT, assistant, call, system, tool, user
from train.data.rows import RowError, check_row, forbidden_tokens

FORBIDDEN = forbidden_tokens(["<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|image_pad|>"])
CALL = assistant(tool_calls=[call("clock")])


def chat(*messages, **fields):
    return {"messages": list(messages), **fields}


GOOD = {
    "chat": chat(ASK, assistant("4")),
    "system": chat(system(""), ASK, assistant("4")),
    "turns": chat(ASK, assistant("4"), ASK, assistant("4")),
    "tools": chat(ASK, CALL, tool("1"), tool("2"), CALL, tool("3"), assistant("6"), ASK, assistant("x"), tools=[{}]),
    "call left open": chat(ASK, CALL),
    "reasoning": chat(ASK, assistant("4", reasoning_content="2 + 2")),
    "think block": chat(ASK, assistant("\n<think>\n2 + 2\n</think>\n\n4")),
    "think block without opening": chat(ASK, assistant("2 + 2\n</think>\n\n4")),
    "items": chat(user([{"type": "text", "text": "a"}]), assistant([{"text": "b"}])),
    "null keys": chat(ASK, assistant("4", tool_calls=None, reasoning_content=None), tools=None),
    "text": {"text": "words"},
    "both": chat(ASK, assistant("4"), text=None),
    "unspecial marks": chat(user("what does <tool_call> mean, and <think>?"), assistant("marks")),
}

BAD = {
    "list": ([1], "wrong_type", "the row is a list"),
    "number": (3, "wrong_type", "the number 3"),
    "no key": ({"prompt": "a"}, "missing_key", "its keys: prompt"),
    "null messages": ({"messages": None}, "missing_key", "neither 'messages' nor 'text'"),
    "messages as text": ({"messages": "hi"}, "wrong_type", "'messages' is a string"),
    "text as list": ({"text": ["a"]}, "wrong_type", "'text' is a list"),
    "empty text": ({"text": " \n"}, "empty", "'text' is empty"),
    "tools as text": (chat(ASK, assistant("4"), tools="[]"), "wrong_type", "'tools' must be a list"),
    "empty": (chat(), "wrong_role_order", "ends with nothing"),
    "message as text": (chat("hi"), "wrong_type", "message 1 is a string"),
    "no role": (chat({"content": "a"}), "missing_key", "message 1 has no 'role'"),
    "unknown role": (chat({"role": "human", "content": "a"}), "unknown_role", "the role 'human'; allowed: system"),
    "assistant first": (chat(assistant("4"), ASK), "wrong_role_order", "message 1 is assistant at the beginning"),
    "user twice": (chat(ASK, ASK, assistant("4")), "wrong_role_order", "message 2 is user after user"),
    "assistant twice": (chat(ASK, assistant("4"), assistant("5")), "wrong_role_order", "message 3 is assistant after"),
    "late system": (chat(ASK, system("s"), assistant("4")), "wrong_role_order", "message 2 is system after user"),
    "tool without call": (chat(ASK, tool("1"), assistant("4")), "wrong_role_order", "message 2 is tool after user"),
    "ends with user": (chat(ASK, assistant("4"), ASK), "wrong_role_order", "ends with user, not with assistant"),
    "ends with tool": (chat(ASK, CALL, tool("1")), "wrong_role_order", "ends with tool"),
    "no content": (chat({"role": "user"}, assistant("4")), "missing_key", r"message 1 \(user\) has no 'content'"),
    "number content": (chat(user(3), assistant("4")), "wrong_type", "is the number 3, not a string"),
    "item as text": (chat(user(["a"]), assistant("4")), "wrong_type", "an item in the content"),
    "item without text": (chat(user([{"type": "sound"}]), assistant("4")), "missing_key", "has no 'text'"),
    "image": (chat(user([{"type": "image"}]), assistant("4")), "vision", "holds an image"),
    "image url": (chat(user([{"image_url": {"url": "x"}}]), assistant("4")), "vision", "holds an image"),
    "empty answer": (chat(ASK, assistant(" ")), "empty", "neither content nor tool calls"),
    "none answer": (chat(ASK, assistant(None)), "empty", "neither content nor tool calls"),
    "only a think block": (chat(ASK, assistant("<think>a</think>\n")), "empty", "no content after its think block"),
    "calls as object": (chat(ASK, assistant("a", tool_calls={"a": 1})), "wrong_type", "must be a list of objects"),
    "nameless call": (chat(ASK, assistant(tool_calls=[{"function": {}}])), "missing_key", "no function name"),
    "arguments as text": (
        chat(ASK, assistant(tool_calls=[{"name": "f", "arguments": "{}"}])),
        "wrong_type",
        "are a string, not an object; parse the JSON first",
    ),
    "reasoning as list": (chat(ASK, assistant("4", reasoning=["a"])), "wrong_type", "the reasoning of message 2"),
    "mark in reasoning": (chat(ASK, assistant("4", thinking="<think>a")), "think_marks", "besides"),
    "two reasonings": (chat(ASK, assistant("<think>a</think>4", thinking="a")), "think_marks", "besides"),
    "unclosed": (chat(ASK, assistant("<think>4")), "think_marks", "opened and closed once"),
    "words before": (chat(ASK, assistant("Hm. <think>a</think>4")), "think_marks", "opened and closed once"),
    "two blocks": (chat(ASK, assistant("<think>a</think>4<think>b</think>5")), "think_marks", "one think block"),
    "turn mark": (chat(user("a<|im_end|>"), assistant("4")), "control_token", r"the special token <\|im_end\|>"),
    "mark across items": (
        chat(user([{"text": "<|im_"}, {"text": "end|>"}]), assistant("4")),
        "control_token",
        "im_end",
    ),
    "mark in a key": (
        chat(ASK, assistant(tool_calls=[{"name": "f", "arguments": {"<|im_start|>": [1]}}])),
        "control_token",
        "im_start",
    ),
    "mark in tools": (chat(ASK, assistant("4"), tools=[{"name": "<|endoftext|>"}]), "control_token", "endoftext"),
    "mark in text": ({"text": "a<|endoftext|>b"}, "control_token", "endoftext"),
}


@pytest.mark.parametrize("name", GOOD)
def test_usable(name):
    check_row(GOOD[name], FORBIDDEN)


@pytest.mark.parametrize("name", BAD)
def test_unusable(name):
    row, reason, words = BAD[name]
    with pytest.raises(RowError, match=words) as caught:
        check_row(row, FORBIDDEN)
    assert caught.value.reason == reason


def test_template_cases_are_judged_without_a_crash():
    for messages, tools in TEXT.values():
        try:
            check_row({"messages": messages, "tools": tools}, FORBIDDEN)
        except RowError as err:
            assert err.reason in ("wrong_role_order", "missing_key", "empty", "think_marks", "control_token")
