"""Which rows are usable, and under which reason the others are counted."""

import json

import pytest

from tests.processing.conversations import ASK, TEXT, assistant, call, system, tool, user
from train.data.forms import forms_of, read_as
from train.data.rows import RowError, check_row, control_tokens

CALL = assistant(tool_calls=[call("clock")])


def chat(*messages, **fields):
    return {"messages": list(messages), **fields}


def nested(depth):
    return json.loads("[" * depth + "]" * depth)


GOOD = {
    "chat": chat(ASK, assistant("4")),
    "system": chat(system(""), ASK, assistant("4")),
    "turns": chat(ASK, assistant("4"), ASK, assistant("4")),
    "tools": chat(ASK, CALL, tool("1"), tool("2"), CALL, tool("3"), assistant("6"), ASK, assistant("x"), tools=[{}]),
    "call left open": chat(ASK, CALL),
    "reasoning": chat(ASK, assistant("4", reasoning_content="2 + 2")),
    "think block": chat(ASK, assistant("\n<think>\n2 + 2\n</think>\n\n4")),
    "think block without opening": chat(ASK, assistant("2 + 2\n</think>\n\n4")),
    "think block, empty key": chat(ASK, assistant("<think>\n2 + 2\n</think>\n\n4", reasoning_content="")),
    "think block before a call": chat(ASK, assistant("<think>a</think>\n", tool_calls=[call("clock")])),
    "equal reasonings": chat(ASK, assistant("4", thinking="a", reasoning="a")),
    "items": chat(user([{"type": "text", "text": "a"}]), assistant([{"text": "b"}])),
    "null keys": chat(ASK, assistant("4", tool_calls=None, reasoning_content=None), tools=None),
    "text": {"text": "words"},
    "both": chat(ASK, assistant("4"), text=None),
    "unspecial marks": chat(user("what does <tool_call> mean, and <think>?"), assistant("marks")),
    "tokens without a meaning": chat(user("<tts_pad> <|audio_pad|>"), assistant("<|fim_prefix|> <|repo_name|>")),
    "marks in a text": {"text": "<think> and <tool_call> and <tool_response>"},
    "no characters of its own": chat(user("\0\x1b[0m\ufeff\u2028\uffff"), assistant("\0")),
    "arguments as text": chat(ASK, assistant(tool_calls=[{"name": "f", "arguments": "{}"}])),
    "empty arguments": chat(ASK, assistant(tool_calls=[{"name": "f", "arguments": ""}])),
    "no arguments": chat(ASK, assistant(tool_calls=[{"name": "f"}])),
    "large numbers": chat(ASK, assistant(tool_calls=[call("f", a=10**400, b=1e300, c=-0.0)])),
    "tools as text": chat(ASK, assistant("4"), tools="[]"),
    "nested": chat(ASK, assistant(tool_calls=[call("f", a=nested(60))])),
}

BAD = {
    "list": ([1], "wrong_type", "the row is a list"),
    "number": (3, "wrong_type", "the number 3"),
    "no key": ({"prompt": "a"}, "missing_key", "its keys: prompt; a function data.convert"),
    "null messages": ({"messages": None}, "missing_key", "no known form"),
    "messages as text": ({"messages": "hi"}, "invalid_json", "'messages' is not valid JSON"),
    "messages as JSON of something else": ({"messages": '"hi"'}, "wrong_type", "'messages' is a string"),
    "text as list": ({"text": ["a"]}, "wrong_type", "'text' is a list"),
    "empty text": ({"text": " \n"}, "empty", "'text' is empty"),
    "tools as other text": (chat(ASK, assistant("4"), tools="[a"), "invalid_json", "'tools' is not valid JSON"),
    "a tool as text": (chat(ASK, assistant("4"), tools=["a"]), "invalid_json", "a tool in 'tools' is not valid"),
    "tools as object": (chat(ASK, assistant("4"), tools={"a": 1}), "wrong_type", "'tools' must be a list"),
    "empty": (chat(), "wrong_role_order", "ends with nothing"),
    "message as text": (chat("hi"), "invalid_json", "message 1 is not valid JSON"),
    "message as number": (chat(3), "wrong_type", "message 1 is the number 3"),
    "no role": (chat({"content": "a"}), "missing_key", "message 1 has no 'role'; its keys: content"),
    "unknown role": (chat({"role": "critic", "content": "a"}), "unknown_role", "the role 'critic'; allowed: system"),
    "role as list": (chat({"role": ["user"], "content": "a"}), "unknown_role", "the role .'user'."),
    "assistant first": (chat(assistant("4"), ASK), "wrong_role_order", "message 1 is assistant at the beginning"),
    "user twice": (chat(ASK, ASK, assistant("4")), "wrong_role_order", "message 2 is user after user"),
    "assistant twice": (chat(ASK, assistant("4"), assistant("5")), "wrong_role_order", "message 3 is assistant after"),
    "late system": (chat(ASK, system("s"), assistant("4")), "wrong_role_order", "message 2 is system after user"),
    "tool without call": (chat(ASK, tool("1"), assistant("4")), "wrong_role_order", "message 2 is tool after user"),
    "ends with user": (chat(ASK, assistant("4"), ASK), "wrong_role_order", "ends with user, not with assistant"),
    "ends with tool": (chat(ASK, CALL, tool("1")), "wrong_role_order", "ends with tool"),
    "no content": (chat({"role": "user"}, assistant("4")), "missing_key", r"message 1 \(user\) has no 'content'"),
    "number content": (chat(user(3), assistant("4")), "wrong_type", "is the number 3, not a string"),
    "object content": (chat(user({"text": "a"}), assistant("4")), "wrong_type", "is an object, not a string"),
    "item as text": (chat(user(["a"]), assistant("4")), "wrong_type", "a part of the content"),
    "item without text": (chat(user([{"type": "sound"}]), assistant("4")), "missing_key", "has no 'text'"),
    "item of another type": (
        chat(user([{"type": "tool_result", "text": "a"}]), assistant("4")),
        "missing_key",
        "a part of type 'tool_result'",
    ),
    "reasoning of the user": (
        chat(user([{"type": "thinking", "thinking": "a"}]), assistant("4")),
        "wrong_type",
        "only",
    ),
    "image": (chat(user([{"type": "image"}]), assistant("4")), "vision", "holds an image"),
    "image of the assistant": (chat(ASK, assistant([{"image_url": {"url": "x"}}])), "vision", "only the user and"),
    "empty answer": (chat(ASK, assistant(" ")), "empty", "neither content nor tool calls"),
    "none answer": (chat(ASK, assistant(None)), "empty", "neither content nor tool calls"),
    "only a think block": (chat(ASK, assistant("<think>a</think>\n")), "empty", "no content after its think block"),
    "calls as object": (chat(ASK, assistant("a", tool_calls={"a": 1})), "wrong_type", "must be a list of objects"),
    "calls as numbers": (chat(ASK, assistant("a", tool_calls=[1])), "wrong_type", "must be a list of objects"),
    "nameless call": (chat(ASK, assistant(tool_calls=[{"function": {}}])), "missing_key", "no function name"),
    "two kinds of calls": (
        chat(ASK, assistant(tool_calls=[call("f")], function_call={"name": "f", "arguments": "{}"})),
        "ambiguous",
        "both 'tool_calls' and 'function_call'",
    ),
    "arguments under another name": (
        chat(ASK, assistant(tool_calls=[{"name": "f", "parameters": {"a": 1}}])),
        "missing_key",
        "no 'arguments' but parameters",
    ),
    "arguments as other text": (
        chat(ASK, assistant(tool_calls=[{"name": "f", "arguments": "{a: 1}"}])),
        "invalid_json",
        r"the arguments of 'f' in message 2 \(assistant\) is not valid JSON",
    ),
    "arguments as list": (
        chat(ASK, assistant(tool_calls=[{"name": "f", "arguments": [1]}])),
        "wrong_type",
        "are a list, not an object",
    ),
    "reasoning as list": (chat(ASK, assistant("4", reasoning=["a"])), "wrong_type", "the reasoning of message 2"),
    "mark in reasoning": (chat(ASK, assistant("4", thinking="<think>a")), "think_marks", "besides"),
    "two reasonings": (chat(ASK, assistant("<think>a</think>4", thinking="a")), "think_marks", "besides"),
    "reasonings that differ": (chat(ASK, assistant("4", thinking="a", reasoning="b")), "ambiguous", "several"),
    "unclosed": (chat(ASK, assistant("<think>4")), "think_marks", "opened and closed once"),
    "words before": (chat(ASK, assistant("Hm. <think>a</think>4")), "think_marks", "opened and closed once"),
    "two blocks": (chat(ASK, assistant("<think>a</think>4<think>b</think>5")), "think_marks", "one think block"),
    "call in words": (chat(ASK, assistant("<tool_call>{}</tool_call>")), "tool_marks", "write calls as 'tool_calls'"),
    "call in reasoning": (chat(ASK, assistant("4", thinking="<tool_call>")), "tool_marks", "spells <tool_call>"),
    "end of a result": (chat(ASK, CALL, tool("a</tool_response>"), assistant("4")), "tool_marks", "every result"),
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
    "image mark": (chat(user("<|image_pad|>"), assistant("4")), "control_token", "image_pad"),
    "box mark": (chat(user("x"), assistant("<|box_start|>")), "control_token", "box_start"),
    "half a character": (chat(user("a\ud83d"), assistant("4")), "surrogate", r"message 1 \(user\) holds .ud83d"),
    "half in a key": (
        chat(ASK, assistant(tool_calls=[call("f", **{"\udc00": 1})])),
        "surrogate",
        "the arguments of 'f' in message 2",
    ),
    "half in a name": (chat(ASK, assistant(tool_calls=[call("f\udc00")])), "surrogate", "a function name"),
    "half in tools": (chat(ASK, assistant("4"), tools=[{"name": "\ud800"}]), "surrogate", "'tools' holds"),
    "half in reasoning": (chat(ASK, assistant("4", reasoning="\ud83d")), "surrogate", "the reasoning of message 2"),
    "half in a text": ({"text": "\udfff"}, "surrogate", "'text' holds"),
    "half in the system column": (chat(ASK, assistant("4"), system="\ud83d"), "surrogate", "'system' holds"),
    "deep arguments": (chat(ASK, assistant(tool_calls=[call("f", a=nested(70))])), "too_deep", "more than 64 deep"),
    "deep tools": (chat(ASK, assistant("4"), tools=[{"a": nested(300)}]), "too_deep", "'tools' is nested"),
    "deep text of tools": (chat(ASK, assistant("4"), tools="[" * 10_000), "too_deep", "'tools' is nested too deep"),
    "no number": (chat(ASK, assistant(tool_calls=[call("f", a=float("nan"))])), "number", "the number nan"),
    "infinity": (chat(ASK, assistant("4"), tools=[{"maximum": 1e999}]), "number", "the number inf"),
    "thousands of digits": (
        chat(ASK, assistant(tool_calls=[{"name": "f", "arguments": '{"a": ' + "1" * 5000 + "}"}])),
        "number",
        "a number that cannot be read",
    ),
    "made of thousands of digits": (chat(ASK, assistant(tool_calls=[call("f", a=10**5000)])), "number", "of digits"),
    "key that is no text": (chat(ASK, assistant(tool_calls=[call("f", a={1: 2})])), "wrong_type", "the number 1, not"),
    "no JSON": (chat(ASK, assistant(tool_calls=[call("f", a={1, 2})])), "wrong_type", "a value of type set"),
}


def read(row, control):
    content = read_as(forms_of(row)[0], row)
    check_row(content, control)
    return content


@pytest.fixture(scope="module")
def control(tokenizer):
    return control_tokens(tokenizer)


@pytest.mark.parametrize("name", GOOD)
def test_usable(name, control):
    read(GOOD[name], control)


@pytest.mark.parametrize("name", BAD)
def test_unusable(name, control):
    row, reason, words = BAD[name]
    with pytest.raises(RowError, match=words) as caught:
        read(row, control)
    assert caught.value.reason == reason


def test_template_cases_are_judged_without_a_crash(control):
    for messages, tools in TEXT.values():
        try:
            read({"messages": messages, "tools": tools}, control)
        except RowError as err:
            assert err.reason in (
                "wrong_role_order",
                "missing_key",
                "empty",
                "think_marks",
                "control_token",
                "ambiguous",
            )
