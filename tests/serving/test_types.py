"""Bodies of requests: what they become, and the one clear line that a wrong one ends in."""

import json
import tracemalloc

import pytest

from qwen35_jax.presets import CARD_SAMPLING
from qwen35_jax.serving.errors import RequestError
from qwen35_jax.serving.types import ChatRequest, CompletionRequest, read_request
from tests.serving.conftest import chat

CARD = CARD_SAMPLING["thinking"]


def read(kind=ChatRequest, **body):
    return read_request(kind, json.dumps(body).encode())


def test_every_sampling_field_reaches_the_engine():
    given = {
        "temperature": 0.5, "top_k": 3, "top_p": 0.25, "min_p": 0.125, "presence_penalty": -1, "frequency_penalty": 1.5,
        "repetition_penalty": 1.25, "thinking_budget": 7, "budget_close": "sentence", "detect_loops": True,
    }  # fmt: skip
    asked = read(**chat(**given, logit_bias={"5": -3, "2": 1.5}, stop=["a", "b"], stop_token_ids=[4], ignore_eos=True))
    sampling = asked.sampling(CARD, logprobs=3)
    assert {name: getattr(sampling, name) for name in given} == given
    assert dict(sampling.logit_bias) == {5: -3, 2: 1.5}
    assert (sampling.stop, sampling.stop_token_ids, sampling.ignore_end) == (("a", "b"), (4,), True)
    assert sampling.logprobs == 3
    assert read(**chat(stop="a")).sampling(CARD, logprobs=None).stop == ("a",)


def test_the_model_sees_messages_as_its_template_takes_them():
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"a": [1]}'}}
    messages = [
        {"role": "system", "content": [{"type": "text", "text": "be "}, {"type": "text", "text": "brief"}]},
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": None, "reasoning_content": "hm", "tool_calls": [call], "refusal": None},
        {"role": "tool", "content": "2", "tool_call_id": "c"},
    ]
    asked = read(**chat() | {"messages": messages})
    assert [message.for_template() for message in asked.messages] == [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "hi"},
        {
            "role": "assistant",
            "content": "",
            "reasoning_content": "hm",
            "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {"a": [1]}}}],
        },
        {"role": "tool", "content": "2"},
    ]


@pytest.mark.parametrize("prompt", ["a", ["a", "b"], [1, 2], [[1], [2, 3]]])
def test_prompts_are_texts_or_tokens(prompt):
    several = isinstance(prompt, list) and not isinstance(prompt[0], int)
    assert read(CompletionRequest, model="tiny", prompt=prompt).prompts() == (prompt if several else [prompt])


CALL = {"type": "function", "function": {"name": "f", "arguments": "[]"}}
WRONG = {
    "misspelt": (chat(temprature=1), "temprature", "unknown field 'temprature'; leave it out. Did you mean temp"),
    "unknown inside": (chat(stream_options={"usage": True}), "stream_options.usage", "unknown field 'stream_options.u"),
    "of another API": (chat(best_of=2), "best_of", "unknown field 'best_of'; leave it out."),
    "a text for a number": (chat(temperature="hot"), "temperature", "temperature: input should be a valid number (gi"),
    "too many choices": (chat(n=1000), "n", "n: input should be less than or equal to 128 (given: 1000)."),
    "no choice": (chat(n=0), "n", "n: input should be greater than or equal to 1 (given: 0)."),
    "no messages": ({"model": "tiny", "messages": []}, "messages", "messages: list should have at least 1 item"),
    "missing messages": ({"model": "tiny"}, "messages", "the field 'messages' is missing."),
    "no role": (chat() | {"messages": [{"content": ""}]}, "messages.0.role", "the field 'messages.0.role' is missing."),
    "role": (chat() | {"messages": [{"role": "me"}]}, "messages.0.role", "messages.0.role: input should be 'system', "),
    "audio": (
        chat([{"type": "text", "text": ""}, {"type": "input_audio", "input_audio": {}}]), "messages.0.content.1",
        "messages.0.content.1: its type must be 'text', 'image_url' or 'video_url' (given: {\"type\": \"input_aud",
    ),
    "part without a type": (
        chat([{"text": "hi"}]), "messages.0.content.0",
        "messages.0.content.0: its type must be 'text', 'image_url' or 'video_url' (given: {\"text\": \"hi\"}).",
    ),
    "image without an address": (
        chat([{"type": "image_url", "image_url": {}}]), "messages.0.content.0.image_url.url",
        "the field 'messages.0.content.0.image_url.url' is missing.",
    ),
    "image as a text": (
        chat([{"type": "image_url", "image_url": "x"}]), "messages.0.content.0.image_url",
        "messages.0.content.0.image_url: write {\"url\": ...} around the address (given: \"x\").",
    ),
    "own turn last": (
        chat() | {"messages": [{"role": "assistant", "content": "a"}]}, "messages",
        "messages: the conversation ends with the assistant's turn; end it with the one to be answered",
    ),
    "arguments": (
        chat() | {"messages": [{"role": "assistant", "tool_calls": [CALL]}, {"role": "user", "content": ""}]},
        "messages.0.tool_calls.0.function.arguments", "messages.0.tool_calls.0.function.arguments: the arguments of a",
    ),
    "bias": (chat(logit_bias={"a": 1}), "logit_bias", "logit_bias: 'a' is not the id of a token (given: "),
    "tool name": (
        chat(tools=[{"type": "function", "function": {"name": "a<b"}}]), "tools.0.function.name",
        "tools.0.function.name: string should match pattern",
    ),
    "tool choice": (chat(tool_choice="required"), "tool_choice", "tool_choice: input should be 'auto' or 'none'"),
    "no content": (
        chat() | {"messages": [{"role": "user", "contents": "hi"}]}, "messages.0.contents",
        "unknown field 'messages.0.contents'; leave it out.",
    ),
    "content left out": (
        chat() | {"messages": [{"role": "user"}]}, "messages.0", "messages.0: a message of the role user needs content",
    ),
    "too many alternatives": (
        chat(logprobs=True, top_logprobs=30), "top_logprobs",
        "top_logprobs: input should be less than or equal to 20 (given: 30).",
    ),
    "stop": (chat(stop=["a"] * 17), "stop", "stop: 17 texts; give at most 16"),
    "a list": ([], None, "the body: input should be an object (given: [])."),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_body_ends_in_one_clear_line(name):
    body, param, message = WRONG[name]
    with pytest.raises(RequestError) as raised:
        read_request(ChatRequest, json.dumps(body).encode())
    error = raised.value.body["error"]
    assert raised.value.status == error["code"] == 400
    assert error["param"] == param
    assert error["message"].startswith(message)
    assert len(error["message"]) < 300 and "\n" not in error["message"]


MANY = 50_000
HUGE = {
    "prompt": ({"prompt": [0.5] * MANY}, "prompt.0: input should be a valid"),
    "prompts": ({"prompt": [[5], [0.5] * MANY]}, "prompt.1.0: input should be a valid integer (given: 0.5)."),
    "one token": ({"prompt": [5] * MANY + ["a"]}, 'prompt.50000: input should be a valid integer (given: "a").'),
    "stop tokens": ({"stop_token_ids": ["a"] * MANY}, "stop_token_ids.0: input should be a valid integer"),
    "biases": ({"logit_bias": {str(n): "a" for n in range(MANY)}}, "50,000 fields of the body are unknown or wrong"),
    "fields": ({f"a{n}": 1 for n in range(MANY)}, "50,000 fields of the body are unknown or wrong; send fields of"),
    "parts": (chat() | {"messages": [{"role": "user", "content": [1] * MANY}]}, "messages.0.content.0: input should"),
    "calls": (
        chat() | {"messages": [{"role": "assistant", "tool_calls": [1] * MANY}]}, "messages.0.tool_calls.0: input sh",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", HUGE)
def test_a_body_that_is_wrong_all_over_takes_little_memory(name):
    fields, message = HUGE[name]
    kind, needed = (ChatRequest, chat()) if "messages" in fields else (CompletionRequest, {"model": "m", "prompt": "a"})
    body = json.dumps(needed | fields).encode()
    tracemalloc.start()
    try:
        with pytest.raises(RequestError) as raised:
            read_request(kind, body)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert str(raised.value).startswith(message)
    assert peak < 5e6


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": -1}, "temperature=-1.0; give 0 (greedy) or a number from 0.0001 to 10,000."),
        ({"temperature": 1e-40}, "temperature=1e-40; give 0 (greedy)"),
        ({"temperature": 1e308}, "temperature=1e+308; give 0 (greedy)"),
        ({"top_p": 0}, "top_p=0.0; give a probability"),
        ({"logit_bias": {"3": 101}}, "logit_bias={3: 101.0}; give a token id"),
        ({"stop": ""}, "stop holds an empty text"),
        ({"stop_token_ids": list(range(15))}, "stop_token_ids names 15 tokens"),
    ],
)
def test_values_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError) as raised:
        read(**chat(**settings)).sampling(CARD, logprobs=None)
    assert str(raised.value).startswith(message)


@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b'{"model": "\\ud800"}', b"[" * 100_000])
def test_a_body_that_is_not_json_is_refused(body):
    with pytest.raises(RequestError, match="the body is not JSON"):
        read_request(ChatRequest, body)
