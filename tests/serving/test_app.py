"""Routes, errors and streams, with an engine that writes what the test says."""

import asyncio
import json

import pytest

from tests.serving.conftest import chat, client_of, events_of

END = "<|im_end|>"
CALL = """<tool_call>
<function=add>
<parameter=a>
1
</parameter>
<parameter=b>
x
</parameter>
</function>
</tool_call>"""
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "add",
            "parameters": {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "string"}}},
        },
    }
]
CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
THINKING = {"chat_template_kwargs": {"enable_thinking": True}}


def post(app, body, path=CHAT, **settings):
    """Sends one request to an application of its own life."""

    async def run():
        async with client_of(app) as client:
            if isinstance(body, dict):
                return await client.post(path, json=body, **settings)
            headers = {"Content-Type": "application/json"} | settings.pop("headers", {})
            return await client.post(path, content=body, headers=headers, **settings)

    return asyncio.run(run())


def get(app, path, **settings):
    async def run():
        async with client_of(app) as client:
            return await client.get(path, **settings)

    return asyncio.run(run())


def streamed(app, body):
    """The message and the finish reason that the events of a stream add up to."""
    reply = post(app, body | {"stream": True})
    assert reply.status_code == 200 and reply.headers["content-type"].startswith("text/event-stream")
    message, reasons = {}, []
    for event in events_of(reply.text):
        for choice in event["choices"]:
            for field, value in choice["delta"].items():
                if field == "role":
                    message[field] = value
                else:
                    message[field] = message.get(field, value[:0]) + value
            reasons += [choice["finish_reason"]] * (choice["finish_reason"] is not None)
    assert len(reasons) == 1
    return message, reasons[0]


@pytest.mark.parametrize("speed", [1, 3, 1000])
@pytest.mark.parametrize(
    ("text", "settings", "content", "reasoning", "num_calls", "reason"),
    [
        (f"an answer{END}", {}, "an answer", None, 0, "stop"),
        (f"é🙂 ü{END}", {}, "é🙂 ü", None, 0, "stop"),
        (f"a thought\n</think>\n\nan answer{END}", THINKING, "an answer", "a thought", 0, "stop"),
        (f"so {CALL}</think>no{END}", THINKING | {"tools": TOOLS}, "no", f"so {CALL}", 0, "stop"),
        (f"hm\n</think>\n\nlook: {CALL}{END}", THINKING | {"tools": TOOLS}, "look:", "hm", 1, "tool_calls"),
        (f"{CALL}\n{CALL}{END}", {"tools": TOOLS}, None, None, 2, "tool_calls"),
        (f"{CALL}{END}", {}, CALL, None, 0, "stop"),
        (f"{CALL}{END}", {"tools": TOOLS, "tool_choice": "none"}, CALL, None, 0, "stop"),
        ("on and on", {"max_tokens": 5}, "on and", None, 0, "length"),
        ("a thought", THINKING | {"max_completion_tokens": 5}, "", "a tho", 0, "length"),
    ],
)
def test_a_chat_is_answered_alike_at_once_and_in_a_stream(
    scripted, text, settings, content, reasoning, num_calls, reason, speed
):
    _, app = scripted(text, speed=speed)
    body = chat(**settings)
    answer = post(app, body).json()
    [choice] = answer["choices"]
    message = choice["message"]
    assert (message["content"], message.get("reasoning_content")) == (content, reasoning)
    assert choice["finish_reason"] == reason
    calls = [entry["function"] for entry in message.get("tool_calls", ())]
    assert calls == [{"name": "add", "arguments": json.dumps({"a": 1, "b": "x"})}] * num_calls
    told, told_reason = streamed(app, body)
    assert (told["content"], told.get("reasoning_content")) == (content or "", reasoning)
    assert [entry["function"] for entry in told.get("tool_calls", ())] == calls
    assert [entry["index"] for entry in told.get("tool_calls", ())] == list(range(num_calls))
    assert told_reason == reason


def test_usage_counts_tokens(scripted, tokenizer):
    engine, app = scripted(f"why\n</think>\n\nso{END}")
    answer = post(app, chat(n=2, **THINKING)).json()
    prompt = engine.submitted[0][0]
    thought = len(tokenizer.encode("why\n</think>"))
    assert answer["usage"] == {
        "prompt_tokens": len(prompt),
        "completion_tokens": 2 * len(engine.script),
        "total_tokens": len(prompt) + 2 * len(engine.script),
        "completion_tokens_details": {"reasoning_tokens": 2 * thought},
    }
    reply = post(app, chat(n=2, stream=True, stream_options={"include_usage": True}, **THINKING))
    *events, last = events_of(reply.text)
    assert last["usage"] == answer["usage"] and last["choices"] == []
    assert all(event["usage"] is None for event in events)


def test_sampling_defaults_are_those_of_the_card_by_mode(scripted):
    engine, app = scripted(f"x</think>y{END}")
    for settings in ({}, THINKING, {"temperature": 0}, {"top_p": 0.5, "seed": 7, "n": 2, **THINKING}):
        assert post(app, chat(**settings)).status_code == 200
    plain, thinking, greedy, first, second = (settings["sampling"] for _, settings in engine.submitted)
    assert (plain.temperature, plain.top_k, plain.top_p, plain.presence_penalty) == (1.0, 20, 1.0, 2.0)
    assert (thinking.temperature, thinking.top_k, thinking.top_p, thinking.presence_penalty) == (1.0, 20, 0.95, 1.5)
    assert greedy.greedy and greedy.presence_penalty == 0
    assert first == second and (first.top_p, first.top_k) == (0.5, 20)
    seeds = [settings["seed"] for _, settings in engine.submitted]
    assert len(set(seeds)) == 5 and post(app, chat(seed=7)) and engine.submitted[-1][1]["seed"] == seeds[3]


def test_a_completion_continues_texts_and_tokens(scripted, tokenizer):
    engine, app = scripted(f"ab<think>c</think>\n\nd{END}")
    ids = tokenizer.encode("hello")
    answer = post(app, {"model": "tiny", "prompt": ["hi", "hello"], "n": 2, "max_tokens": 50}, TEXT).json()
    assert [choice["text"] for choice in answer["choices"]] == ["ab<think>c</think>\n\nd"] * 4
    assert [prompt for prompt, _ in engine.submitted] == [tokenizer.encode("hi")] * 2 + [ids] * 2
    assert answer["usage"]["prompt_tokens"] == len(ids) + len(tokenizer.encode("hi"))
    for prompt in (ids, [ids]):
        reply = post(app, {"model": "tiny", "prompt": prompt, "stream": True, "max_tokens": 50}, TEXT)
        events = events_of(reply.text)
        assert "".join(event["choices"][0]["text"] for event in events) == "ab<think>c</think>\n\nd"
        assert events[-1]["choices"][0]["finish_reason"] == "stop"
        assert engine.submitted[-1][0] == ids
    assert engine.submitted[-1][1]["sampling"].temperature == 1 and engine.submitted[-1][1]["sampling"].top_k == 0


def test_models_and_health(scripted):
    _, app = scripted("x")
    listed = get(app, "/v1/models").json()
    assert [model["id"] for model in listed["data"]] == ["tiny"] and listed["data"][0]["max_model_len"] == 2000
    assert get(app, "/v1/models/tiny").json() == listed["data"][0]
    assert get(app, "/v1/models/other").status_code == 404
    assert get(app, "/health").json() == {"status": "ok"}


def test_a_key_is_asked_for_everywhere_but_at_health(scripted):
    _, app = scripted(f"x{END}", app_settings={"api_key": "secret é"})
    key = {"Authorization": "Bearer secret é".encode()}
    for headers in ({}, {"Authorization": "Bearer secret"}, {"Authorization": "secret é".encode()}):
        reply = post(app, chat(), headers=headers)
        assert reply.status_code == 401 and reply.json()["error"]["type"] == "authentication_error"
        assert get(app, "/v1/models", headers=headers).status_code == 401
        assert get(app, "/metrics", headers=headers).status_code == 401
    assert get(app, "/health").status_code == 200
    assert post(app, chat(), headers=key).status_code == 200


@pytest.mark.parametrize(
    ("path", "settings", "status", "message"),
    [
        (CHAT, {"content": b"{"}, 400, "the body is not JSON: "),
        (CHAT, {"json": chat(temprature=1)}, 400, "unknown field 'temprature'; leave it out. Did you"),
        (CHAT, {"json": chat("z" * 3000)}, 400, "the prompt has 3"),
        (CHAT, {"json": chat(max_tokens=3000)}, 400, "the prompt has 18 tokens and 3000 may be writt"),
        (CHAT, {"json": chat(max_completion_tokens=0)}, 400, "max_completion_tokens: input should be"),
        (CHAT, {"json": chat(top_logprobs=2)}, 400, "top_logprobs goes with logprobs=true."),
        (CHAT, {"json": chat(logprobs=True, top_logprobs=21)}, 400, "top_logprobs: input should be le"),
        (CHAT, {"json": chat(temperature=-1)}, 400, "temperature=-1.0; give 0 (greedy) or a"),
        (CHAT, {"json": chat(model="other")}, 404, "no model 'other' here; this server has 'tiny'."),
        (CHAT, {"json": chat(response_format={"type": "json_schema"})}, 400, "response_format of the "),
        (CHAT, {"json": chat(n=400)}, 400, "n: input should be less than or equal to 128 (given: 400)"),
        (CHAT, {"content": b"x" * 10_001}, 413, "the body has more than 10000 bytes, which is the lim"),
        (CHAT, {"content": b"x", "headers": {"Content-Type": "text/plain"}}, 415, "the body is text/p"),
        (TEXT, {"json": {"model": "tiny", "prompt": ""}}, 400, "prompt: an empty prompt; give a te"),
        (TEXT, {"json": {"model": "tiny", "prompt": ["a", ""]}}, 400, "prompt 1 has no tokens"),
        (TEXT, {"json": {"model": "tiny", "prompt": [[1], [2, 491]]}}, 400, "prompt 1 has placeholders of im"),
        (TEXT, {"json": {"model": "tiny", "prompt": [5000]}}, 400, "the prompt holds token 5000; give"),
        (TEXT, {"json": {"model": "tiny", "prompt": "a", "echo": True}}, 400, "unknown field 'echo'; leave"),
        ("/v1/embeddings", {"json": {}}, 404, "POST /v1/embeddings: not found."),
        ("/v1/models", {"json": {}}, 405, "POST /v1/models: method not allowed."),
    ],
)  # fmt: skip
def test_a_wrong_request_ends_in_one_clear_line(scripted, path, settings, status, message):
    engine, app = scripted(f"x{END}", app_settings={"max_body": 10_000})

    async def run():
        async with client_of(app) as client:
            headers = {"Content-Type": "application/json"} | settings.get("headers", {})
            return await client.post(path, **settings | {"headers": headers})

    reply = asyncio.run(run())
    error = reply.json()["error"]
    assert (reply.status_code, error["code"]) == (status, status)
    assert error["message"].startswith(message) and len(error["message"]) < 300 and "\n" not in error["message"]
    assert not engine.submitted


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (chat(temperature=-1), "temperature"),
        (chat(top_p=0), "top_p"),
        (chat(stop=""), "stop"),
        (chat(max_tokens=5000), "max_tokens"),
        (chat(max_completion_tokens=5000), "max_completion_tokens"),
        (chat(max_tokens=7, max_completion_tokens=5), "max_completion_tokens"),
        (chat("z" * 3000), None),
    ],
)
def test_an_error_names_the_field_that_the_client_sent(scripted, body, param):
    _, app = scripted(f"x{END}")
    reply = post(app, body)
    assert reply.status_code == 400 and reply.json()["error"]["param"] == param


def test_deep_nesting_is_refused_or_read_but_breaks_nothing(scripted):
    _, app = scripted(f"x{END}")
    for depth, statuses in ((20, {200}), (90, {200, 400}), (180, {200, 400}), (5000, {400})):
        nested = '{"a":' * depth + "1" + "}" * depth
        tool = f'{{"type": "function", "function": {{"name": "f", "parameters": {nested}}}}}'
        tail = f', "tools": [{tool}]}}'
        assert post(app, (json.dumps(chat())[:-1] + tail).encode()).status_code in statuses


def test_a_defect_is_a_500_and_not_a_broken_connection(scripted, monkeypatch):
    _, app = scripted(f"x{END}")
    monkeypatch.setattr("qwen35_jax.serving.chat.ChatAnswer", None)
    reply = post(app, chat())
    assert reply.status_code == 500 and reply.json()["error"]["message"] == "a defect of this server: TypeError."
    assert app.state.service.worker.num_open == 0
